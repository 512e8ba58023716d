"""The suspects page in a headless Chromium: decisions by keyboard and mouse, kept, undone, exported, imported."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from browser_example import Browser, needs_browser
from test_analysis_suspects import result  # noqa: F401

from analysis.pages import suspects
from experiments.tasks.cleaned_copy import KEPT, REMOVED
from experiments.tasks.decisions import Decisions

pytestmark = needs_browser
HOSTILE = [
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "\u202egnihtyreve\n\x1b[2J",
    "=cmd|' /C calc'!A0",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def scan(result):  # noqa: F811
    """Twelve samples, of which the page shows six, and a group of four with a member that is not among them."""
    captions = [*result.table["caption"][:9], *HOSTILE]
    keys = [*result.table["key"][:9], "=1+1", 'a,"b"', "011"]
    domains = ["a.org", "b.org", None] * 4
    result.table = result.table.assign(caption=captions, key=keys, domain=domains, group=[0, 1] * 6)
    result.table = result.table.assign(dao=result.table["slof_raw"].to_numpy()[::-1].copy())
    result.detectors = ["slof_raw", "dao"]
    result.metrics["dao"] = result.metrics["slof_raw"]
    result.groups[0].rows = np.array([11, 9, 7, 1])
    return result


@pytest.fixture
def page(scan, tmp_path):
    return suspects.write(scan, tmp_path / "suspects.html", gallery=6)


def opened(browser, page, **window):
    browser.events.clear()
    browser.open(page, **window)
    browser.run("localStorage.clear(); marks.load(); marks.steps = []; repaint()")
    return browser


def decided(browser, scan):
    """Row -> decision, as the page's CSV has them."""
    (browser.downloads / "decisions.csv").unlink(missing_ok=True)
    browser.click("#export")
    decisions = Decisions.read(str(browser.downloaded("decisions.csv"))).of(scan.table)["decision"]
    return {row: decision for row, decision in enumerate(decisions) if decision}


def test_keys_decide_move_and_undo(browser, page, scan):
    opened(browser, page)
    browser.press("g", "p", "f", "ArrowRight", "u")  # rows 11, 10, not 9, 8
    assert decided(browser, scan) == {11: "poison", 10: "fine", 8: "unsure"}
    browser.press("k", "k", "f", "f")  # back from 7 to 9, then on again
    assert browser.run("idOf(current.row)") == str(2**60 + 7)
    assert decided(browser, scan) == {11: "poison", 10: "fine", 9: "fine", 8: "fine"}
    browser.press("z", "z", "z")
    assert decided(browser, scan) == {11: "poison", 10: "fine"}
    browser.press("g", "p", "g", "c")  # the same decision twice is one; c takes it back
    assert decided(browser, scan) == {10: "fine"}
    assert "1 fine" in browser.run("$('tally').textContent")
    assert browser.complaints == []


def test_a_group_decides_about_all_of_its_samples(browser, page, scan):
    opened(browser, page)
    browser.press("j", "p")
    assert decided(browser, scan) == dict.fromkeys([11, 9, 7, 1], "poison")  # row 1 is on no picture
    browser.click("#gallery .sample [data-choice=fine]")
    assert decided(browser, scan)[11] == "fine"
    assert browser.run("document.querySelector('.group .state').textContent") == "3 poison, 1 fine of 4"
    browser.press("z", "z")
    assert browser.run("$('export').disabled")


def test_decisions_stay_when_the_page_is_opened_again_and_are_of_its_samples_alone(browser, page, scan, tmp_path):
    opened(browser, page)
    browser.press("g", "p", "n")
    browser.call("Input.insertText", text='=patch, "left"')
    browser.press("Enter", "u")
    browser.open(page)
    assert decided(browser, scan) == {11: "poison", 10: "unsure"}
    with open(browser.downloads / "decisions.csv", newline="") as stream:
        notes = [row["note"] for row in csv.DictReader(stream)]
    assert notes == ['\'=patch, "left"', ""] or notes == ["", '\'=patch, "left"']
    other = suspects.write(scan, tmp_path / "another_detector.html", gallery=3)
    browser.open(other)
    assert "1 poison" in browser.run("$('tally').textContent")
    scan.table = scan.table.assign(caption=scan.table["caption"].str.upper())
    browser.open(suspects.write(scan, tmp_path / "other_data.html", gallery=6))
    assert browser.run("$('tally').textContent").startswith("0 poison")


def test_filters_and_orders(browser, page, scan):
    opened(browser, page)
    shown = "[...document.querySelectorAll('#gallery .sample')].map(box => box.row)"
    pick = """(id, value) => {
        $(id).value = value;
        $(id).dispatchEvent(new Event(id === 'words' ? 'input' : 'change'));
    }"""

    def rows(**filters):
        for name, value in filters.items():
            browser.run(f"({pick})({json.dumps(name)}, {json.dumps(value)})")
        found = browser.run(shown)
        for name in filters:
            browser.run(f"({pick})({json.dumps(name)}, {json.dumps({'words': '', 'by': 'rank'}.get(name, 'all'))})")
        return found

    assert rows() == [11, 10, 9, 8, 7, 6]
    assert rows(words="CAPTION 7") == [7]
    assert rows(group="1") == [11, 9, 7]
    assert rows(group="0") == [10, 8, 6]
    assert rows(domain="a.org") == [9, 6]
    assert rows(high="0") == [11, 10, 9, 8, 7, 6]
    assert rows(high="1") == []
    assert rows(by="1") == [6, 7, 8, 9, 10, 11]
    assert rows(by="group") == [11, 9, 7, 10, 8, 6]
    assert rows(truth="clean") == [7, 6]
    browser.press("g", "p")
    assert rows(decided="poison") == [11]
    assert rows(decided="", group="0") == [10, 8, 6]
    browser.run(f"({pick})('words', 'caption')")
    browser.click("#all [data-choice=unsure]")
    assert decided(browser, scan) == {11: "poison", **dict.fromkeys([8, 7, 6], "unsure")}


