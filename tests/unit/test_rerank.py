"""Another ranking of a finished run: the preview says what the workflow's own ranking would come to."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from speechmill.analysis.rerank import decide_again, preview, publish_plan, read_weights, reasons, setting_line
from speechmill.cli.main import main
from speechmill.config import validate_config
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.metrics import all_metrics
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, freeze, load_profile
from speechmill.ranking.removals import add_removals, is_removed, speaker_key
from speechmill.ranking.states import STATES, check_batch
from speechmill.report.summary import merge_ranking, overview, summarize
from speechmill.runs.plan import make_plan, merged_config, plan_config
from speechmill.storage.files import read_json, write_json
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import LEDGER

CONFIG = Path(__file__).parents[2] / "config"
MEASURED = sorted(
    "input_snr_db dnsmos_p808 input_reverb_decay_db_s input_bandwidth_hz input_clip_ratio input_loudness_lufs "
    "speech_ratio longest_pause_s denoise_removed_db snr_db".split()
)
ROW_GROUP = 100


class Batch:
    """What the rank stage is given of a made-up batch: every state and fate that there is, drawn from a seed."""

    def __init__(self, name, clips, metrics, bounds, seed):
        random = np.random.default_rng(seed)
        self.name = name
        self.ids = [f"{name}-{number:06d}" for number in range(clips)]
        states = random.choice(["passed", "rejected", "errored"], clips, p=[0.8, 0.1, 0.1])
        rows, scores = [], []
        for clip_id, state in zip(self.ids, states, strict=True):
            row = {"id": clip_id, "source": "s", "input_duration": 6.0, "state": state}
            row |= {"speaker_id": [None, "anna", "boris", "chitra"][random.integers(4)]}
            if state == "rejected":
                row |= {"criterion": "speech_s", "value": 0.1, "threshold": 0.25, "message": "no speech"}
            elif state == "errored":
                row |= {"error_class": "truncated", "message": "cut"}
            rows.append(row)
            if state == "passed":
                scores.append(self._score(clip_id, metrics, bounds, random))
        schema = pa.schema(
            [pa.field(n, pa.string()) for n in ("id", "error_class", "message", "variant")]
            + [pa.field(n, pa.float64()) for n in ("duration", *metrics)]
        )
        self.ledger = pa.Table.from_pylist(rows, schema=LEDGER)
        self.scores = pa.Table.from_pylist(scores, schema=schema)
        chosen = random.random((2, clips)) < 0.1
        self.duplicates = _listed(self.ids, chosen[0], "duplicate_of", "elsewhere")
        self.held_out = _listed(self.ids, chosen[1], "message", "in the split dev of the corpus")

    def _score(self, clip_id, metrics, bounds, random):
        row = {"id": clip_id, "variant": "original", "duration": float(random.uniform(0.2, 34))}
        for name in metrics:
            low, high = bounds.get(name, (0.0, 1.0))
            row[name] = float(random.uniform(low - 0.2 * (high - low), high + 0.2 * (high - low)))
        for name in metrics:
            if random.random() < 0.03:
                row[name] = [None, float("nan"), float("inf")][random.integers(3)]
        if random.random() < 0.05:
            row |= {"error_class": "score_failed", "message": "boom"}
        return row

    def rank(self, profile, removed=None):
        """The batch as the workflow ranks it."""
        args = self.ledger, self.ledger, self.scores, self.duplicates, profile, self.name, self.held_out, None, removed
        table = rank_batch(*args)
        check_batch(self.ids, self.ledger, table, self.name)
        return table


def _listed(ids, chosen, column, value):
    names = [name for name, is_chosen in zip(ids, chosen, strict=True) if is_chosen]
    return pa.table({"id": pa.array(names, pa.string()), column: pa.array([value] * len(names), pa.string())})


def made_up_profile(random, metrics, bounds):
    """Gates, bounds, weights and threshold as they come."""
    criteria = []
    for name in random.permutation(metrics)[: random.integers(2, len(metrics) + 1)]:
        low, high = bounds[name]
        criteria.append(Criterion(str(name), "g", low, high, str(random.choice(["benefit", "cost"])), random.uniform()))
    gates = [
        Gate(str(name), *((low, None) if random.random() < 0.5 else (None, high)), "")
        for name in random.permutation(["duration", *metrics])[: random.integers(0, 4)]
        for low, high in [bounds.get(name, (1.0, 30.0))]
    ]
    body = {"name": "p", "version": 1, "description": "", "dropped_criteria": (), "dropped_gates": (), "sha256": ""}
    numbers = {"threshold": random.uniform(0.2, 0.8), "min_coverage": random.uniform(0.5, 1)}
    total = sum(one.weight for one in criteria)
    scaled = tuple(dataclasses.replace(one, weight=one.weight / total) for one in criteria)
    return FrozenProfile(**body, **numbers, gates=tuple(gates), criteria=scaled)


@pytest.mark.parametrize("seed", range(40))
def test_every_clip_has_the_state_and_reason_that_the_rank_stage_gives_it(seed):
    random = np.random.default_rng([seed, 9])
    bounds = {"a": (0.0, 40.0), "b": (1.0, 5.0), "c": (-3.0, 3.0), "d": (0.0, 1.0)}
    batch = Batch("b", int(random.integers(0, 150)), list(bounds), bounds, seed)
    old, new = (made_up_profile(random, list(bounds), bounds) for _ in range(2))
    removed = {"clips": batch.ids[::9], "speakers": [speaker_key("boris")] if seed % 2 else []}
    earlier = {"clips": batch.ids[::18], "speakers": []} if seed % 3 else None  # what was on the list at that time
    before, truth = batch.rank(old, earlier), batch.rank(new, removed)

    gone = is_removed(before, removed).to_numpy(zero_copy_only=False).astype(bool)
    decided = decide_again(before, new, gone, "run")
    names = reasons(new)
    assert [STATES[code] for code in decided.before] == before["state"].to_pylist()
    for row, was, state, why, close in zip(
        truth.to_pylist(), before.to_pylist(), decided.after, decided.reason, decided.closeness, strict=True
    ):
        assert STATES[state] == row["state"]
        expected = row["criterion"] or row["error_class"]
        found = names[why] if why >= 0 else was["criterion"] or was["error_class"]
        assert row["state"] == "accepted" or found == expected
        assert row["closeness"] is None or row["closeness"] == close


class Run:
    """A finished run of three batches: tables, profile and summary by the functions of the workflow."""

    def __init__(self, folder, **rank):
        self.folder = folder / "results" / "demo"
        self.config = merged_config(["dataset=demo", f"rank={json.dumps(rank)}"])
        profiles = [load_profile(name, CONFIG / "ranking", all_metrics()) for name in ("asr", "tts")]
        bounds = {c.metric: (c.low, c.high) for one in profiles for c in freeze(one, MEASURED).criteria}
        self.batches = [Batch(f"b{n}", 150, MEASURED, bounds, n) for n in range(3)]
        write_json(self.folder / "preflight.json", {"metrics": MEASURED})
        self.write(self.folder)

    def write(self, folder, removed=None, failed=None):
        """Rank, and report all tables and numbers."""
        rank = self.config["rank"]
        profile = load_profile(rank["profile"], CONFIG / "ranking", all_metrics())
        frozen = freeze(profile, MEASURED, rank["threshold"], rank["weights"])
        paths = [folder / "ranking" / f"{batch.name}.parquet" for batch in self.batches]
        for batch, path in zip(self.batches, paths, strict=True):
            write_table(batch.rank(frozen, removed), path)
        write_json(folder / "ranking" / "profile.json", frozen.to_json())
        merge_ranking(paths, folder / "report" / "ranking.parquet")
        table = pq.read_table(folder / "report" / "ranking.parquet")
        write_table(table, folder / "report" / "ranking.parquet", row_group_size=ROW_GROUP)
        summary = summarize(overview(paths, failed), frozen, {}, self.config, {}, [], {})
        write_json(folder / "report" / "summary.json", summary)
        return summary, table.to_pylist()


CHANGES = [
    {},
    {"threshold": 0.35},
    {"threshold": 0.9},
    {"profile": "tts"},
    {"profile": "tts", "threshold": 0.3, "weights": {"noise": 0.0, "level": 3.0}},
    {"weights": {"noise": 0.05}},
]


@pytest.mark.parametrize("change", CHANGES, ids=map(str, CHANGES))
def test_the_preview_has_the_numbers_of_the_report_that_the_workflow_would_make(tmp_path, change):
    run = Run(tmp_path, threshold=0.55)
    before, old = run.write(run.folder, failed={"b9": 7})
    run.config["rank"] |= change
    after, new = run.write(tmp_path / "truth", failed={"b9": 7})

    found = preview(run.folder, **change)
    assert found["setting"] == run.config["rank"]
    for side, summary in (("before", before), ("after", after)):
        assert {state: one[side] for state, one in found["clips"].items()} == {s: summary["clips"][s] for s in STATES}
        assert found["hours_accepted"][side] == pytest.approx(summary["hours"]["accepted"], abs=2e-6)
        assert found["profile"][side]["sha256"] == summary["profile_sha256"]
        for name in ("rejected_by", "errored_by"):
            assert {why: one[side] for why, one in found[name].items() if one[side]} == summary[name]
    pairs = list(zip(old, new, strict=True))
    moves = Counter((was["state"], row["state"]) for was, row in pairs) + Counter({("errored", "errored"): 7})
    assert {(a, b): n for a, line in found["transitions"].items() for b, n in line.items() if n} == moves
    comes = [was for was, row in pairs if was["state"] != "accepted" == row["state"]]
    goes = [row for was, row in pairs if was["state"] == "accepted" != row["state"]]
    for side, rows in (("in", comes), ("out", goes)):
        assert found[side]["clips"] == len(rows)
        assert found[side]["hours"] == pytest.approx(sum(row["duration"] for row in rows) / 3600, abs=1e-6)
        assert found[side]["reasons"] == Counter(row["criterion"] or row["error_class"] for row in rows)
    assert {*found["metrics"]} == {"closeness", "duration", *MEASURED}
    for name, means in found["metrics"].items():
        for side, rows in (("before", old), ("after", new)):
            values = np.array([row[name] for row in rows if row["state"] == "accepted"], float)
            assert means[side] == pytest.approx(np.mean(values[np.isfinite(values)]))


def test_what_is_on_the_list_of_removals_by_now_goes_out(tmp_path):
    run = Run(tmp_path, threshold=0.4)
    removed = {"clips": run.batches[1].ids[:60], "speakers": [speaker_key("anna")]}
    add_removals(run.folder, removed)
    truth, _ = run.write(tmp_path / "truth", removed)
    found = preview(run.folder)
    assert {state: one["after"] for state, one in found["clips"].items()} == {s: truth["clips"][s] for s in STATES}
    assert found["out"]["reasons"] == {"removed": found["out"]["clips"]} != {"removed": 0}


def test_the_setting_comes_out_of_the_command_line_as_it_went_in(tmp_path):
    for setting in (
        {"profile": "asr", "threshold": None, "weights": {}},
        {"profile": "/a folder/ไทย: {x}, 'y'.yaml", "threshold": 1e-5, "weights": {"noise": 1e-7, "room": None}},
    ):
        line = setting_line(setting)
        assert "\n" not in line
        assert yaml.safe_load(f"rank: {line}") == {"rank": setting}
        as_text = yaml.load(line, yaml.BaseLoader)  # what Snakemake makes of --config
        config = validate_config({"dataset": "x", "source": {"kind": "folder", "path": "."}, "rank": as_text}, CONFIG)
        assert config["rank"] == setting


def started(run, tmp_path, **settings):
    """Give a run the record of `speechmill run`, with its configuration in a file."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"rank": run.config["rank"]} | settings))
    plan = make_plan("demo", "local", tmp_path, ['rank={"threshold": 0.7}'], ["--configfile", "config.yaml"])
    write_json(run.folder / "run.json", dataclasses.asdict(plan))
    return plan


