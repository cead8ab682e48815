"""The report's page: closed in itself, safe with hostile text, usable, and true to the summary."""

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from speechmill.report.page import write_report
from speechmill.report.summary import overview, summarize
from speechmill.storage.files import read_json
from speechmill.utils.text import plain

from .report_corpus import CONFIG, EVIL, VERSIONS, Corpus, ranked


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = Corpus(tmp_path_factory.mktemp("report"))
    made.report()
    return made


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
    assert len([script for script in page.all("script") if script.get("type") != "application/json"]) == 1
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
