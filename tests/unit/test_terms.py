"""What the terms of a corpus allow, before anything is computed and before publishing."""

import pytest

from speechmill.config import dataset_file, validate_config
from speechmill.errors import ConfigError
from speechmill.publish.terms import check_policy
from speechmill.runs.plan import merged_config

from ..corpora import configured
from .test_config import CONFIG


def policy(tmp_path, publish, **source):
    config = configured(tmp_path, "folder", path="x", **source)
    config["publish"] |= publish
    check_policy(config)


@pytest.mark.parametrize(
    ("publish", "source", "message"),
    [
        ({}, {}, None),
        ({"visibility": "public"}, {}, r"source.may_publish: private\) forbid a public copy"),
        ({"visibility": "public"}, {"may_publish": "public"}, "needs a licence"),
        ({"visibility": "public"}, {"may_publish": "public", "license": "CC-BY-4.0"}, "requires attribution"),
        ({"visibility": "public"}, {"may_publish": "public", "license": "CC-BY-4.0", "attribution": "A"}, None),
        ({"visibility": "public"}, {"may_publish": "public", "license": "CC0-1.0"}, None),
        ({"visibility": "public"}, {"may_publish": "public", "columns": {"license": "lic"}}, None),
        ({}, {"may_publish": "never"}, "set publish.kind none"),
        ({"kind": "none"}, {"may_publish": "never"}, None),
    ],
)
def test_what_is_published_is_not_more_open_than_the_source_allows(tmp_path, publish, source, message):
    if message is None:
        policy(tmp_path, publish, **source)
    else:
        with pytest.raises(ConfigError, match=message):
            policy(tmp_path, publish, **source)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gigaspeech2", (50_000, 20, 1, "128G", 48, 0.7)),
        ("mozilla_cv", (10_000, 10, 1, "64G", 24, 0.6)),
        ("processed_voice_th", (20_000, 15, 1, "96G", 36, 0.65)),
    ],
)
def test_the_shipped_corpora_are_valid_private_and_ask_for_what_they_need(name, expected):
    config = merged_config([f"dataset={name}"])
    cluster = config["cluster"]
    asked = (cluster["workers"], cluster["gpus_per_worker"], cluster["memory_per_worker"], cluster["hours"])
    assert (config["batch_size"], *asked, config["rank"]["threshold"]) == expected
    assert config["source"]["may_publish"] == "private"
    assert config["source"]["language"] == "th"
    check_policy(config)
    with pytest.raises(ConfigError):
        check_policy(config | {"publish": config["publish"] | {"visibility": "public"}})
    assert dataset_file({"dataset": name}, CONFIG)


def test_a_corpus_without_numbers_of_its_own_has_those_of_common_voice():
    given = {"dataset": "x", "source": {"kind": "folder", "path": "."}}
    own, other = validate_config(given, CONFIG), merged_config(["dataset=mozilla_cv"])
    assert (own["batch_size"], own["cluster"], own["rank"]) == (other["batch_size"], other["cluster"], other["rank"])