def test_a_csv_is_read_back_and_one_of_other_data_is_not(browser, page, scan, tmp_path):
    opened(browser, page)
    browser.press("g", "p", "f", "u")
    before = decided(browser, scan)
    saved = (browser.downloads / "decisions.csv").read_text()
    browser.run("localStorage.clear(); marks.load(); repaint()")

    def given(text):
        (tmp_path / "given.csv").write_text(text, encoding="utf-8")
        browser.run("say('')")
        browser.choose_file("#file", tmp_path / "given.csv")
        browser.until("$('said').textContent")
        return browser.run("$('said').textContent")

    assert given(saved) == "3 decisions read."
    assert decided(browser, scan) == before
    by_key = '\ufeffshard,key,decision\r\na|b.tar,\'=1+1,Fine\r\na|b.tar,"a,""b""",unsure\r\n'
    assert given(by_key) == "2 decisions read."
    assert decided(browser, scan) == {**before, 9: "fine", 10: "unsure"}
    assert "1 of them about samples that are not on this page" in given(f"id,decision\n{2**60 + 3},fine\n")
    assert decided(browser, scan)[3] == "fine"
    for text, why in (
        (f"id,shard,key,decision\n{2**60 + 11},a|b.tar,007,fine\n", "decided on other data?"),
        (f"id,decision\n{2**60 + 11},bad\n", "must be poison, fine or unsure"),
        (f"id,decision\n{2**60 + 11},fine\n{2**60 + 11},poison\n", "decides a second time"),
        ("key,decision\nnobody,fine\n", "names none of the samples"),
        ("name;decision\n", "must have the columns"),
        ('id,decision\n"1,fine\n', "does not end"),
    ):
        assert why in given(text)
    assert decided(browser, scan)[11] == before[11]


def test_strangers_texts_stay_texts_and_nothing_is_asked_for(browser, page, tmp_path):
    opened(browser, page)
    browser.press("g", "Enter")
    assert browser.run("document.title") == "Lookout: suspects"
    captions = browser.run(
        "[...document.querySelectorAll('#gallery .caption')].slice(0, 3).map(e => e.textContent)"
    )
    assert captions == [HOSTILE[2], "\\u202egnihtyreve \\u001b[2J", HOSTILE[0]]
    assert browser.run("[...document.querySelectorAll('#gallery img')].every(i => i.complete && i.naturalWidth)")
    assert set(browser.requests) <= {page.as_uri()}
    assert browser.complaints == []
    browser.run("document.body.append(make('img', {src: 'http://127.0.0.1:9/'}))")
    inline = '<i onclick="document.title=1" id="x">x</i>'
    browser.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(inline)}); $('x').click()")
    assert browser.run("document.title") == "Lookout: suspects"
    assert len([text for text in browser.complaints if "Content Security Policy" in text]) == 2


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (390, False)])
def test_it_fits_the_window_in_light_and_dark(browser, page, tmp_path, width, dark):
    opened(browser, page, width=width, dark=dark)
    browser.press("g", "p")
    assert browser.run("document.documentElement.scrollWidth") == width
    light = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (light < 60) == dark
    if width < 640:
        sides = browser.run("[...document.querySelectorAll('#gallery button')].map(e => e.offsetHeight)")
        assert min(sides) >= 32
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_two_thousand_suspects_come_in_pieces(browser, scan, tmp_path):
    n = 2_500
    some = scan.table.iloc[np.arange(n) % 12].reset_index(drop=True)
    scan.table = some.assign(
        id=np.arange(n), key=[str(row) for row in range(n)], rank=np.arange(n) + 1, shard="0.tar"
    )
    scan.order, scan.truth = np.arange(n), None
    scan.metadata["truth"] = None
    page = suspects.write(scan, tmp_path / "many.html", gallery=2_000)
    opened(browser, page)
    assert browser.run("document.querySelectorAll('#gallery .sample').length") < 500
    assert browser.run("rows.length") == 2_000
    for _ in range(4):
        before = browser.run("drawn")
        browser.run("scrollTo(0, document.documentElement.scrollHeight)")
        browser.until(f"drawn > {before}")
    browser.run("$('words').value = 'caption 7'; $('words').dispatchEvent(new Event('input'))")
    assert browser.run("rows.length") == len(some[:2000][some["caption"][:2000].str.contains("caption 7")])
    browser.click("#all [data-choice=poison]")
    assert len(decided(browser, scan)) == browser.run("rows.length")


def test_what_was_decided_here_is_what_a_clean_does(browser, page, scan):
    opened(browser, page)
    browser.press("j", "p", "g", "f")
    decided(browser, scan)
    table = scan.table.assign(status="scored", known_clean=False)
    fates = table.assign(
        fate=np.where(np.arange(12) > 9, REMOVED, KEPT)
    )  # by a threshold: the two that rank highest
    after = Decisions.read(str(browser.downloads / "decisions.csv")).overrule(fates)
    assert np.flatnonzero(after["fate"] == REMOVED).tolist() == [1, 7, 9, 10]
    assert isinstance(after, pd.DataFrame)
