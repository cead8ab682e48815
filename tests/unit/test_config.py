"""The configuration: defaults, precedence, and messages that name the nearest valid thing."""

import shutil
from pathlib import Path

import pytest
import yaml

from speechmill.config import complete_config, dataset_file, load_schema, missing_paths, profile_path, validate_config
from speechmill.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "config"
SOURCE = {"kind": "folder", "path": "."}


def problem(config: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_config(config, CONFIG)
    return str(caught.value)


def test_defaults_are_filled_in_at_every_depth():
    config = validate_config({"dataset": "x", "source": SOURCE, "enhance": {"level": "light"}}, CONFIG)
    assert config["enhance"]["level"] == "light"
    assert config["enhance"]["enhancer"] == "rnnoise"
    assert config["rank"] == {"profile": "asr", "threshold": 0.6, "weights": {}}
    assert config["batch_size"] == 10_000
    held_out = validate_config({"dataset": "x", "source": SOURCE, "held_out": [{"path": "y"}]}, CONFIG)["held_out"]
    assert held_out == [{"path": "y", "splits": ["dev", "validation", "test"]}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rank": {"threshold": "0.7"}}, 0.7),
        ({"rank": {"threshold": "null"}}, None),
        ({"keep_enhanced": "false"}, False),
        ({"rank": {"weights": {"noise": "0.5", "room": "null"}}}, {"noise": 0.5, "room": None}),
        ({"batch_size": "64"}, 64),
        ({"publish": {"shuffle": "null"}}, None),
        ({"publish": {"shuffle": "corpus"}}, "corpus"),
        ({"publish": {"pretty_name": "1984"}}, "1984"),
        ({"rank": {"profile": "null"}}, "null"),  # a name: there may be none of this one, but it is text
        ({"report": {"examples": 2}}, 2),
    ],
)
def test_strings_become_what_the_schema_expects(given, expected):
    config = validate_config({"dataset": "x", "source": SOURCE} | given, CONFIG)
    for name in (section := next(iter(given)), *(given[section] if isinstance(given[section], dict) else ())):
        config = config[name]
    assert config == expected
    assert type(config) is type(expected)


def test_the_callers_configuration_is_not_changed():
    given = {"dataset": "x", "source": dict(SOURCE)}
    validate_config(given, CONFIG)
    assert given == {"dataset": "x", "source": SOURCE}


def test_config_yaml_shows_the_schemas_defaults():
    schema = load_schema(CONFIG)
    shown = yaml.safe_load((CONFIG / "config.yaml").read_text())
    for key, value in shown.items():
        if key == "dataset":
            continue
        if isinstance(value, dict):
            for name, item in value.items():
                assert item == schema["properties"][key]["properties"][name]["default"], f"{key}.{name}"
        else:
            assert value == schema["properties"][key]["default"], key