def test_publishing_starts_the_run_as_it_was_started_with_the_previewed_ranking(tmp_path):
    run = Run(tmp_path, weights={"room": 0.3, "quality": 0.1})
    plan = started(run, tmp_path)
    asked = preview(run.folder, threshold=0.65, weights={"room": 0.2})
    new = publish_plan(run.folder, asked)
    assert plan_config(new)["rank"] == {"profile": "asr", "threshold": 0.65, "weights": {"room": 0.2, "quality": 0.1}}
    assert plan_config(new) == plan_config(plan) | {"rank": asked["setting"]}
    assert [pair.partition("=")[0] for pair in new.config] == ["dataset", "rank"]
    assert dataclasses.replace(new, config=plan.config) == plan
    # Weights are of a profile's groups: another profile has its own.
    other = preview(run.folder, profile="tts")
    assert (
        freeze(load_profile("tts", CONFIG / "ranking", all_metrics()), MEASURED, 0.7).sha256
        == (other["profile"]["after"]["sha256"])
    )
    assert plan_config(publish_plan(run.folder, other))["rank"] == other["setting"]


def test_a_profile_in_a_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text((CONFIG / "ranking" / "tts.yaml").read_text().replace("0.65", "0.31", 1))
    run = Run(tmp_path)
    started(run, tmp_path)
    monkeypatch.chdir(tmp_path)
    found = preview(Path("results/demo"), profile="mine.yaml")
    assert found["setting"]["profile"] == str(tmp_path / "mine.yaml")
    plan = publish_plan(run.folder, found)
    write_json(
        run.folder / "run.json",
        dataclasses.asdict(dataclasses.replace(plan, config=["dataset=nowhere", "rank={profile: mine.yaml}"])),
    )
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match="unknown data set"):
        preview(run.folder)
    config = ["dataset=demo", "rank={profile: mine.yaml, threshold: null}"]
    write_json(run.folder / "run.json", dataclasses.asdict(dataclasses.replace(plan, config=config)))
    assert preview(run.folder)["profile"]["after"]["threshold"] == 0.31


