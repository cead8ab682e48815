"""The data set card: what it says, that its code runs, and what a hostile corpus can write into it."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from speechmill import __version__
from speechmill.errors import ConfigError
from speechmill.metrics import Metric
from speechmill.publish import card, survey
from speechmill.publish.figure import FIGURE
from speechmill.publish.survey import Batch
from speechmill.tables.parquet_io import write_table

from .published import EVIL, METRICS, Run

HIDDEN = "".join(map(chr, (0x200B, 0x202E, 0x2066, 0xFEFF)))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def published_card(run: Run) -> str:
    run.publish()
    return (run.target / "README.md").read_text()


def render(run: Run, paths=("data/train-00000-of-00001.parquet", "scores/train-00000-of-00001.parquet"), **more) -> str:
    found = survey.survey(Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in run.batches)
    found.clips["errored"] += sum(run.summary["failed_batches"].values())
    return card.render_card(found, run.profile, run.summary, run.source, run.config, paths, **more)


def code(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """The body without its code blocks, in which nothing is markup."""
    return re.sub(r"^```\w+\n.*?^```$", "", text.split("---\n", 2)[2], flags=re.DOTALL | re.MULTILINE)


# The block for the Hub


def test_front_matter(run):
    text = published_card(run)
    block = yaml.safe_load(text.split("---\n")[1])
    trains = len(list((run.target / "data").glob("train-*")))
    assert block["license"] == ["cc-by-sa-3.0", "cc0-1.0"]
    assert block["language"] == ["en", "th"]
    assert block["pretty_name"] == " ".join(EVIL.replace("\u202e", "").split())
    assert block["size_categories"] == ["n<1K"]
    assert "audio" in block["tags"]
    default, scores = block["configs"]
    assert default["config_name"] == "default"
    assert default["data_files"][0] == {"split": "train", "path": f"data/train-*-of-{trains:05d}.parquet"}
    assert [entry["split"] for entry in default["data_files"]] == ["train", "validation", "test"]
    assert scores == {
        "config_name": "scores",
        "data_files": [{"split": "train", "path": "scores/train-*-of-00001.parquet"}],
    }


def test_the_libraries_of_the_hub_read_the_front_matter(run, datasets):
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    run.config["source"]["license"] = run.source["license"] = "Terms of Ours"
    text = published_card(run)
    read = DatasetCard(text, ignore_metadata_errors=False)
    block = yaml.safe_load(text.split("---\n")[1])
    assert read.data.to_dict() == block
    assert {*block} <= {*vars(DatasetCardData(**block)), "configs"}
    configs = MetadataConfigs.from_dataset_card_data(read.data)
    assert set(configs) == {"default", "scores"}
    assert configs.get_default_config_name() == "default"


@pytest.mark.parametrize(
    ("license", "identifier"),
    [
        ("CC-BY-SA-3.0", "cc-by-sa-3.0"),
        ("CC0-1.0", "cc0-1.0"),
        ("Apache-2.0", "apache-2.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("ODbL-1.0", "odbl"),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "cc-by-nc-4.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("https://creativecommons.org/licenses/evil/4.0/", "other"),
        ("research only", "other"),
        (None, "unknown"),
        ("  ", "unknown"),
    ],
)
def test_licences(license, identifier):
    assert card.hub_license(license) == identifier


def test_a_licence_that_the_hub_does_not_know_is_named():
    found = survey.Survey([], sources={("x", "https://example.org/Terms_1?a=b"): (1, 1.0)})
    config = {"publish": {"pretty_name": None, "task_categories": []}, "dataset": "demo"}
    block = yaml.safe_load(card.front_matter(found, {}, config, []))
    assert (block["license"], block["license_link"]) == ("other", "https://example.org/Terms_1?a=b")
    assert re.fullmatch("[a-z0-9.-]+", block["license_name"])


# What is counted


def funnel_rows(text: str) -> list[tuple[str, int, str, int]]:
    table = text.split("| step | clips | hours decoded | clips left |\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[1:]]
    return [(step, int(clips.replace(",", "")), hours, int(left.replace(",", ""))) for step, clips, hours, left in rows]


def test_the_funnel_balances_in_clips_and_hours(run):
    run.summary["failed_batches"] = {"b9": 5}
    run.summary["clips"]["input"] += 5
    run.summary["clips"]["errored"] += 5
    first, *steps, last = funnel_rows(published_card(run))
    assert (first[0], first[1], first[3]) == ("**input**", 65, 65)
    assert (last[0], last[1], last[3]) == ("**accepted**", run.states["accepted"], run.states["accepted"])
    left = first[1]
    for _, clips, _, after in steps:
        left -= clips
        assert after == left
    assert left == last[1]
    errored = card.escape(EVIL)
    assert [step[0] for step in steps] == [
        f"errored: {errored}",
        "errored: batch\\_failed",
        "duplicate",
        "rejected: closeness",
    ]
    assert steps[1][2] == "unknown"


def test_hours_of_the_funnel_are_those_of_the_rows(run):
    found = survey.survey(Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in run.batches)
    steps = card.funnel(found, 0)
    rows = [row for _, _, path in run.batches for row in pq.read_table(path).to_pylist()]
    for state, reason, clips, hours, _ in steps:
        those = [r for r in rows if r["state"] == state and (r["criterion"] or r["error_class"] or "") == reason]
        assert clips == len(those) > 0
        assert hours == pytest.approx(sum(r["input_duration"] for r in those) / 3600)
    lost = sum(hours or 0 for _, _, _, hours, _ in steps)
    assert lost + found.input_seconds["accepted"] / 3600 == pytest.approx(sum(r["input_duration"] for r in rows) / 3600)


def test_a_flood_of_licences_languages_and_reasons_is_bounded(monkeypatch):
    monkeypatch.setattr(survey, "MAX_COUNTED", 3)
    found = survey.Survey([])
    columns = {
        "id": [str(n) for n in range(10)],
        "source": ["s"] * 10,
        "license": [f"l{n}" for n in range(10)],
        "language": [f"l{n}" for n in range(10)],
        "state": ["accepted"] * 10,
        "input_duration": [1.0] * 10,
        "duration": [1.0] * 10,
    }
    table = pa.table(columns)
    survey._count(found, table, table.filter(pc.equal(table["state"], "accepted")))
    assert found.sources[(survey.OTHERS, survey.OTHERS)] == (7, 7.0)
    assert found.languages[survey.OTHERS] == 7
    columns |= {"state": ["rejected"] * 10, "criterion": columns["license"], "error_class": pa.nulls(10, pa.string())}
    survey._count_reasons(found, pa.table(columns))
    assert found.reasons["rejected", survey.OTHERS] == (7, 7.0)


# The code


@pytest.mark.parametrize("splits", [True, False])
def test_the_code_of_the_card_runs(run, datasets, monkeypatch, splits):
    pytest.importorskip("pandas")
    if not splits:
        for _, enhanced, ranking in run.batches:
            for path in (enhanced, ranking):
                table = pq.read_table(path)
                at = table.schema.get_field_index("source_split")
                write_table(table.set_column(at, "source_split", pa.nulls(len(table), pa.string())), path)
    blocks = code(published_card(run))
    assert len(blocks) == 3
    monkeypatch.chdir(run.target)
    names: dict = {}
    exec("\n".join(blocks), names)
    ids = set(names["clips"]["id"])
    assert (ids == set(run.truth)) is not splits
    expected = {i for i, t in run.truth.items() if t["closeness"] >= 0.3 and i in ids}
    assert set(names["strict"]["id"]) == expected
    assert 0 < len(expected) < len(ids)
    assert len(names["samples"]) == round(names["row"]["duration"] * names["rate"])


def test_the_code_names_the_repository_and_the_version(run, datasets, monkeypatch):
    pytest.importorskip("pandas")
    run.publish()
    real, calls = datasets.load_dataset, []

    def load_dataset(name, *arguments, revision, **options):
        calls.append((name, revision))
        return real(str(run.target), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    names: dict = {}
    trains = [f"data/{path.name}" for path in (run.target / "data").iterdir()]
    text = render(run, [*trains, "scores/train-00000-of-00001.parquet"], repository="owner/name", tag="v1.2")
    exec("\n".join(code(text)), names)
    assert calls == [("owner/name", "v1.2")] * 2
    assert names["strict"].num_rows > 0
    assert "https://huggingface.co/datasets/owner/name/tree/v1.2)" in text
    assert "[discussion](https://huggingface.co/datasets/owner/name/discussions)" in text
    assert "| version of this data set | v1.2 |" in text


def test_a_tag_without_a_repository_and_a_repository_without_a_tag(run):
    assert render(run, tag="v1") == render(run)
    text = render(run, repository="owner/name")
    assert 'load_dataset("owner/name", split="train")' in text
    assert "revision=" not in text


def test_a_name_cannot_leave_its_quotes(run):
    evil = 'x"); import os\n```\n# Owned <script> '
    text = render(run, repository=evil, tag=evil)
    calls = re.findall(r"load_dataset\(.*\)", "\n".join(code(text)).replace(".to_pandas()", ""))
    called = [eval(call, {"load_dataset": lambda name, *_, **more: (name, more)}) for call in calls]
    assert len(called) == 2
    for name, more in called:
        assert name == more["revision"] == 'x"); import os ``` # Owned <script>'
    assert "# Owned" not in "".join(line[:7] for line in text.splitlines())
    assert text.count("\n```") == 2 * (len(code(text)) + len(code(text, "bibtex")))
    assert "<script" not in prose(text)


def test_the_stricter_threshold_is_above_the_profiles(tmp_path):
    assert "scores.closeness >= 0.75)" in render(Run(tmp_path / "a", clips=16, threshold=0.65))
    assert "scores.closeness >= 1)" in render(Run(tmp_path / "b", clips=16, threshold=0.95))


# Citation and removal


def test_how_to_cite(run):
    [plain] = code(render(run), "bibtex")
    [named] = code(render(run, repository="owner/Name_1", tag="v1_2"), "bibtex")
    assert plain.startswith("@misc{demo,\n  title = {{เสียง | \\textless{}script")
    assert "url" not in plain
    assert "version = {" not in plain
    assert "@misc{owner-name-1," in named
    assert "  url = {https://huggingface.co/datasets/owner/Name_1},\n  version = {v1\\_2},\n" in named
    for entry in (plain, named):
        assert f"Processed with speechmill {__version__}; cite its sources" in entry
        assert "year" not in entry
        assert "<script" not in entry
        assert "---" not in entry.splitlines()
        bare = re.sub(r"\\[{}]", "", entry)
        assert bare.count("{") == bare.count("}")


def test_how_to_have_a_clip_removed(run):
    text = render(run)
    assert "`id` or `source_id`, or the `speaker_id`" in text
    assert "left out of this version" not in text
    run.summary["rejected_by"]["removed"] = 1
    assert "1 clip was left out of this version on request." in render(run)
    run.summary["rejected_by"]["removed"] = 1234
    assert "1,234 clips were left out of this version on request." in render(run)


# Hostile text


def test_the_body_escapes_and_says_what_it_should(run, monkeypatch):
    declared = {"snr_db": Metric("snr_db", "dB", -20, 80, "benefit", "Speech to noise | ratio", "")}
    monkeypatch.setattr(card, "declared_metrics", lambda: declared)
    text = published_card(run)
    body = prose(text)
    lines = body.splitlines()
    assert "<script" not in text.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]\(", body)
    assert [line for line in lines if line.startswith("# ")] == [f"# {card.escape(EVIL)}"]
    assert "---" not in lines
    assert "\u202e" not in body
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):  # every row has its header's number of cells
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "| snr\\_db | 1 | 2.5 |  | dB | Speech to noise \\| ratio |" in body
    assert "| dnsmos\\_p808 | 1 | 2.5 |  |  |  |" in body
    assert "threshold 0.2" in body
    assert "f" * 64 in body
    assert "| metric | group | weight | direction | low | high | ideal | scale |" in body
    assert str(run.directory) not in text


def test_hostile_names_of_sources_and_licences_stay_text(run):
    for _, _, path in run.batches:
        table = pq.read_table(path)
        for column in ("source", "license"):
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, pa.array([EVIL + HIDDEN] * len(table), pa.string()))
        write_table(table, path)
    run.config["source"]["terms"] = EVIL + HIDDEN
    text = published_card(run)
    body = prose(text)
    assert f"| {card.escape(EVIL)} | {card.escape(EVIL)} |" in body
    assert f"Terms that readers accept: {card.escape(EVIL)}" in body
    assert "<script" not in body
    assert not set(HIDDEN) & set(text)
    block = yaml.safe_load(text.split("---\n")[1])
    assert block["license"] == "other"
    assert re.fullmatch("[a-z0-9.-]+", block["license_name"])


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a\n\n# b", "a \\# b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[x](javascript:alert)", "\\[x\\](javascript:alert)"),
        ("a|b`c*d_e~f$g!h\\", "a\\|b\\`c\\*d\\_e\\~f\\$g\\!h\\\\"),
        ("by https://a.b/c_d.", "by <https://a.b/c_d>."),
        ("see http://a.b/<script>", "see <http://a.b/>&lt;script&gt;"),
        ("ก\u202eข\u0000", "ก ข"),
        (3, "3"),
    ],
)
def test_escape(value, escaped):
    assert card.escape(value) == escaped


# The figure


def test_the_figure_is_published_and_described(run):
    content = run.publish()
    [entry] = [f for f in content["files"] if f["path"] == FIGURE]
    assert entry["rows"] is None
    assert (run.target / FIGURE).read_bytes().startswith(b"\x89PNG")
    described = re.findall(r"(?<!\\)!\[(.*)\]\((.*)\)", prose((run.target / "README.md").read_text()))
    names = "snr\\_db, dnsmos\\_p808"
    about = f"Histograms of accepted against rejected clips: closeness with the threshold 0.2, duration, {names}"
    assert described == [(about, FIGURE)]
    assert FIGURE not in render(run)


def test_a_profile_that_was_edited_is_refused(run):
    run.profile["threshold"] = 0.1
    with pytest.raises(ConfigError, match="edited by hand"):
        run.publish()
    assert not run.sentinel.exists()


def test_the_card_explains_every_column(run):
    run.publish()
    table = (run.target / "README.md").read_text().split("### Columns")[1].split("## What was done")[0]
    rows = re.findall(r"^\| (.*?) \|", table.replace("\\", ""), re.MULTILINE)
    named = {name.strip() for row in rows for name in row.split(",")} - {"column", "the metrics below"}
    schema = pq.read_schema(next((run.target / "data").iterdir()))
    assert named == set(schema.names) - set(METRICS)
