"""The report: numbers against direct computation, the choice of examples, and a page that is closed in itself."""

import base64
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from speechmill.audio.encode import decode_flac, encode_flac
from speechmill.errors import LedgerError, SpeechmillError
from speechmill.files import read_json
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, _hash
from speechmill.report import plots, summary
from speechmill.report.examples import choose, load_examples
from speechmill.report.page import make_report, write_report
from speechmill.report.plots import spectrogram_db, spectrogram_png
from speechmill.report.summary import Distribution, funnel, merge_ranking, overview, summarize
from speechmill.shards import ENHANCED, RANKING, write_table
from speechmill.text import plain

RATE = 16_000
EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&\x00"
METRICS = ["snr_db", "input_snr_db", "input_clip_ratio", "denoise_removed_db", "a_new_metric"]


def make_profile(threshold: float = 0.5) -> FrozenProfile:
    body = {
        "name": "asr",
        "version": 1,
        "description": EVIL,
        "threshold": threshold,
        "min_coverage": 0.8,
        "gates": (Gate("input_snr_db", 0.0, None, EVIL), Gate("duration", None, 30.0, "too long")),
        "criteria": (
            Criterion("input_snr_db", "noise", -5.0, 35.0, "benefit", 0.7),
            Criterion("input_clip_ratio", "level", 1e-5, 1e-2, "cost", 0.2, None, "log10"),
            Criterion("snr_db", "noise", 0.0, 40.0, "target", 0.1, (10.0, 30.0)),
        ),
        "dropped_criteria": ("distillmos",),
        "dropped_gates": (),
    }
    return FrozenProfile(**body, sha256=_hash(FrozenProfile(**body, sha256="")))


ADVICE = {
    "rows": 40,
    "criteria": {"input_snr_db": {"profile": 0.7, "entropy": 0.4, "critic": None, "at_low": 0.0, "at_high": 0.31}},
    "correlation": {"snr_db": {"input_snr_db": 0.93}, "input_snr_db": {"snr_db": 0.93, "input_clip_ratio": None}},
    "warnings": [f"input_snr_db: 31% {EVIL}"],
}
SOURCE = {
    "kind": "folder",
    "path": EVIL,
    "revision": "sha256:00ff",
    "license": "CC-BY-SA-3.0",
    "attribution": EVIL,
    "bytes": 1234,
    "files": [{"path": EVIL, "size": 1234, "sha256": "0" * 64}],
}
CONFIG = {"dataset": "demo", "report": {"examples": 2}, "source": {"path": EVIL}}
VERSIONS = {"numpy": "2.0", "dnsmos_p808": "ab" * 32}
SKIPPED = [{"name": "squim", "reason": EVIL}]
TIMING = {"enhance": {"jobs": 2, "seconds": 12.5}}