def test_publishing_is_refused_where_more_than_the_ranking_would_change(tmp_path):
    run = Run(tmp_path)
    found = preview(run.folder, threshold=0.5)
    with pytest.raises(SpeechmillError, match=r"not started by speechmill run.*--config 'rank=\{profile: asr, thresh"):
        publish_plan(run.folder, found)
    started(run, tmp_path, batch_size=77, enhance={"level": "light"})
    found = preview(run.folder, threshold=0.5)
    assert found["other_settings"] == ["batch_size", "enhance.level"]
    with pytest.raises(SpeechmillError, match=r"other settings have changed, too \(batch_size, enhance\.level\)"):
        publish_plan(run.folder, found)


def test_a_run_without_a_current_report_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SpeechmillError, match=r"no finished report here.*speechmill resume"):
        preview(tmp_path)
    run = Run(tmp_path)
    other = run.config["rank"] | {"threshold": 0.1}
    run.config["rank"] = other
    run.write(tmp_path / "later")
    os.replace(tmp_path / "later" / "ranking" / "profile.json", run.folder / "ranking" / "profile.json")
    with pytest.raises(SpeechmillError, match=r"report is older than its ranking; go on with it first"):
        preview(run.folder)
    run.write(run.folder)
    table = run.folder / "report" / "ranking.parquet"
    table.write_bytes(table.read_bytes()[:-1000])
    with pytest.raises(SpeechmillError, match=r"ranking\.parquet cannot be read: .*run again"):
        preview(run.folder)
    table.unlink()
    with pytest.raises(SpeechmillError, match=r"report/ranking\.parquet is missing"):
        preview(run.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nois=1"], "no group 'nois': did you mean \"noise\"?"),
        (["--weights", "noise"], "--weights noise: expected the name of a group and a number"),
        (["--weights", "noise=much"], "--weights noise=much: expected"),
        (["--weights", *(f"{name}=0" for name in ("noise", "quality", "room", "speech", "recording"))], "sum to 0"),
        (["--threshold", "nan"], "closeness lies between 0 and 1"),
        (["--profile", "asrr"], 'did you mean "asr"?'),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    run = Run(tmp_path)
    assert main(["rerank", str(run.folder), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_command_says_what_before_is(tmp_path, capsys):
    run = Run(tmp_path)
    command = ["rerank", str(run.folder), "--threshold", "0.3", "--weights", "noise=0.4", "room=0.2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "nothing is published yet" in text
    assert "rank: {profile: asr, threshold: 0.3, weights: {noise: 0.4, room: 0.2}}" in text
    summary = read_json(run.folder / "report" / "summary.json")
    sentinel = {"accepted": summary["clips"]["accepted"], "hours": 1.5, "target": "owner/name"}
    for sha256, words in (
        (summary["profile_sha256"], "before is what is published"),
        ("f" * 64, "before is the last report, which is not what is published"),
    ):
        write_json(run.folder / "published" / "UPLOADED.json", sentinel | {"profile_sha256": sha256})
        assert main([*command]) == 0
        text = capsys.readouterr().out
        assert words in text
    *tables, _ = [line for line in text.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= 110
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == preview(
        run.folder, threshold=0.3, weights=read_weights(["noise=0.4", "room=0.2"])
    )
