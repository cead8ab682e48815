"""The listening audit: statistics by other libraries, listeners whose true threshold is known, sheets of any content."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from speechmill.audit.agreement import answers_needed, cohen_kappa, fleiss_kappa, weighted_share
from speechmill.audit.results import audit
from speechmill.audit.results_text import audit_text
from speechmill.audit.threshold import best_threshold
from speechmill.cli.main import main
from speechmill.errors import SpeechmillError
from speechmill.report.audit_sample import choose_audit
from speechmill.storage.files import write_json

from .test_audit_sample import THRESHOLD, make_rows, write

PROFILE = "ab" * 32
NOISE = 0.03  # of a listener, in closeness


@pytest.mark.parametrize(("hits", "of"), [(0, 5), (3, 7), (24, 24), (61, 80)])
def test_intervals_of_equal_weights_are_those_of_scipy(hits, of):
    found = weighted_share([True] * hits + [False] * (of - hits), np.full(of, 7.5))
    there = binomtest(hits, of).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((there.low, there.high), abs=1e-9)
    assert found["effective"] == pytest.approx(of)
    assert found["share"] == pytest.approx(hits / of)


def test_unequal_weights_count_by_kish():
    # One answer of weight 4 and four of 1: (4 + 4)^2 / (16 + 4).
    found = weighted_share([True, False, False, False, False], [4, 1, 1, 1, 1])
    assert found["effective"] == pytest.approx(3.2)
    assert found["share"] == pytest.approx(0.5)
    assert weighted_share([], [])["share"] is None


def test_kappa_is_that_of_scikit_learn():
    random = np.random.default_rng(5)
    for size in (5, 9, 200):
        first = random.choice(["yes", "no"], size)
        second = np.where(random.uniform(size=size) < 0.7, first, random.choice(["yes", "no"], size))
        assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(["yes", "yes"], ["yes", "yes"]) is None  # chance alone agrees
    assert cohen_kappa([], []) is None


def test_fleiss_kappa_is_that_of_the_published_example():
    # 14 raters, 10 things, 5 categories: the worked example of Wikipedia's article, kappa 0.210.
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([]) is None


@pytest.mark.parametrize(("hits", "of"), [(9, 10), (30, 50), (5, 5)])
def test_so_many_more_answers_narrow_the_interval_to_five_points(hits, of):
    total = of + answers_needed(weighted_share([True] * hits + [False] * (of - hits), np.ones(of)))

    def width(answers):  # by scipy, of the nearest possible counts
        bounds = [
            binomtest(k, answers).proportion_ci(method="wilson")
            for k in {int(answers * hits / of), -(-answers * hits // of)}
        ]
        return [bound.high - bound.low for bound in bounds]

    assert min(width(total)) <= 0.1001
    assert max(width(total - 2)) > 0.0999
    assert answers_needed(weighted_share([True] * 400, np.ones(400))) == 0


def test_the_best_threshold_is_that_of_trying_all():
    random = np.random.default_rng(11)
    for _ in range(20):
        size = int(random.integers(1, 30))
        closeness, fit = random.integers(0, 12, size) / 12, random.uniform(size=size) < 0.5
        weights = random.choice([1.0, 3.0, 10.0], size)
        found = best_threshold(closeness, fit, weights, np.zeros(size), 0.6)

        def agree(threshold, closeness=closeness, fit=fit, weights=weights):
            return weights[(closeness >= threshold) == fit].sum()

        every = np.linspace(0, 1, 12 * 40 + 1)
        assert agree(found["threshold"]) == pytest.approx(max(map(agree, every)))
        assert 0 <= found["low"] <= found["threshold"] <= found["high"] <= 1
        if agree(0.6) == pytest.approx(max(map(agree, every))):
            assert found["threshold"] == 0.6


def test_the_best_threshold_stays_near_clips_that_are_all_fit_or_all_not():
    closeness = np.linspace(0.3, 0.8, 12)
    assert 0.28 < best_threshold(closeness, np.ones(12), np.ones(12), np.ones(12), 0.6)["threshold"] <= 0.3
    assert 0.8 < best_threshold(closeness, np.zeros(12), np.ones(12), np.ones(12), 0.6)["threshold"] <= 0.82


def listener(closeness, true, random):
    return random.uniform(size=len(closeness)) < 1 / (1 + np.exp(-(np.asarray(closeness) - true) / NOISE))


def make_run(folder, rows, **summary):
    write(rows, folder / "report" / "ranking.parquet")
    content = {"dataset": "demo", "profile_sha256": PROFILE, "threshold": THRESHOLD, "clips": {"input": len(rows)}}
    write_json(folder / "report" / "summary.json", content | summary)
    return folder


def make_sheet(path, answers, **changes):
    """A sheet of clip -> answer: yes, no, unsure, None, or a mapping."""
    clips = [
        {"id": clip, "fit": None, "better": None} | (answer if isinstance(answer, dict) else {"fit": answer})
        for clip, answer in answers.items()
    ]
    content = {"format": "speechmill-audit", "version": 1, "dataset": "demo", "profile_sha256": PROFILE}
    content |= {"threshold": THRESHOLD, "listener": path.stem, "clips": clips}
    path.write_text(json.dumps(content | changes))
    return path


def sampled(run, count):
    return [one["row"] for one in choose_audit([run / "report" / "ranking.parquet"], count)]


def heard(rows, true, random):
    """What a listener says of these clips: those that fail a gate are not fit."""
    said = listener([row["closeness"] for row in rows], true, random)
    return {
        row["id"]: "yes" if fit and row["criterion"] != "snr_db" else "no" for row, fit in zip(rows, said, strict=True)
    }


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", make_rows())


@pytest.mark.parametrize("true", [0.5, THRESHOLD, 0.7])
def test_the_advice_recovers_the_threshold_of_a_listener(true):
    random = np.random.default_rng(2)
    corpus = random.beta(4, 2, 50_000)
    within, moved = 0, 0
    for _ in range(25):
        drawn = np.sort(random.choice(corpus, 80))
        found = best_threshold(drawn, listener(drawn, true, random), np.ones(80), drawn >= THRESHOLD, THRESHOLD)
        within += found["low"] <= true <= found["high"]
        moved += not found["low"] <= THRESHOLD <= found["high"]
        assert abs(found["threshold"] - true) < 0.1
    assert within >= 23  # of 25, at 95 %
    assert moved <= 2 if true == THRESHOLD else moved >= 20


def test_an_audit_of_a_threshold_that_is_too_high_advises_the_lower_one(tmp_path, capsys):
    rows = make_rows()
    run = make_run(tmp_path / "a run", rows)
    sheet = make_sheet(tmp_path / "Ann.json", heard(sampled(run, 150), 0.45, np.random.default_rng(1)))
    assert main(["audit", str(run), str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    advice = found["advice"]
    assert advice["verdict"] == "move"
    assert advice["low"] <= 0.45 <= advice["high"] < THRESHOLD
    decided = [row for row in rows if row["state"] == "accepted" or row.get("criterion") == "closeness"]
    for side, threshold in (("today", THRESHOLD), ("then", advice["threshold"])):
        count = sum(row["closeness"] >= threshold for row in decided)
        assert advice[side]["clips"] == count
        assert advice[side]["share"] == pytest.approx(count / 3000)
        assert advice[side]["hours"] == pytest.approx(count * 3.6 / 3600)
    assert advice["then"]["agreement"] > advice["today"]["agreement"]
    assert main(["audit", str(run), str(sheet)]) == 0
    text = capsys.readouterr().out
    assert f"rank: {{threshold: {advice['threshold']}}}" in text
    assert f"speechmill rerank '{run}' --threshold {advice['threshold']}" in text
    assert "no reason to move" not in text


def test_an_audit_that_agrees_gives_no_reason_to_move(run, tmp_path):
    sheet = make_sheet(tmp_path / "Ann.json", heard(sampled(run, 150), THRESHOLD, np.random.default_rng(1)))
    found = audit(run, [sheet])
    assert found["advice"]["verdict"] == "keep"
    assert "command" not in found["advice"]
    assert "gives no reason to change 0.6" in audit_text(found)


def test_weighted_shares_are_those_of_the_corpus_and_not_of_the_sample(tmp_path):
    within, errors, plain_errors = Counter(), [], []
    for seed in range(20):
        rows, random = make_rows(2000, seed), np.random.default_rng(seed)
        run = make_run(tmp_path / str(seed), rows)
        judged = [
            r
            for r in rows
            if r["closeness"] and (r["state"] == "accepted" or r.get("criterion") in ("closeness", "snr_db"))
        ]
        said = heard([{"criterion": None} | row for row in judged], 0.55, random)
        drawn = sampled(run, 60)
        found = audit(run, [make_sheet(tmp_path / "a.json", {row["id"]: said[row["id"]] for row in drawn})])
        fit = {row["id"]: said[row["id"]] == "yes" for row in judged}
        agree = {row["id"]: fit[row["id"]] == (row["state"] == "accepted") for row in judged}
        accepted = [row["id"] for row in judged if row["state"] == "accepted"]
        truth = {
            "agreement": np.mean([*agree.values()]),
            "accepted": np.mean([fit[clip] for clip in accepted]),
            "rejected": np.mean([fit[row["id"]] for row in judged if row["state"] != "accepted"]),
        }
        shares = {"agreement": found["agreement"]} | {name: found[name]["fit"] for name in ("accepted", "rejected")}
        within.update(name for name, one in shares.items() if one["low"] <= truth[name] <= one["high"])
        errors.append(found["agreement"]["share"] - truth["agreement"])
        plain_errors.append(np.mean([agree[row["id"]] for row in drawn]) - truth["agreement"])
        wrong = found["accepted"]["hours_wrong"]
        bounds = [wrong[key] for key in ("share", "low", "high")]
        fit_hours = [found["accepted"]["fit"][key] * found["accepted"]["hours"] for key in ("share", "high", "low")]
        assert [a + b for a, b in zip(bounds, fit_hours, strict=True)] == pytest.approx(
            [found["accepted"]["hours"]] * 3
        )
        assert found["accepted"]["hours"] == pytest.approx(len(accepted) * 3.6 / 3600)
    assert all(within[name] >= 18 for name in ("agreement", "accepted", "rejected"))
    assert abs(np.mean(errors)) < 0.02 < abs(np.mean(plain_errors))


def test_the_majority_of_listeners_counts(run, tmp_path):
    first, second, third, fourth = (row["id"] for row in sampled(run, 24)[:4])
    answers = [
        {first: "yes", second: "yes", third: "unsure", fourth: None},
        {first: "yes", second: "no", third: "no"},
        {first: "no", second: "unsure", third: "no"},
    ]
    found = audit(run, [make_sheet(tmp_path / f"{n}.json", given) for n, given in enumerate(answers)])
    fit = {clip["id"]: clip["fit"] for clip in found["clips"]}
    assert fit == {first: True, second: None, third: False, fourth: None}
    assert found["agreement"]["answers"] == 2
    pairs = {tuple(pair["listeners"]): pair["agreement"]["answers"] for pair in found["between_listeners"]["pairs"]}
    assert pairs == {("0", "1"): 2, ("0", "2"): 1, ("1", "2"): 2}
    assert found["between_listeners"]["fleiss_clips"] == 1


def test_kappa_of_two_sheets_is_that_of_scikit_learn(run, tmp_path):
    rows, random = sampled(run, 60), np.random.default_rng(4)
    said = [heard(rows, true, random) for true in (0.5, 0.6)]
    found = audit(run, [make_sheet(tmp_path / f"{n}.json", one) for n, one in enumerate(said)])
    (pair,) = found["between_listeners"]["pairs"]
    assert pair["kappa"] == pytest.approx(cohen_kappa_score(*([one[row["id"]] for row in rows] for one in said)))
    assert "fleiss_kappa" not in found["between_listeners"]


def test_only_clips_with_two_recordings_are_compared(tmp_path):
    rows = [row | {"variant": "enhanced" if n % 4 else "original"} for n, row in enumerate(make_rows())]
    run = make_run(tmp_path / "run", rows)
    better = [*["published"] * 5, "other", "same", None]
    drawn = sampled(run, 80)
    answers = {row["id"]: {"better": better[n % 8]} for n, row in enumerate(drawn)}
    found = audit(run, [make_sheet(tmp_path / "a.json", answers)])["comparison"]
    counts = Counter(better[n % 8] for n, row in enumerate(drawn) if row["variant"] == "enhanced")
    assert {name: found[name] for name in ("published", "other", "same")} == {n: counts[n] for n in counts if n}
    decided = binomtest(counts["published"], counts["published"] + counts["other"])
    interval = decided.proportion_ci(method="wilson")
    assert found["p_value"] == pytest.approx(decided.pvalue)
    assert (found["prefer_published"]["low"], found["prefer_published"]["high"]) == pytest.approx(tuple(interval))


def test_few_answers_give_no_advice_but_say_how_many_more(run, tmp_path):
    drawn = sampled(run, 24)
    nothing = audit(run, [make_sheet(tmp_path / "a.json", {row["id"]: None for row in drawn})])
    assert (nothing["advice"]["verdict"], nothing["agreement"]["share"]) == ("few", None)
    assert nothing["advice"]["more_answers"] == 381  # p = 0.5: 1.96^2 * (0.25 / 0.05^2 - 1)
    assert "381 more judged clips" in audit_text(nothing)
    few = audit(run, [make_sheet(tmp_path / "b.json", {row["id"]: "yes" for row in drawn[:4]})])
    assert few["advice"]["verdict"] == "few"
    assert few["agreement"]["covered"] < 0.6
    assert "Strata without an answer are left out" in audit_text(few)


def test_a_sheet_of_another_profile_is_judged_by_the_ranking_of_today(tmp_path):
    run = make_run(tmp_path / "run", make_rows())
    drawn = sampled(run, 40)
    sheet = make_sheet(tmp_path / "a.json", {row["id"]: "yes" for row in drawn}, profile_sha256="cd" * 32)
    gone = {drawn[0]["id"], drawn[9]["id"]}
    moved = [row | ({"state": "rejected", "criterion": "removed"} if row["id"] in gone else {}) for row in make_rows()]
    found = audit(make_run(run, moved), [sheet])
    assert len(found["clips"]) == 38
    assert [("another profile" in one, "left out 2 clips" in one) for one in found["remarks"]] == [
        (True, False),
        (False, True),
    ]
    assert audit(run, [make_sheet(tmp_path / "b.json", {drawn[1]["id"]: "yes"})])["remarks"] == []


def test_a_sheet_that_was_saved_twice_is_noticed(run, tmp_path):
    drawn = {row["id"]: "yes" for row in sampled(run, 5)}
    sheets = [make_sheet(tmp_path / f"audit{n}.json", drawn, listener="  Ann ") for n in range(2)]
    with pytest.raises(SpeechmillError, match=r"Ann answered clip .* in another sheet too"):
        audit(run, sheets)
    unnamed = [make_sheet(tmp_path / f"audit{n}.json", drawn, listener=None) for n in range(2)]
    assert "one sheet saved twice?" in audit(run, unnamed)["remarks"][0]
    parts = [make_sheet(tmp_path / f"{n}.json", {clip: "yes"}, listener="Ann") for n, clip in enumerate(drawn)]
    assert audit(run, parts)["listeners"] == {"Ann": {"yes": 5}}


def test_what_listeners_write_stays_one_line_of_text(run, tmp_path):
    evil = "\x1b]0;x\x07[red]x[/red]\n\u202ereversed"
    answers = {row["id"]: {"fit": "no", "note": evil} for row in sampled(run, 24)}
    text = audit_text(audit(run, [make_sheet(tmp_path / "a.json", answers, listener=evil)]))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert "[red]x[/red]" in text
    assert max(len(line) for line in text.splitlines() if line.startswith("  ")) <= 110


CLIP = {"id": "0" * 24, "fit": "yes", "better": None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "it is not valid JSON"),
        (b"\xff\xfe", "it is not valid JSON"),
        (b"[" * 50_000, "it is not valid JSON"),
        (b'{"threshold": NaN}', "it is not valid JSON"),
        (b" " * 1_000_001, "more than 1,000,000 bytes"),
        (b"[]", "is not of type 'object'"),
        ({"format": "other"}, "in format"),
        ({"version": 2}, "in version"),
        ({"threshold": True}, "in threshold"),
        ({"more": 1}, "'more' was unexpected"),
        ({"clips": [CLIP | {"fit": "maybe"}]}, "in clips 0 fit"),
        ({"clips": [CLIP | {"id": "../x"}]}, "in clips 0 id"),
        ({"clips": [CLIP | {"closeness": 1}]}, "'closeness' was unexpected"),
        ({"clips": [CLIP, CLIP]}, f"clip {'0' * 24} occurs twice"),
        ({"clips": [CLIP | {"id": f"{n:024x}"} for n in range(201)]}, "in clips"),
        ({"clips": [CLIP]}, f"has no clip {'0' * 24}"),
        ({"dataset": "other\x1b[1m"}, "is a sheet of other [1m, the run is demo"),
    ],
)
def test_what_is_no_sheet_of_this_run_is_refused_in_one_line(run, tmp_path, capsys, content, says):
    path = make_sheet(tmp_path / "a.json", {}, **(content if isinstance(content, dict) else {}))
    if isinstance(content, bytes):
        path.write_bytes(content)
    assert main(["audit", str(run), str(path)]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert str(path) in told
    assert told.count("\n") == 1
    assert len(told) < 800


def test_a_run_that_is_not_finished_or_damaged_is_told(run, tmp_path):
    sheet = make_sheet(tmp_path / "a.json", {})
    with pytest.raises(SpeechmillError, match="no finished run here"):
        audit(tmp_path, [sheet])
    with pytest.raises(SpeechmillError, match="cannot be read: No such file"):
        audit(run, [tmp_path / "none.json"])
    table = run / "report" / "ranking.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(SpeechmillError, match=r"ranking\.parquet cannot be read"):
        audit(run, [sheet])
    (run / "report" / "summary.json").write_text('{"dataset": "demo"}')
    with pytest.raises(SpeechmillError, match="is damaged"):
        audit(run, [sheet])


def test_the_same_sheets_give_the_same_audit(run, tmp_path):
    sheet = make_sheet(tmp_path / "a.json", heard(sampled(run, 60), 0.5, np.random.default_rng(8)))
    digests = {hashlib.sha256(json.dumps(audit(run, [sheet])).encode()).hexdigest() for _ in range(2)}
    assert len(digests) == 1
