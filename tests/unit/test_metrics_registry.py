"""The catalogue of metrics, the groups and sets by name, and the page that explains them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechmill.errors import ConfigError
from speechmill.metrics import (
    ENHANCE_METRICS,
    GROUP_METRICS,
    GROUPS,
    INPUT_METRICS,
    SETS,
    all_metrics,
    load_groups,
    resolve_groups,
)

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_names_are_unique_and_declarations_sound():
    declared = [metric for group in GROUP_METRICS.values() for metric in group] + list(ENHANCE_METRICS.values())
    assert len(declared) == len({metric.name for metric in declared}) == len(all_metrics())
    for metric in declared:
        assert metric.low < metric.high
        assert metric.direction in ("benefit", "cost", "target")
        assert metric.unit
        assert metric.description
        assert metric.source


def test_input_metrics_carry_the_prefix_and_their_keys_are_columns():
    assert all(name == metric.name and name.startswith("input_") for name, metric in INPUT_METRICS.items())
    assert set(ENHANCE_METRICS) - set(INPUT_METRICS) == {"denoise_removed_db", "longest_pause_s", "chars_per_second"}


def test_sets_name_groups_and_groups_are_declared():
    assert GROUPS.keys() == GROUP_METRICS.keys()
    assert all(set(groups) <= GROUPS.keys() for groups in SETS.values())


def test_resolve_takes_sets_groups_and_lists():
    assert resolve_groups("light") == ("signal", "dnsmos_p808")
    assert resolve_groups("full")[:2] == resolve_groups("light")
    assert resolve_groups("distillmos") == ("distillmos",)
    assert resolve_groups(["distillmos", "light", "signal"]) == ("distillmos", "signal", "dnsmos_p808")


@pytest.mark.parametrize(
    ("name", "near"), [("dnsmos_p385", "dnsmos_p835"), ("lite", "light"), ("distilmos", "distillmos")]
)
def test_an_unknown_group_is_one_message_with_the_nearest_name(name, near):
    with pytest.raises(ConfigError, match=f'{name}.*did you mean "{near}"'):
        resolve_groups(["signal", name])


def test_no_group_at_all_is_refused():
    with pytest.raises(ConfigError, match="no metric group"):
        resolve_groups([])


def test_load_groups_loads_in_order_and_gives_a_reason_for_the_rest():
    loaded, skipped = load_groups(["dnsmos_p808", "squim", "signal"])
    assert [group.name for group in loaded] == ["dnsmos_p808", "signal"]
    assert [(skip.name, "squim_weights" in skip.reason) for skip in skipped] == [("squim", True)]


def test_declarations_need_no_models_library():
    code = "import sys; from speechmill.metrics import all_metrics; all_metrics(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_page_lists_every_metric_as_declared():
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in PAGE.read_text("utf-8").splitlines()]
    listed = {match[1]: row for row in rows if (match := re.fullmatch(r"`(\w+)`", row[0])) and len(row) == 7}
    assert listed.keys() == all_metrics().keys()
    for name, metric in all_metrics().items():
        assert listed[name][1:4] == [metric.unit, f"{metric.low:g} … {metric.high:g}", metric.direction], name