class Corpus:
    """Ranking tables and enhanced shards of two batches, drawn from a seed, with every state in them."""

    def __init__(self, directory, clips=60, threshold=0.5, seconds=0.4, states=None, seed=1):
        random = np.random.default_rng(seed)
        self.directory, self.rows, self.audio = directory, [], {}
        self.ranking, self.enhanced = [], []
        self.profile = make_profile(threshold)
        cut = min(clips, max(1, clips // 3))
        for batch, members in (("b0", range(cut)), ("b1", range(cut, clips))):
            ranking, enhanced = [], []
            for n in members:
                row, shard = self.clip(n, batch, states[n % len(states)] if states else n % 8, random, seconds)
                ranking.append(row)
                if shard:
                    enhanced.append(shard)
            schema = pa.schema([*RANKING, *(pa.field(m, pa.float64()) for m in METRICS)])
            self.rows += ranking
            self.ranking.append(directory / "ranking" / f"{batch}.parquet")
            self.enhanced.append(directory / "enhanced" / f"{batch}.parquet")
            write_table(pa.Table.from_pylist(ranking, schema=schema), self.ranking[-1])
            write_table(pa.Table.from_pylist(enhanced, schema=ENHANCED), self.enhanced[-1], row_group_size=7)

    def clip(self, n, batch, kind, random, seconds):
        clip_id = hashlib.sha256(str(n).encode()).hexdigest()[:24]
        row = dict.fromkeys([*RANKING.names, *METRICS])
        row |= {
            "id": clip_id,
            "batch": batch,
            "source_file": f"ก/{EVIL}{n}.wav",
            "input_duration": seconds + 0.25,
        }
        if kind == 0:
            return row | {"state": "errored", "error_class": ["unreadable", EVIL][n % 2], "message": EVIL}, None
        if kind == 1:
            reason = {"criterion": "speech_s", "value": 0.0, "threshold": 0.25, "message": f"no speech {n}"}
            return row | {"state": "rejected", **reason}, None
        # Few distinct values, so that there are ties.
        closeness = round(float(random.uniform()), 2)
        measured = {m: float(random.normal(10, 5)) for m in METRICS} | {"input_clip_ratio": float(n % 3) / 1000}
        variant = "enhanced" if n % 2 else "original"
        row |= {
            "text": ["สวัสดีครับ", EVIL, None][n % 3],
            "language": ["th", '"><b>', None][n % 3],
            "speaker_id": EVIL,
            "duration": seconds,
            "variant": variant,
            "closeness": closeness,
            "coverage": 1.0,
            "failed_gates": [],
            **measured,
        }
        if n % 5 == 0:
            row["a_new_metric"] = None
        if kind == 2:
            row |= {"state": "duplicate", "duplicate_of": "0" * 24}
        elif kind == 3:
            row |= {"state": "rejected", "criterion": "input_snr_db", "value": -1.0, "threshold": 0.0}
            row |= {"failed_gates": ["input_snr_db", "duration"], "message": EVIL}
        elif closeness < self.profile.threshold:
            row |= {"state": "rejected", "criterion": "closeness", "value": closeness, "message": "too far"}
            row["threshold"] = self.profile.threshold
        else:
            row["state"] = "accepted"
        samples = 0.3 * np.sin(np.arange(int(seconds * RATE)) * (0.05 + 0.01 * (n % 9))).astype(np.float32)
        audio = {"bytes": encode_flac(samples, RATE), "path": f"{clip_id}.flac"}
        noise = random.normal(0, 0.01, len(samples)).astype(np.float32)
        original = {"bytes": encode_flac(samples + noise, RATE), "path": "x.flac"} if variant == "enhanced" else None
        self.audio[clip_id] = (audio["bytes"], original and original["bytes"])
        return row, {"id": clip_id, "audio": audio, "original": original, "duration": seconds, "variant": variant}

    def report(self, examples=2):
        out = self.directory / "report"
        self.page, self.summary, self.table = out / "report.html", out / "summary.json", out / "ranking.parquet"
        return make_report(
            self.ranking,
            self.enhanced,
            self.profile,
            ADVICE,
            SOURCE,
            CONFIG | {"report": {"examples": examples}},
            VERSIONS,
            SKIPPED,
            TIMING,
            self.page,
            self.summary,
            self.table,
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = Corpus(tmp_path_factory.mktemp("report"))
    made.report()
    return made


def ranked(corpus):
    return [row for row in corpus.rows if row["closeness"] is not None and row["state"] != "duplicate"]


# Numbers


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e12, 1e12) | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]), max_size=60),
    st.floats(0, 1),
)
def test_quantiles_of_few_values_are_exact(values, share):
    found = Distribution()
    found.add(np.array(values[: len(values) // 2]))
    found.add(np.array(values[len(values) // 2 :]))
    finite = np.array([v for v in values if np.isfinite(v)])
    assert found.count == len(finite)
    if len(finite):
        assert found.quantile(share) == pytest.approx(np.quantile(finite, share), rel=1e-9, abs=1e-3)
    else:
        assert found.quantile(share) is None


def test_many_values_take_bounded_memory_within_the_documented_error(monkeypatch):
    monkeypatch.setattr(summary, "MAX_DISTINCT", 2_000)
    monkeypatch.setattr(summary, "PENDING", 5_000)
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(12, 8, 60_000), -random.lognormal(-9, 2, 20_000), np.zeros(5_000)])
    random.shuffle(values)
    found, again = Distribution(), Distribution()
    for part in np.array_split(values, 40):
        found.add(part)
    for part in np.array_split(np.sort(values), 7):
        again.add(part)
    steps, counts = found.steps()
    assert len(steps) <= 2_000
    assert counts.sum() == len(values)
    assert 4 <= found.bits < 52
    # The same whatever the order and grouping.
    assert found.bits == again.bits
    assert np.array_equal(steps, again.steps()[0])
    assert np.array_equal(counts, again.steps()[1])
    for share in (0, 0.05, 0.31, 0.5, 0.95, 1):
        exact = np.quantile(values, share)
        assert abs(found.quantile(share) - exact) <= abs(exact) * 2.0**-found.bits + 1e-9


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), max_size=200),
    st.integers(3, 40),
    st.integers(1, 60),
)
def test_values_are_rounded_as_little_as_needed(values, most, pending):
    with mock.patch.multiple(summary, MAX_DISTINCT=most, PENDING=pending):
        found = Distribution()
        for value in values:
            found.add(np.array([value]))
        steps, counts = found.steps()

    def rounded(value, bits):  # toward zero, by the definition of a double
        mantissa, exponent = math.frexp(value)
        return math.ldexp(math.trunc(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)

    # Fewer than 0 bits would round away from powers of two.
    bits = next((b for b in range(52, -1, -1) if len({rounded(v, b) for v in values}) <= most), -1)
    assume(bits >= 0)
    assert found.bits == bits
    assert dict(zip(steps.tolist(), counts.tolist(), strict=True)) == Counter(rounded(v, bits) for v in values)
    assert steps.tolist() == sorted(steps.tolist())


def test_the_summary_agrees_with_direct_computation(corpus):
    result = read_json(corpus.summary)
    states = Counter(row["state"] for row in corpus.rows)
    assert result["clips"] == {"input": 60, **states}
    assert set(states) == {"accepted", "rejected", "errored", "duplicate"}
    for state, key, column in (("rejected", "rejected_by", "criterion"), ("errored", "errored_by", "error_class")):
        assert result[key] == Counter(row[column] for row in corpus.rows if row["state"] == state)
    assert result["hours"]["input"] == pytest.approx(60 * 0.65 / 3600, abs=1e-6)
    assert result["hours"]["accepted"] == pytest.approx(states["accepted"] * 0.4 / 3600, abs=1e-6)
    rows = ranked(corpus)
    assert result["variants"] == Counter(row["variant"] for row in rows)
    assert sorted(result["metrics"]) == sorted(METRICS)
    for name, quantiles in result["metrics"].items():
        values = [row[name] for row in rows if row[name] is not None]
        expected = np.quantile(values, [0.05, 0.5, 0.95])
        assert [quantiles[q] for q in ("p5", "p50", "p95")] == pytest.approx(list(expected), rel=1e-5)
    assert result["dataset"] == "demo"
    assert result["source_revision"] == SOURCE["revision"]
    assert result["profile_sha256"] == corpus.profile.sha256
    assert (result["threshold"], result["batches"]) == (0.5, 2)
    assert (result["versions"], result["timing"], result["skipped_metrics"]) == (VERSIONS, TIMING, SKIPPED)


def test_the_funnel_loses_every_clip_once_and_ends_with_the_accepted(corpus):
    found = overview(corpus.ranking)
    steps = funnel(found)
    states = Counter(row["state"] for row in corpus.rows)
    assert steps[-1].left == states["accepted"]
    assert sum(step.lost for step in steps) == 60 - states["accepted"]
    lost = {step.title: step.lost for step in steps}
    assert lost["Unfit before scoring"] == sum(row["criterion"] == "speech_s" for row in corpus.rows)
    assert lost["Fails a gate"] == sum(row["criterion"] == "input_snr_db" for row in corpus.rows)
    assert lost["Closeness below the threshold"] == sum(row["criterion"] == "closeness" for row in corpus.rows)
    assert found.failed_gates["duration"] == lost["Fails a gate"]
    assert found.closeness["ranked"].count == sum(found.closeness[p].count for p in ("accepted", "closeness", "gate"))


def test_a_clip_without_a_final_state_stops_the_report(corpus, tmp_path):
    table = pq.read_table(corpus.ranking[1])
    states = table["state"].to_pylist()
    states[3] = "passed"
    position = table.column_names.index("state")
    broken = tmp_path / "b1.parquet"
    write_table(table.set_column(position, RANKING.field("state"), pa.array(states)), broken)
    with pytest.raises(LedgerError, match="batch b1 does not balance"):
        overview([corpus.ranking[0], broken])


# The merged table


def test_the_merged_table_is_the_batches_one_after_the_other(corpus, tmp_path):
    table = pq.read_table(corpus.ranking[1])
    lacking = tmp_path / "b1.parquet"  # one metric is not there, one is null without a type
    empty = pa.nulls(table.num_rows, pa.null())
    table = table.drop(["a_new_metric"]).set_column(table.column_names.index("snr_db"), "snr_db", empty)
    pq.write_table(table, lacking)
    merge_ranking([corpus.ranking[0], lacking], tmp_path / "merged.parquet")
    merged = pq.read_table(tmp_path / "merged.parquet")
    assert merged.schema.names == [*RANKING.names, *sorted(METRICS)]
    gone = {"a_new_metric": None, "snr_db": None}
    cut = pq.read_metadata(corpus.ranking[0]).num_rows
    expected = [*corpus.rows[:cut], *(row | gone for row in corpus.rows[cut:])]
    assert merged.to_pylist() == [{name: row[name] for name in merged.schema.names} for row in expected]
    assert pq.read_table(corpus.table).to_pylist() == [
        {name: row[name] for name in merged.schema.names} for row in corpus.rows
    ]


def test_small_batches_share_a_row_group(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "ROW_GROUP", 25)
    merge_ranking([*corpus.ranking, *corpus.ranking], tmp_path / "merged.parquet")
    groups = pq.ParquetFile(tmp_path / "merged.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sum(sizes) == 120
    assert len(sizes) < 8
    assert max(sizes) <= 25
    assert pq.read_table(tmp_path / "merged.parquet")["id"].to_pylist() == [row["id"] for row in corpus.rows] * 2


# Examples


@pytest.mark.parametrize("count", [0, 1, 3, 4, 50])
def test_examples_are_those_that_sorting_finds(corpus, count):
    rows = ranked(corpus)

    def first(candidates, key, number=count):
        return [row["id"] for row in sorted(candidates, key=lambda row: (key(row), row["id"]))[:number]]

    chosen = {name: [row["id"] for row in group] for name, group in choose(corpus.ranking, count).items()}
    assert chosen["best"] == first(rows, lambda row: -row["closeness"])
    assert chosen["worst"] == first(rows, lambda row: row["closeness"])
    enhanced = [row for row in rows if row["variant"] == "enhanced"]
    assert chosen["denoised"] == first(enhanced, lambda row: -row["denoise_removed_db"])
    accepted = [row for row in rows if row["state"] == "accepted"]
    close = [row for row in rows if row["criterion"] == "closeness"]
    above = max((count + 1) // 2, count - len(close))
    expected = first(accepted, lambda row: row["closeness"], above)
    expected += first(close, lambda row: -row["closeness"], count - len(expected))
    assert set(chosen["borderline"]) == set(expected)
    values = {row["id"]: row["closeness"] for row in rows}
    assert [values[i] for i in chosen["borderline"]] == sorted((values[i] for i in expected), reverse=True)
    assert choose(corpus.ranking[::-1], count) == choose(corpus.ranking, count)


def test_players_hold_the_bytes_of_the_shards(corpus):
    groups = load_examples(choose(corpus.ranking, 2), corpus.enhanced)
    examples = [example for group in groups.values() for example in group]
    assert {example.original is None for example in examples} == {True, False}
    for example in examples:
        published, original = corpus.audio[example.row["id"]]
        assert payload(example.published.audio) == published
        assert (example.original and payload(example.original.audio)) == original
        assert Image.open(io.BytesIO(payload(example.published.spectrogram))).size == (600, 240)


def test_a_long_clip_is_embedded_in_part(tmp_path):
    corpus = Corpus(tmp_path, clips=3, threshold=0, seconds=20.0, states=[5])
    found = load_examples(choose(corpus.ranking, 1), corpus.enhanced)["best"][0]
    samples, rate = decode_flac(payload(found.published.audio))
    assert len(samples) == 15 * rate
    assert found.published.seconds == 15.0


def test_a_shard_of_another_run_is_named(corpus):
    with pytest.raises(SpeechmillError, match=r"enhanced/b\d\.parquet"):
        load_examples(choose(corpus.ranking, 1), corpus.enhanced[:1])


@pytest.mark.parametrize("damage", ["clip", "file"])
def test_a_damaged_shard_is_one_message(tmp_path, damage):
    corpus = Corpus(tmp_path, 20)
    chosen = choose(corpus.ranking, 1)
    best = chosen["best"][0]
    shard = tmp_path / "enhanced" / f"{best['batch']}.parquet"
    if damage == "clip":
        table = pq.read_table(shard)
        rows = table.to_pylist()
        next(row for row in rows if row["id"] == best["id"])["audio"]["bytes"] = b"not FLAC"
        write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    else:
        shard.write_bytes(shard.read_bytes()[:-9])
    names = rf"{re.escape(str(shard))} is damaged: {'clip ' + best['id'] if damage == 'clip' else ''}"
    with pytest.raises(SpeechmillError, match=names + ".*Delete that file and run again"):
        load_examples(chosen, corpus.enhanced)


def payload(uri):
    return base64.b64decode(uri.split(",", 1)[1])


# Pictures


def test_a_spectrogram_shows_a_tone_where_it_is():
    seconds = 2.0
    tone = np.sin(2 * np.pi * 3000 * np.arange(int(seconds * RATE)) / RATE)
    found = spectrogram_db(tone, RATE)
    frequencies = np.linspace(0, found.nyquist, len(found.db))
    middle = found.db[:, found.db.shape[1] // 2]
    assert frequencies[np.argmax(middle)] == pytest.approx(3000, abs=40)
    assert np.max(middle) == pytest.approx(0, abs=0.1)  # dB re a full-scale sine
    assert (found.nyquist, found.seconds) == (8000, seconds)
    assert found.db.shape[1] <= plots.MAX_FRAMES
    short = spectrogram_db(tone[:5], RATE)
    assert spectrogram_png(short, 0.0) == spectrogram_png(short, 0.0)


def test_charts_count_every_value_and_draw_gates_and_bounds(corpus):
    found = overview(corpus.ranking)
    charts = {chart.title: chart for chart in plots.metric_charts(found, corpus.profile, {})}
    assert list(charts) == ["snr_db", "input_clip_ratio", "a_new_metric", "denoise_removed_db"]
    notes = " ".join(charts["snr_db"].notes)
    assert "Gate on input_snr_db ≥ 0" in notes
    assert "weighs 70 %" in notes
    assert "Input: median" in notes
    assert "Published: median" in notes
    svg = charts["snr_db"].svg.decode()
    assert plots.VERMILION.lower() in svg.lower()
    assert plots.SKY.lower() in svg.lower()
    edges = np.linspace(9, 11, 5)  # all values beyond the ends are in the outermost bins
    assert plots.binned(found.metrics["snr_db"], edges).sum() == found.metrics["snr_db"].count


# The page


class Page(HTMLParser):
    """What a browser would load or run, and the text it would show."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.inside):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(corpus):
    return Page(corpus.page.read_text("utf-8"))


def test_the_page_loads_nothing(corpus, page):
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "action", "data", "poster", "background", "formaction", "ping"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), attributes[name][:80]
    html = corpus.page.read_text("utf-8")
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:", policy)
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(page):
    assert len(page.all("script")) == 1
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert not [image for image in page.all("img") if not image["src"].startswith("data:image/")]
    shown = "".join(page.text)
    assert shown.count(plain(EVIL)) > 10  # reasons, texts, paths, profile, attribution, skipped groups, ...
    assert "สวัสดีครับ" in shown
    assert "\x00" not in shown
    assert {a["lang"] for _, a in page.tags if "lang" in a} == {"en", "th"}


def test_the_page_can_be_used_without_eyes_or_mouse(page):
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("audio")
    assert all("controls" in audio and audio["aria-label"] for audio in page.all("audio"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a")} | {s["aria-labelledby"] for s in page.all("section")}
    assert targets <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_page_says_what_the_summary_says(corpus, page):
    shown = re.sub(r"\s+", " ", "".join(page.text))
    result = read_json(corpus.summary)
    assert f"{result['clips']['accepted']} of 60 clips were accepted" in shown
    assert corpus.profile.sha256 in shown
    assert "31 % saturated" in shown
    assert "distillmos" in shown
    for name in VERSIONS:
        assert name in shown


def test_the_same_input_gives_the_same_bytes(corpus):
    before = [path.read_bytes() for path in (corpus.page, corpus.summary, corpus.table)]
    corpus.report()
    assert [path.read_bytes() for path in (corpus.page, corpus.summary, corpus.table)] == before


@pytest.mark.parametrize(
    ("clips", "threshold", "states", "says"),
    [
        (12, 1.1, None, "No clip was accepted."),
        (6, 0.5, [0, 1], "None of them could be ranked"),
        (1, 0.0, [5], "1 of 1 clips were accepted"),
        (1, 0.5, [0], "None of them could be ranked"),
        (0, 0.5, None, "0 of 0 clips were accepted"),
    ],
)
def test_the_report_of_little_or_nothing(tmp_path, clips, threshold, states, says):
    corpus = Corpus(tmp_path, clips, threshold, states=states)
    result = corpus.report(examples=1)
    assert says in re.sub(r"\s+", " ", "".join(Page(corpus.page.read_text("utf-8")).text))
    assert pq.read_metadata(corpus.table).num_rows == clips
    assert json.loads(corpus.summary.read_text()) == result
    if not ranked(corpus):
        assert result["metrics"]["snr_db"] == {"p5": None, "p50": None, "p95": None}


def test_a_source_and_advice_with_little_in_them(corpus):
    summarize(overview(corpus.ranking), corpus.profile, {}, CONFIG, {}, [], {})
    out = corpus.directory / "bare.html"
    bare = summarize(overview([]), corpus.profile, {}, CONFIG, {}, [], {})
    write_report(out, bare, overview([]), {}, corpus.profile, {}, {}, CONFIG)
    assert "All metric groups that were asked for were measured." in out.read_text("utf-8")
