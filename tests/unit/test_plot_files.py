"""The charts as files: complete, the same every time, readable by themselves and by people who are colour-blind."""

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from speechmill.errors import SpeechmillError
from speechmill.metrics import all_metrics
from speechmill.ranking.profile import FrozenProfile
from speechmill.report import plot_files, plots
from speechmill.report.plot_files import write_plots
from speechmill.report.summary import Overview, funnel, overview
from speechmill.utils.statistics import Distribution

from .report_corpus import EVIL, Corpus, make_profile

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return overview(Corpus(tmp_path_factory.mktemp("plots")).ranking)


def text_of(svg):
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter(f"{SVG}text")]


def made_up(clips, metrics, scale=1.0):
    """An overview of a run with so many clips, half of them accepted."""
    states = Counter(accepted=clips // 2, rejected=clips // 3, errored=clips // 9)
    result = Overview(clips=Counter(states, input=clips, duplicate=clips - states.total()))
    result.rejected_by = Counter(closeness=clips // 6, snr_db=clips // 3 - clips // 6)
    for name in metrics:
        result.metrics[name] = Distribution()
        result.metrics[name].add(np.random.default_rng(len(name)).normal(0.5, 0.2, min(clips, 5000)) * scale)
    for name in result.closeness:
        result.closeness[name].add(np.linspace(0, 1, min(clips, 1000)))
    return result


def test_there_is_a_picture_and_a_drawing_of_every_chart(found, tmp_path):
    files = write_plots(tmp_path / "plots", found, make_profile(), all_metrics())
    charts = ["closeness", "funnel", "metric_snr_db", "metric_input_clip_ratio", "metric_a_new_metric"]
    charts += ["metric_denoise_removed_db"]
    assert [path.name for path in files] == [f"{name}.{ending}" for name in charts for ending in ("png", "svg")]
    assert sorted(files) == sorted((tmp_path / "plots").iterdir())
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                wide = path.stem in ("closeness", "funnel")
                assert image.size == tuple(round(300 * x) for x in (plot_files.WIDE if wide else plot_files.NARROW))
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
                assert set(image.info) <= {"dpi"}  # no date, no software
                assert np.asarray(image.convert("L"))[-1].min() == 255  # not transparent, nothing cut off
        else:
            svg = path.read_text("utf-8")
            assert "clips" in text_of(svg)
            assert "DejaVu Sans', Verdana" in svg
            # Nothing is fetched; what is referred to is within.
            assert all(link.startswith("#") for link in re.findall(r'(?:href="|url\()([^")]*)', svg))


def test_the_same_input_gives_the_same_bytes(found, tmp_path):
    first, second = (write_plots(tmp_path / name, found, make_profile(), all_metrics()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_file_explains_itself(found, tmp_path):
    write_plots(tmp_path / "plots", found, make_profile(), all_metrics())
    shown = {path.stem: text_of(path.read_text("utf-8")) for path in (tmp_path / "plots").glob("*.svg")}
    legends = {
        "closeness": ["accepted", "below the threshold", "failed a gate, or kept out", "threshold 0.5"],
        "funnel": ["left", "errored", "rejected", "duplicate"],
        "metric_snr_db": ["before enhancement (input)", "published", "fails a gate", "bounds of a criterion"],
        "metric_a_new_metric": ["published"],
    }
    legends["metric_snr_db"].append("ideal interval")
    for name, legend in legends.items():
        assert set(legend) <= set(shown[name])
    axes = {
        "closeness": "closeness to the ideal (0 worst, 1 best)",
        "metric_snr_db": "snr_db (dB)",
        "metric_denoise_removed_db": "denoise_removed_db (dB)",
        "metric_input_clip_ratio": "input_clip_ratio (0 to 1)",
        "metric_a_new_metric": "a_new_metric",  # whose unit nobody declares
    }
    for name, label in axes.items():
        assert label in shown[name]
    for step in funnel(found):
        assert step.title in shown["funnel"]
        assert any(text.endswith(f"{step.left:,} left") for text in shown["funnel"])


def test_every_declared_metric_has_its_unit_on_the_axis():
    for name, metric in all_metrics().items():
        label = plots.axis_label(name, metric)
        assert label == f"{name} ({metric.unit})" if metric.unit != "1" else re.fullmatch(r"\w+ \(.+ to .+\)", label)


def test_a_bar_is_as_high_as_its_clips(tmp_path):
    found = Overview(clips=Counter())
    found.metrics["snr_db"] = Distribution()
    found.metrics["snr_db"].add(np.array([1.0] * 100 + [2.0] * 300))
    profile = make_profile()
    bare = FrozenProfile(**{**vars(profile), "gates": (), "criteria": ()})
    write_plots(tmp_path / "plots", found, bare, all_metrics())
    with Image.open(tmp_path / "plots" / "metric_snr_db.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    bars = np.all(np.abs(pixels - np.rint(255 * np.array(to_rgb(plots.BLUE)))) <= 2, axis=-1)
    bars[:80] = False  # the legend
    heights = bars.sum(0)
    half = len(heights) // 2
    assert heights[half:].max() == pytest.approx(3 * heights[:half].max(), rel=0.03)


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", EVIL, "", "x" * 200, "ก", "-rf"])
def test_a_hostile_name_is_refused_and_writes_nothing(found, tmp_path, name):
    hostile = made_up(10, [name])
    with pytest.raises(SpeechmillError, match="cannot be drawn into a file of its name"):
        write_plots(tmp_path / "plots", hostile, make_profile(), all_metrics())
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_replaced_as_a_whole(found, tmp_path, monkeypatch):
    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "metric_gone.png").write_bytes(b"of an earlier run")

    def fail(*_, **__):
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(plot_files, "draw_metric", fail)
        write_plots(folder, found, make_profile(), all_metrics())
    assert [path.name for path in folder.iterdir()] == ["metric_gone.png"]
    files = write_plots(folder, found, make_profile(), all_metrics())
    assert sorted(folder.iterdir()) == sorted(files)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("clips", [0, 1, 10_000_000])
def test_nothing_is_cut_off_or_overlaps(tmp_path, monkeypatch, clips):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn, real, save = {}, Text.draw, Figure.savefig

    def draw(self, renderer):  # laid out several times: the last one counts
        if self.get_visible() and self.get_text():
            drawn[self] = (self.get_text(), self.get_window_extent(renderer), self.get_figure().bbox)
        return real(self, renderer)

    def savefig(self, sink, **options):
        drawn.clear()
        save(self, sink, **options)
        texts = list(drawn.values())
        assert len(texts) > 5
        for k, (text, box, page) in enumerate(texts):
            assert 0 <= box.x0 <= box.x1 <= page.x1, text
            assert 0 <= box.y0 <= box.y1 <= page.y1, text
            assert [other for other, another, _ in texts[k + 1 :] if box.overlaps(another)] == [], text

    monkeypatch.setattr(Text, "draw", draw)
    monkeypatch.setattr(Figure, "savefig", savefig)
    names = ["snr_db", "input_snr_db", "input_clip_ratio", "bandwidth_hz", "a_metric_with_a_name_as_long_as_they_are"]
    found = made_up(clips, names, scale=8000.0)
    assert write_plots(tmp_path / "plots", found, make_profile(), all_metrics())


# Colours, as people with each of the three kinds of dichromacy see them: Machado, Oliveira & Fernandes 2009, severity 1.
DICHROMATS = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]


def lab(colour, seen):
    """CIE L*a*b* (D65) of an sRGB colour."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    fx, fy, fz = (np.cbrt(t) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("kind", DICHROMATS)
def test_colours_that_touch_are_told_apart_by_everyone(kind):
    touching = [*itertools.combinations([colour for _, _, colour in plots.OUTCOMES], 2), (plots.SKY, plots.BLUE)]
    touching += [(plots.BLUE, colour) for colour in plot_files.STATE_COLOURS.values()]
    for one, other in touching:
        difference = np.linalg.norm(lab(one, DICHROMATS[kind]) - lab(other, DICHROMATS[kind]))
        assert difference > 20, (one, other)  # 2.3 is just noticeable
