"""The clips to listen to: every group against sorting, and audio that is that of the shards."""

import base64
import html
import io
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from speechmill.audio.encode import decode_flac
from speechmill.errors import SpeechmillError
from speechmill.report import examples, parts
from speechmill.report.examples import choose, headings, load_examples, seconds_each
from speechmill.report.parts import BottomK
from speechmill.report.summary import Overview, overview
from speechmill.tables.parquet_io import write_table

from .report_corpus import EVIL, RATE, Corpus, ranked


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("examples"))


def changed(corpus, change):
    """Write the ranking tables again with rows that `change` turns into others; `corpus.rows` follow."""
    corpus.rows = [change(row) for row in corpus.rows]
    for path in corpus.ranking:
        schema = pq.read_schema(path)
        rows = [row for row in corpus.rows if row["batch"] == path.stem]
        write_table(pa.Table.from_pylist(rows, schema=schema), path)


def ids(groups):
    return {name: [row["id"] for row in rows] for name, rows in groups.items()}


def first(rows, key, count):
    return [row["id"] for row in sorted(rows, key=lambda row: (key(row), row["id"]))[:count]]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 50])
def test_examples_are_those_that_sorting_finds(corpus, count, monkeypatch):
    monkeypatch.setattr(parts, "READ_ROWS", 7)
    rows = ranked(corpus)
    chosen = ids(choose(corpus.ranking, count, count))
    assert chosen["best"] == first(rows, lambda row: -row["closeness"], count)
    assert chosen["worst"] == first(rows, lambda row: row["closeness"], count)
    enhanced = [row for row in rows if row["variant"] == "enhanced"]
    assert chosen["denoised"] == first(enhanced, lambda row: -row["denoise_removed_db"], count)
    assert chosen["random"] == first(rows, lambda row: row["id"][::-1], count)
    accepted = [row for row in rows if row["state"] == "accepted"]
    close = [row for row in rows if row["criterion"] == "closeness"]
    above = max((count + 1) // 2, count - len(close))
    expected = first(accepted, lambda row: row["closeness"], above)
    expected += first(close, lambda row: -row["closeness"], count - len(expected))
    assert set(chosen["borderline"]) == set(expected)
    values = {row["id"]: row["closeness"] for row in rows}
    assert [values[i] for i in chosen["borderline"]] == sorted((values[i] for i in expected), reverse=True)
    reasons = Counter(row["criterion"] for row in rows if row["state"] == "rejected")
    assert len(reasons) == 2
    for number, (reason, _) in enumerate(reasons.most_common() if count else [], start=1):
        those = [row for row in rows if row["criterion"] == reason]
        assert chosen.pop(f"rejected-{number}") == first(those, lambda row: row["id"][::-1], count)
    assert list(chosen) == list(examples.GROUPS)
    assert choose(corpus.ranking[::-1], count, count) == choose(corpus.ranking, count, count)


def test_the_most_frequent_reasons_have_a_group_each(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "READ_ROWS", 11)
    corpus = Corpus(tmp_path, 200, states=[3])
    changed(corpus, lambda row: row | {"criterion": f"gate_{int(row['id'], 16) % 12:02d}"})
    found = choose(corpus.ranking, 1, 3)
    counts = Counter(row["criterion"] for row in corpus.rows)
    expected = sorted(counts, key=lambda reason: (-counts[reason], reason))[: examples.REASONS]
    groups = [rows for name, rows in found.items() if name not in examples.GROUPS]
    assert [[row["criterion"] for row in rows] for rows in groups] == [[reason] * 3 for reason in expected]
    assert list(found)[len(examples.GROUPS) :] == [f"rejected-{n}" for n in range(1, examples.REASONS + 1)]
    assert choose(corpus.ranking[::-1], 1, 3) == found


def test_what_is_held_does_not_grow_with_the_clips(corpus, monkeypatch):
    monkeypatch.setattr(parts, "READ_ROWS", 5)
    held, real = [], BottomK.offer

    def offer(self, *arguments, **same):
        real(self, *arguments, **same)
        held.append(0 if self.rows is None else len(self.rows))

    monkeypatch.setattr(BottomK, "offer", offer)
    choose(corpus.ranking, 3, 2)
    assert max(held) == 3


def test_a_clip_that_is_to_be_removed_is_never_heard(tmp_path):
    corpus = Corpus(tmp_path)
    gone = {rows[0] for rows in ids(choose(corpus.ranking, 1, 1)).values()}
    assert len(gone) > 4
    removed = {"state": "rejected", "criterion": "removed"}
    changed(corpus, lambda row: row | removed if row["id"] in gone else row)
    chosen = ids(choose(corpus.ranking, 60, 20))
    assert not gone & {clip for group in chosen.values() for clip in group}
    assert len(chosen["random"]) == len(ranked(corpus)) - len(gone)


def test_a_held_out_clip_is_no_example_of_a_reason(tmp_path):
    corpus = Corpus(tmp_path)
    held_out = {"state": "rejected", "criterion": "held_out"}
    changed(corpus, lambda row: row | held_out if row["criterion"] == "closeness" else row)
    groups = choose(corpus.ranking, 60, 5)
    assert {row["criterion"] for row in groups["random"]} == {None, "input_snr_db", "held_out"}
    assert {row["criterion"] for row in groups["rejected-1"]} == {"input_snr_db"}
    assert "rejected-2" not in groups


# What the groups are called


def test_a_group_says_how_many_clips_its_reason_rejected_and_what_cannot_be_heard(corpus):
    groups = choose(corpus.ranking, 1, 2)
    texts = headings(groups, overview(corpus.ranking))
    assert list(texts) == list(groups)
    assert texts["best"] == examples.GROUPS["best"]
    counts = Counter(row["criterion"] for row in ranked(corpus) if row["state"] == "rejected")
    (first_reason, first_count), (second_reason, second_count) = counts.most_common()
    assert {first_reason, second_reason} == {"closeness", "input_snr_db"}
    assert texts["rejected-1"] == ("Rejected by closeness", f"2 of {first_count}, drawn at random.")
    title, why = texts["rejected-2"]
    assert title == "Rejected by the gate on input_snr_db"
    before = sum(row["criterion"] == "speech_s" for row in corpus.rows)
    assert why.startswith(f"2 of {second_count}, drawn at random. Rejected before scoring")
    assert f"speech_s ({before})" in why
    nothing_unheard = Overview(rejected_by=Counter(counts))
    assert "before scoring" not in "".join(why for _, why in headings(groups, nothing_unheard).values())
    assert headings({}, overview(corpus.ranking)) == {}


def test_names_of_groups_are_safe_whatever_the_reason_is_called(tmp_path):
    corpus = Corpus(tmp_path)
    hostile = {"input_snr_db": EVIL, "closeness": "x" * 5000, "speech_s": EVIL}
    changed(corpus, lambda row: row | {"criterion": hostile.get(row["criterion"])})
    groups = choose(corpus.ranking, 2, 2)
    texts = headings(groups, overview(corpus.ranking))
    assert len(groups) == len(examples.GROUPS) + 2
    for name, (title, why) in texts.items():
        assert re.fullmatch(r"[a-z]+(-[0-9]+)?", name)
        assert len(title) < 100
        assert len(why) < 300
    # Text, for the template to escape.
    titles = [title for title, _ in texts.values()]
    assert sum("</script><script>" in title for title in titles) == 1
    assert "<" not in html.escape("".join(titles))


# Audio and pictures


def test_players_hold_the_bytes_of_the_shards(corpus):
    groups = load_examples(choose(corpus.ranking, 2, 2), corpus.enhanced)
    found = [example for group in groups.values() for example in group]
    assert {example.original is None for example in found} == {True, False}
    for example in found:
        published, original = corpus.audio[example.row["id"]]
        assert payload(example.published.audio) == published
        assert (example.original and payload(example.original.audio)) == original
        for player in filter(None, (example.published, example.original)):
            with Image.open(io.BytesIO(payload(player.picture))) as image:
                assert (image.format, image.size) == ("PNG", (600, 380))


def test_a_group_that_needs_audio_alone_costs_no_pictures(corpus):
    chosen = choose(corpus.ranking, 2)
    shared = chosen["best"][0]
    given_rows = [row for row in ranked(corpus) if row["id"] not in {r["id"] for r in chosen["best"]}][:5]
    groups = {"best": chosen["best"], "audit": [*given_rows, shared]}
    found = load_examples(groups, corpus.enhanced, only_audio=["audit"])
    *others, last = found["audit"]
    assert [example.row for example in others] == given_rows
    for example in others:
        players = [player for player in (example.published, example.original) if player]
        assert [player.picture for player in players] == [None] * len(players)
        assert payload(players[0].audio) == corpus.audio[example.row["id"]][0]
    assert last.published.picture is not None  # it is in a group with pictures, too
    assert last is found["best"][0]


def test_a_long_clip_is_embedded_in_part(tmp_path):
    corpus = Corpus(tmp_path, clips=3, threshold=0, seconds=20.0, states=[5])
    found = load_examples(choose(corpus.ranking, 1), corpus.enhanced)["best"][0]
    samples, rate = decode_flac(payload(found.published.audio))
    assert len(samples) == 15 * rate
    assert found.published.seconds == 15.0


def test_all_groups_share_one_budget_of_audio(tmp_path, monkeypatch):
    corpus = Corpus(tmp_path, clips=12, threshold=0, seconds=10.0, states=[5])
    rows = ranked(corpus)
    recordings = sum(1 + (row["variant"] == "enhanced") for row in rows)
    monkeypatch.setattr(examples, "AUDIO_BYTES", int(recordings * 4 * RATE * examples.FLAC_BYTES))
    found = load_examples({"best": rows[:5], "audit": rows[3:]}, corpus.enhanced, only_audio=["audit"])
    players = [p for group in found.values() for e in group for p in (e.published, e.original) if p]
    assert {round(player.seconds, 3) for player in players} == {4.0}


@given(st.lists(st.floats(0, 60), max_size=30), st.floats(1, 500))
def test_short_recordings_leave_their_time_to_long_ones(lengths, total):
    cap = seconds_each(lengths, total)
    assert examples.MIN_SECONDS <= cap <= examples.MAX_SECONDS
    used = sum(min(length, cap) for length in lengths)
    if cap > examples.MIN_SECONDS:
        assert used <= total * (1 + 1e-9)
    if cap < examples.MAX_SECONDS:
        assert used >= total * (1 - 1e-9)


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