@pytest.mark.parametrize("path", sorted((CONFIG / "datasets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_data_set_is_valid(path):
    config = yaml.safe_load((CONFIG / "config.yaml").read_text()) | yaml.safe_load(path.read_text())
    validate_config({**config, "dataset": path.stem}, CONFIG)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batchsize": 5}, ["batchsize", '"batch_size"']),
        ({"enhance": {"levle": "light"}}, ["enhance.levle", '"level"']),
        ({"enhance": {"enhancer": "rnoise"}}, ["enhance.enhancer", '"rnnoise"']),
        ({"batch_size": "many"}, ["batch_size", '"many"', "integer"]),
        ({"batch_size": 0}, ["batch_size", "minimum"]),
        ({"score": {"metrics": "ful"}}, ["score.metrics", '"full"']),
        ({"rank": {"threshold": 1.5}}, ["rank.threshold", "1.5"]),
        ({"enhance": {"min_seconds": 9, "max_seconds": 3}}, ["enhance.min_seconds", "enhance.max_seconds"]),
        ({"source": {"kind": "folder"}}, ["needs source.path"]),
        ({"source": {"kind": "floder", "path": "."}}, ["source.kind", '"folder"']),
        ({"dataset": "../etc"}, ["dataset"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(change, expected):
    message = problem({"dataset": "x", "source": SOURCE, **change})
    for word in expected:
        assert word in message


def test_all_mistakes_come_in_one_message():
    message = problem({"dataset": "x", "source": SOURCE, "a": 1, "batch_size": "x", "enhance": {"b": 2}})
    assert message.count("\n  - ") == 3


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "demo"'):
        dataset_file({"dataset": "dmo"}, CONFIG)


@pytest.mark.parametrize("name", [None, 3, "../config", ""])
def test_a_data_set_name_is_never_a_path(name):
    with pytest.raises(ConfigError, match="unknown data set"):
        dataset_file({"dataset": name}, CONFIG)


def test_missing_path_names_the_nearest_one(tmp_path):
    (tmp_path / "corpus").mkdir()
    config = validate_config({"dataset": "x", "source": {"kind": "folder", "path": f"{tmp_path}/corpsu"}}, CONFIG)
    (line,) = missing_paths(config)
    assert "does not exist" in line
    assert 'did you mean "corpus"' in line


def test_other_runs_that_are_not_there_are_named_before_anything_runs(tmp_path):
    given = {"dataset": "x", "source": SOURCE, "held_out": [{"path": "results/nobody"}], "compare_with": ["no/where"]}
    lines = missing_paths(validate_config(given, CONFIG))
    assert [line.split(" ")[:2] for line in lines] == [["held_out:", "results/nobody"], ["compare_with:", "no/where"]]


def test_glob_that_matches_nothing(tmp_path):
    config = validate_config({"dataset": "x", "source": {"kind": "parquet", "path": f"{tmp_path}/*.parquet"}}, CONFIG)
    assert "nothing matches" in missing_paths(config)[0]
    (tmp_path / "a.parquet").touch()
    assert missing_paths(config) == []


def test_profile_by_name_by_path_and_unknown(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert profile_path({"rank": {"profile": "tts"}}, CONFIG) == CONFIG / "ranking" / "tts.yaml"
    assert profile_path({"rank": {"profile": str(mine)}}, CONFIG) == mine
    with pytest.raises(ConfigError, match='"tts"'):
        profile_path({"rank": {"profile": "tss"}}, CONFIG)


def test_what_the_user_sets_overrides_the_data_set_which_overrides_the_defaults(tmp_path):
    config_dir = tmp_path / "config"
    shutil.copytree(CONFIG, config_dir)
    (config_dir / "config.yaml").write_text("dataset: mine\nrank: {threshold: 0.1}\nbatch_size: 7\n")
    (config_dir / "datasets" / "mine.yaml").write_text(
        f"source: {{kind: folder, path: {tmp_path}}}\nrank: {{threshold: 0.2}}\nbatch_size: 8\n"
    )
    found = complete_config({"rank": {"threshold": "0.3"}}, config_dir)
    assert (found["dataset"], found["rank"]["threshold"], found["rank"]["profile"]) == ("mine", 0.3, "asr")
    assert found["batch_size"] == 8
    with pytest.raises(ConfigError, match="unknown data set 'mien'"):
        complete_config({"dataset": "mien"}, config_dir)


def test_every_kind_of_source_has_a_place_and_a_module():
    from speechmill.sources import KINDS

    kind = load_schema(CONFIG)["properties"]["source"]["properties"]["kind"]
    assert set(kind["enum"]) == kind["places"].keys() == KINDS.keys()
    assert {place for places in kind["places"].values() for place in places} == {"path", "repo", "datacollective"}


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({"kind": "hf_parquet", "path": "."}, "needs source.repo; given: source.path"),
        ({"kind": "webdataset", "path": ".", "repo": "a/b"}, "needs source.path or source.repo; given"),
        ({"kind": "folder"}, "source.kind folder needs source.path"),
    ],
)
def test_a_source_has_exactly_one_place_of_its_kind(given, needs):
    assert needs in problem({"dataset": "x", "source": given})
