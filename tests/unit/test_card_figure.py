"""The card's figure: what it counts, that it is the same every time, and that it can be read."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from speechmill.metrics import all_metrics
from speechmill.publish.figure import STATES, count_histograms, figure_metrics, metrics_figure
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, _hash
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ranking_schema
from speechmill.utils import statistics

JUDGED = {  # weights of a profile's criteria
    "input_snr_db": 0.4,
    "dnsmos_p808": 0.2,
    "dnsmos_ovrl": 0.15,
    "input_clip_ratio": 0.1,
    "speech_ratio": 0.08,
    "chars_per_second": 0.05,
    "a_metric_with_a_name_longer_than_any_panel_is_wide": 0.02,
}


GATES = (Gate("input_snr_db", 0.0, 70.0, ""), Gate("duration", None, 30.0, ""))


def make_profile(gates=GATES) -> FrozenProfile:
    criteria = tuple(
        Criterion(name, name.split("_")[0], 1e-5, 1.0, "cost", weight, None, "log10" if "clip" in name else "linear")
        for name, weight in JUDGED.items()
    )
    body = ("asr", 1, "", 0.5, 0.8, gates, criteria, (), ())
    return FrozenProfile(*body, sha256=_hash(FrozenProfile(*body, sha256="")))


def make_rankings(directory, clips: int, files: int = 3) -> tuple[list, list[dict]]:
    """Ranking tables of every state, and their rows."""
    draw = random.Random(0)
    rows = []
    for n in range(clips):
        closeness = draw.random() if n % 11 else None
        state = "errored" if closeness is None else "accepted" if closeness >= 0.5 else "rejected"
        row = {"id": str(n), "state": state, "closeness": closeness, "duration": draw.uniform(0.5, 20)}
        row["criterion"] = "closeness" if state == "rejected" else None
        if n % 13 == 0:
            row |= {"state": "rejected", "criterion": ["held_out", "removed"][n % 2]}
        if n % 17 == 0:
            row |= {"state": "duplicate", "criterion": None}
        row |= {name: draw.gauss(10 * (closeness or 0), 3) for name in JUDGED} | {
            "input_clip_ratio": draw.random() ** 9
        }
        rows.append(row)
    paths = []
    for k in range(files):
        names = list(JUDGED)[: len(JUDGED) - (k == 1)]  # the second file lacks a metric
        table = pa.Table.from_pylist(rows[k::files], schema=ranking_schema(names))
        paths.append(directory / f"b{k}.parquet")
        write_table(table, paths[-1])
    for row in rows[1::files]:
        row[list(JUDGED)[-1]] = None
    return paths, rows


def values_of(found) -> dict:
    return {(n, s): [v.tolist() for v in found[n][s].steps()] for n in found for s in STATES}


def test_the_heaviest_metric_of_every_group_is_shown_first():
    measured = {name: {"p50": 1.0} for name in [*JUDGED, "snr_db"]}
    measured["speech_ratio"]["p50"] = None
    heaviest = ["input_snr_db", "dnsmos_p808", "chars_per_second", list(JUDGED)[-1], "dnsmos_ovrl", "input_clip_ratio"]
    assert figure_metrics(make_profile(), measured) == heaviest
    gates = (Gate("snr_db", 0.0, None, ""), Gate("duration", None, 30.0, ""))
    few = {name: measured[name] for name in ("snr_db", "dnsmos_ovrl")}
    assert figure_metrics(make_profile(gates), few) == ["dnsmos_ovrl", "snr_db"]


def test_histograms_count_the_judged_clips(tmp_path):
    paths, rows = make_rankings(tmp_path, 300)
    found = count_histograms(paths, list(JUDGED))
    assert list(found) == ["closeness", "duration", *JUDGED]
    for name, states in found.items():
        for state, distribution in states.items():
            those = [r for r in rows if r["state"] == state and r["closeness"] is not None]
            those = [r[name] for r in those if r["criterion"] not in ("held_out", "removed") and r[name] is not None]
            values, counts = distribution.steps()
            assert len(those) > 10
            assert np.repeat(values, counts).tolist() == sorted(those)


def test_histograms_are_bounded_and_do_not_depend_on_the_order_of_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_DISTINCT", 64)
    monkeypatch.setattr(statistics, "PENDING", 50)
    paths, _ = make_rankings(tmp_path, 2000, files=7)
    found = values_of(count_histograms(paths, list(JUDGED)))
    assert max(len(values) for values, _ in found.values()) <= 64
    assert values_of(count_histograms(paths[::-1], list(JUDGED))) == found
    assert values_of(count_histograms([*paths[3:], *paths[:3]], list(JUDGED))) == found


def test_the_figure_is_the_same_png_every_time(tmp_path):
    paths, _ = make_rankings(tmp_path, 300)
    first, second = (
        metrics_figure(count_histograms(order, list(JUDGED)[:6]), make_profile(), all_metrics())
        for order in (paths, paths[::-1])
    )
    assert first == second
    with Image.open(io.BytesIO(first)) as image:
        image.verify()
        assert (image.format, image.size[0]) == ("PNG", 1800)
        assert set(image.info) <= {"dpi"}  # no date, no software


@pytest.mark.parametrize(("clips", "metrics"), [(0, 6), (300, 7), (300, 1), (300, 0)])
def test_nothing_in_the_figure_is_cut_off_or_overlaps(tmp_path, monkeypatch, clips, metrics):
    from matplotlib.text import Text

    drawn, real = {}, Text.draw  # laid out several times: the last one counts

    def draw(self, renderer):
        if self.get_visible() and self.get_text():
            drawn[self] = (self.get_text(), self.get_window_extent(renderer), self.get_figure().bbox)
        return real(self, renderer)

    monkeypatch.setattr(Text, "draw", draw)
    paths, _ = make_rankings(tmp_path, clips)
    found = count_histograms(paths, list(JUDGED)[len(JUDGED) - metrics :])
    png = metrics_figure(found, make_profile(), all_metrics())
    texts = list(drawn.values())
    assert len(texts) > 10
    for text, box, page in texts:
        assert 0 <= box.x0 <= box.x1 <= page.x1, text
        assert 0 <= box.y0 <= box.y1 <= page.y1, text
    for k, (one, box, _) in enumerate(texts):
        assert [other for other, another, _ in texts[k + 1 :] if box.overlaps(another)] == [], one
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255


def test_axes_have_units(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    labels, real = [], Figure.savefig

    def savefig(self, *arguments, **options):
        real(self, *arguments, **options)
        labels.extend((axes.get_xlabel(), axes.get_ylabel()) for axes in self.axes)

    monkeypatch.setattr(Figure, "savefig", savefig)
    paths, _ = make_rankings(tmp_path, 50)
    metrics_figure(count_histograms(paths, list(JUDGED)[:5]), make_profile(), all_metrics())
    assert labels[0] == ("closeness to the ideal (0 worst, 1 best)", "clips")
    assert [x for x, _ in labels[1:4]] == ["duration (s)", "input_snr_db (dB)", "dnsmos_p808 (MOS)"]
    assert labels[5] == ("input_clip_ratio (0 to 1)", "share of clips (%)")
