"""The quality report in a real browser: it loads nothing, plays, computes, can be used by anybody, and is true."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from speechmill.analysis.rerank import preview
from speechmill.audit.results import audit
from speechmill.cli import main
from speechmill.report import whatif

from ..ranked_run import RankedRun

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
DEMO = Path(__file__).parents[2] / "results" / "demo" / "report" / "report.html"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = RankedRun(tmp_path_factory.mktemp("report"), clips=12_000, text=EVIL)
    made.report()
    return made


@pytest.fixture
def opened(browser):
    """Open a page from disk; afterwards it must have asked for nothing and raised nothing."""
    contexts, troubles = [], []

    def open_page(path, viewport=DESK, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        address = path.resolve().as_uri()
        page.on("request", lambda request: troubles.append(request.url) if _is_foreign(request.url, address) else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def _is_foreign(url, address):
    return not url.startswith((address, "data:", "blob:"))


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": RULES})
    return [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found.response["violations"]]


@pytest.mark.everyday
def test_it_loads_without_errors_or_requests_and_hostile_text_stays_text(run, opened):
    page = opened(run.page)
    assert page.title() == "made-up: quality report"
    assert page.get_by_text(EVIL).count() > 0
    assert page.locator("img[src^='http']").count() == 0


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_breaks_no_rule_of_accessibility_of_level_a_or_aa(run, opened, viewport):
    page = opened(run.page, viewport)
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []


def test_a_phone_shows_it_without_scrolling_sideways(run, opened):
    page = opened(run.page, PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_players_play_at_the_press_of_a_key(run, opened):
    page = opened(run.page)
    players = page.locator("article audio").all()
    assert len(players) > 10
    for player in (players[0], players[-1]):
        player.focus()
        page.keyboard.press("Space")
        page.wait_for_function("player => player.currentTime > 0.05", arg=player.element_handle())
    assert players[0].evaluate("player => player.paused")  # one at a time
    durations = page.evaluate("[...document.querySelectorAll('article audio')].map(player => player.duration)")
    assert all(0 < seconds < 60 for seconds in durations)


def test_before_and_after_are_switched_at_the_same_moment(run, opened):
    page = opened(run.page)
    pair = page.locator(".pair").first
    before, after = pair.locator("audio").all()
    button = pair.get_by_role("button")
    button.click()
    page.wait_for_function("player => player.currentTime > 0.2", arg=before.element_handle())
    button.click()
    page.wait_for_function("player => !player.paused && player.currentTime > 0.2", arg=after.element_handle())
    assert before.evaluate("player => player.paused")


def moved(page, threshold=None, **weights):
    """Move sliders as a person does, and read what is said: (clips, ±, hours, ±)."""
    page.get_by_role("button", name="As it is now").click()
    if threshold is not None:
        page.locator("#whatif-threshold").fill(str(threshold))
    for name, weight in weights.items():
        page.get_by_label(f"Weight of {name}", exact=True).fill(str(weight))
    page.wait_for_timeout(20)
    clips, hours = (page.locator(f"#whatif-{what}").inner_text() for what in ("clips", "hours"))
    return [*_numbers(clips), *_numbers(hours)]


def _numbers(text):
    """A number and, where there is one, what follows its ±; minutes as hours."""
    found = [
        float(number.replace(",", "")) / (60 if unit else 1) for number, unit in re.findall(r"([\d,.]+)( min)?", text)
    ]
    return found if len(found) == 2 else [found[0], 0.0]


def decided(run, threshold, weights):
    """What `speechmill rerank` says: clips and hours accepted."""
    found = preview(run.folder, threshold=threshold, weights=weights)
    return found["clips"]["accepted"]["after"], found["hours_accepted"]["after"]


def test_the_sliders_tell_what_reranking_then_gives(run, opened, capsys):
    page = opened(run.page)
    now = moved(page)
    assert now[0] == decided(run, 0.6, None)[0]
    for threshold in (0.0, 0.35, 0.7, 0.95):
        clips, error, hours, _ = moved(page, threshold)
        truth = decided(run, threshold, None)
        assert (clips, error) == (truth[0], 0)  # every threshold is exact
        assert abs(hours - truth[1]) <= 0.05 + 1e-9  # as rounded
    assert "Exact" in page.locator("#whatif-error").inner_text()
    inside = []
    of_group = {c.group: 0.0 for c in run.profile.criteria}
    for criterion in run.profile.criteria:
        of_group[criterion.group] += run.profile.distance_shares[criterion.metric]
    shown = dict(
        zip(
            page.locator("#whatif-form label code").all_inner_texts(),
            page.locator("#whatif-form small").all_inner_texts(),
            strict=True,
        )
    )
    assert shown == {name: f"{100 * share:.0f} % of the distance" for name, share in of_group.items()}
    groups = {one["name"]: one["weight"] for one in json.loads(page.locator("#whatif-data").text_content())["groups"]}
    for threshold in (0.6, 0.7):
        for name in groups:
            for weight in (0.0, 0.8):
                clips, error, hours, hours_error = moved(page, threshold, **{name: weight})
                truth = decided(run, threshold, groups | {name: weight})
                inside += [abs(clips - truth[0]) <= error + 1, abs(hours - truth[1]) <= hours_error + 0.05]
                assert abs(clips - truth[0]) <= 2.5 * error + 3
    assert sum(inside) / len(inside) >= 0.9  # of 95 % intervals
    assert "± is a 95 % interval" in page.locator("#whatif-error").inner_text()
    moved(page, 0.7, noise=0.25)
    setting = preview(run.folder, threshold=0.7, weights=groups | {"noise": 0.25})["setting"]
    shown = page.locator("#whatif-config").inner_text()
    assert yaml.safe_load(shown)["rank"] == {**setting, "weights": pytest.approx(setting["weights"])}
    command = shlex.split(page.locator("#whatif-command").inner_text())
    assert command[:2] == ["speechmill", "rerank"]
    assert main.main(["rerank", str(run.folder), *command[3:]]) == 0
    assert f"{decided(run, 0.7, groups | {'noise': 0.25})[0]:,}" in capsys.readouterr().out


def test_intervals_hold_where_few_decisions_flip(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(whatif, "PER_BAND", 25)
    sampled = RankedRun(tmp_path, clips=12_000, heard=40, seed=11, threshold=0.60437, weights={"room": 0})
    sampled.report(audit=0)
    page = opened(sampled.page)
    assert page.get_by_label("Weight of room").count() == 0  # nothing is known of the shares within
    assert "threshold: 0.60437, weights: {" in page.locator("#whatif-config").inner_text()
    assert "--threshold 0.60437" in page.locator("#whatif-command").inner_text()
    groups = {one["name"]: one["weight"] for one in json.loads(page.locator("#whatif-data").text_content())["groups"]}
    held = []
    for name, weight in groups.items():
        for move in (-0.03, -0.01, 0.01, 0.03):
            new = round(weight + move, 2)
            clips, error, _, _ = moved(page, **{name: new})
            truth = decided(sampled, 0.60437, groups | {name: new, "room": 0.0})
            assert error > 0
            held.append(abs(clips - truth[0]) <= error + 1)
    assert sum(held) / len(held) >= 0.9
    assert "room=0" in page.locator("#whatif-command").inner_text()


def test_a_corpus_that_is_the_sample_is_exact(opened, tmp_path):
    small = RankedRun(tmp_path, clips=300, heard=40)
    small.report()
    page = opened(small.page)
    clips, error, _, _ = moved(page, 0.55, noise=0.1, room=0.9)
    weights = {one["name"]: one["weight"] for one in json.loads(page.locator("#whatif-data").text_content())["groups"]}
    assert (clips, error) == (decided(small, 0.55, weights | {"noise": 0.1, "room": 0.9})[0], 0)
    assert "every clip" in page.locator("#whatif-error").inner_text()


def test_the_demo_report_is_worth_showing(opened, screenshots):
    if not DEMO.exists():
        pytest.skip("the demo has not run here: make demo")
    page = opened(DEMO)
    assert violations(page) == []
    if screenshots:
        page.screenshot(path=screenshots / "report.png")
        page.add_style_tag(content="nav { position: static !important }")
        page.locator("#whatif-threshold").fill("0.6")
        page.locator("#whatif").screenshot(path=screenshots / "report-whatif.png")
        page.locator("article[id^=borderline]:has(.pair)").first.screenshot(path=screenshots / "report-listen.png")


def test_an_audit_sheet_goes_from_the_page_to_its_result(run, opened, tmp_path):
    run.rank(run.profile)
    page = opened(run.page)
    clips = json.loads(page.locator("#audit-data").text_content())["clips"]
    states = {row["id"]: row for row in pq.read_table(run.folder / "report" / "ranking.parquet").to_pylist()}
    form = page.locator("#audit-form")
    assert not any(word in form.inner_text() for word in ("accepted", "rejected", "closeness", "enhanced"))
    said = {}
    for number, clip in enumerate(clips):
        fit = "yes" if states[clip["id"]]["state"] == "accepted" else "no"
        if number == 1:
            fit = "unsure"
        said[clip["id"]] = {"id": clip["id"], "fit": fit, "better": None}
        if clip["original"]:
            published = "A" if clip["first"] == "published" else "B"
            sources = {name: form.locator(f"audio[aria-label='Play {name}']").get_attribute("src") for name in "AB"}
            assert sources[published] == clip["published"]
            form.get_by_label(published, exact=True).check()
            assert form.locator("input[name=audit-fit]").count() == 0  # it would tell which one is published
            form.get_by_role("button", name="Answer, and go on").click()
            assert form.get_by_label("A", exact=True).is_disabled()
            if number < len(clips) - 1:  # who comes back does not get it open again
                form.get_by_role("button", name="Next clip").click()
                assert form.get_by_role("heading").evaluate("heading => heading === document.activeElement")
                form.get_by_role("button", name="Previous clip").click()
                assert form.get_by_label("A", exact=True).is_disabled()
            said[clip["id"]]["better"] = "published"
        form.locator(f"input[name=audit-fit][value={fit}]").check()
        if number == 2:
            form.get_by_label("Note").fill(EVIL)
            said[clip["id"]]["note"] = EVIL
        if number == len(clips) // 2:
            page.reload()  # what was answered is still there
            for _ in range(number):
                form.get_by_role("button", name="Next clip").click()
            assert form.locator(f"input[name=audit-fit][value={fit}]").is_checked()
        if number < len(clips) - 1:
            form.get_by_role("button", name="Next clip").click()
    assert f"{len(clips)} of {len(clips)} clips are judged." in form.inner_text()
    assert violations(page) == []
    form.get_by_label("Your name").fill("Anna ภาษา/../x")
    with page.expect_download() as saving:
        form.get_by_role("button", name="Save the sheet as a file").click()
    assert saving.value.suggested_filename == "audit-made-up-Anna-ภาษา-x.json"
    saving.value.save_as(tmp_path / "sheet.json")
    sheet = json.loads((tmp_path / "sheet.json").read_text("utf-8"))
    assert {clip["id"]: clip for clip in sheet["clips"]} == said
    assert sheet["listener"] == "Anna ภาษา/../x"
    found = audit(run.folder, [tmp_path / "sheet.json"])
    assert (found["agreement"]["answers"], found["agreement"]["share"]) == (len(clips) - 1, 1.0)
    assert found["comparison"]["published"] == sum(clip["original"] is not None for clip in clips)
    page.evaluate("window.confirm = () => true")
    form.get_by_role("button", name="Begin a new sheet").click()
    page.reload()
    assert f"0 of {len(clips)} clips are judged." in form.inner_text()
    assert form.get_by_label("Your name").input_value() == ""


def test_without_scripts_there_are_no_links_to_nothing(run, opened):
    page = opened(run.page, java_script_enabled=False)
    shown = [link.get_attribute("href") for link in page.locator("nav a").all() if link.is_visible()]
    assert len(shown) > 5
    assert all(page.locator(target).is_visible() for target in shown)


def test_tables_are_tables(run, opened):
    page = opened(run.page)
    for table in page.locator("section table").all():
        if table.is_visible():
            edges = table.evaluate(
                "table => [...table.rows].map(row => [...row.cells].map(cell => Math.round(cell.getBoundingClientRect().left)))"
            )
            assert all(row == edges[0] for row in edges), edges[:3]
