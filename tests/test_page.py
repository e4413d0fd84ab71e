"""The report's page: what it shows, that nothing in it runs, and how it works in a browser.

The browser is Debian's chromium, without a window. Where it is not installed the tests that need it
are skipped, with a line that says so; with NETPRESS_REQUIRE_BROWSER=1, as .ci/run sets it, that is
a failure.
"""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy
import pytest

from pipeline import report, store
from pipeline.paths import CODE, Work
from pipeline.report import cards, frames, page, plot, row, sections, views
from pipeline.report.document import Column, Value
from pipeline.report.owned import Owned
from tests import results

CHROMIUM = shutil.which("chromium")
REQUIRED = os.environ.get("NETPRESS_REQUIRE_BROWSER") == "1"
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = "<script>document.title='run'</script>\"'&amp;<img src=x onerror=alert(1)>"
OPENS_IN_S = 3.0  # of a processor, so that a busy machine is no failure
CONTRAST = 4.5  # WCAG 2, AA


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        reason = "no chromium: apt-get install chromium brings a browser to test the page in"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, chromium_sandbox=False
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page; afterwards nothing may have gone wrong or been requested in it."""
    wrong: list[str] = []
    contexts = []

    def opened(path: Path, width: int = 1440, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        tab.on(
            "request", lambda request: _is_itself(request, path) or wrong.append(request.url[:99])
        )
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def _is_itself(request, path: Path) -> bool:
    return request.url.startswith("data:") or request.url.split("#")[0] == path.as_uri()


def built(folder: Path, ratios: dict[str, tuple[float, float]], failed=(), **shape):
    """A report on techniques -> (times smaller, accuracy lost); its page."""
    sweep = results.sweep(techniques=(*ratios, *failed), **shape)
    work = Work(folder / "work")
    for cell in sweep.cells:
        if cell.technique in failed:
            results.fail(cell, work, "exception", f"no {EVIL}")
        else:
            ratio, drop = ratios.get(cell.technique, (1.0, 0.0))
            drop += 0.0005 * cell.seed
            results.publish(cell, work, results.measured(cell, ratio, drop))
    return report.build(sweep, work, folder / "reports")[0].page


SMALL = {"ten": (10.0, 0.002), "two": (2.0, 0.0), "nine": (9.0, 0.01), "kd-0.5": (4.0, 0.001)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two data sets, five techniques, two seeds, one technique that failed."""
    folder = tmp_path_factory.mktemp("small")
    return built(
        folder,
        SMALL,
        ("gone",),
        seeds=(0, 1),
        datasets=("digits", "mnist"),
        text="name: test\n# </code><script>alert(1)</script>\n",
    )


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Names and reasons full of markup, which no sweep file could have and a page must bear."""
    return built(
        tmp_path_factory.mktemp("evil"),
        {EVIL: (4.0, 0.001)},
        (f"gone{EVIL}",),
        seeds=(0, 1),
        datasets=(f"d{EVIL}",),
        models=((f"m{EVIL}", 1.0),),
        text=f"name: test # {EVIL}\n",
        checked=False,
    )


def many(folder: Path, techniques: int, seeds: int, settings: int = 1) -> Path:
    """A page about so many results, which are one result with other names."""
    one = results.sweep()
    work = Work(folder / "work")
    for cell in one.cells:
        results.publish(cell, work)
    measured = frames.read(one, work).rows[1]
    names = [f"technique-{t:05}" for t in range(techniques - 1)]
    datasets = [f"d{d}" for d in range(settings)]
    sweep = results.sweep(techniques=names, seeds=range(seeds), datasets=datasets)
    count = len(sweep.cells)
    report_data = frames.Frames(
        tuple(
            replace(measured, **vars(row.identity(cell)), accuracy=0.9 + 0.1 * i / count)
            for i, cell in enumerate(frames.in_order(sweep))
        ),
        (),
    )
    path = folder / "index.html"
    path.write_bytes(page.html(sweep, report_data, {}, {}, sections.measured(sweep, report_data)))
    return path


def column(tab, n: int, table: str = "#results-0-table") -> list[str]:
    """The texts of a table's nth column (from 1), from above."""
    return tab.locator(f"{table} tbody tr > :nth-child({n})").all_text_contents()


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split(" ±")[0].replace(",", "")) for text in texts]


def head(tab, text: str, table: str = "#results-0-table"):
    return tab.locator(f"{table} thead th", has=tab.get_by_role("button", name=text, exact=True))


# --- its text, without a browser -------------------------------------------------------------


class _Outline(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_parts_come_in_the_order_in_which_a_reader_asks(small):
    outline = _Outline(small.read_text())
    ids = [attributes["id"] for attributes in outline.named("section")]
    wanted = ["answer", "study", "results", "figures", "gaps", "made"]
    assert [id for id in ids if id in wanted] == [id for id in wanted if id in ids]
    assert {"answer", "results", "figures", "gaps", "made"} <= set(ids)
    links = [a["href"] for a in outline.named("a") if str(a["href"]).startswith("#")]
    assert {link[1:] for link in links} <= {a.get("id") for _, a in outline.tags}


def test_ids_are_unique_headings_in_order_and_every_table_and_figure_described(small, evil):
    for path in (small, evil):
        outline = _Outline(path.read_text())
        ids = Counter(a["id"] for _, a in outline.tags if "id" in a)
        assert max(ids.values()) == 1
        levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
        assert len(outline.named("caption")) == len(outline.named("table")) > 0
        assert all(th.get("scope") for th in outline.named("th"))
        assert all(image.get("alt") and image.get("width") for image in outline.named("img"))
        labels = [a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a]
        assert set(labels) <= set(ids)


def test_only_its_own_style_and_script_are_allowed(small):
    text = small.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src &#39;none&#39;; ") and "unsafe" not in policy
    assert len(re.findall("sha256-", policy)) == 2
    outline = _Outline(text)
    assert not any(a.get("style") or any(k.startswith("on") for k in a) for _, a in outline.tags)
    assert not outline.named("link") and not outline.named("iframe")
    assert all(a.keys() <= {"type"} for a in outline.named("script"))


def test_what_a_result_is_called_is_text_everywhere(evil):
    outline = _Outline(evil.read_text())
    assert len(outline.named("script")) == 1 and len(outline.named("style")) == 1
    assert all(image["src"].startswith("data:image/svg+xml") for image in outline.named("img"))
    text = "".join(outline.texts)
    for phrase in (f"d{EVIL}, m{EVIL}", f"exception: no {EVIL}", f"name: test # {EVIL}"):
        assert phrase in text
    for path in (evil.parent / "figures").glob("*.svg"):
        assert "<script" not in path.read_text() and "<img" not in path.read_text()


def test_what_no_page_can_show_is_replaced():
    text = "a\x00b\x1b[31m\ud800\u202ec\ttab\nline é 漢 🙂 \xa0"
    assert page.clean(text) == "a\ufffdb\ufffd[31m\ufffd\ufffdc\ttab\nline é 漢 🙂 \xa0"


def test_a_lone_surrogate_in_a_reason_costs_nothing(tmp_path):
    sweep, work = results.sweep(), Work(tmp_path / "work")
    results.fail(sweep.cells[0], work, "exception", "")
    failed = {"kind": "exception", "reason": "half \ud83d of it", "traceback": ""}
    work.cell(sweep.cells[0].id).attempt(1).failure.write_text(json.dumps(failed))
    shown = report.build(sweep, work, tmp_path)[0].page.read_text()
    assert "half \ufffd of it" in shown


def test_nothing_there_is_a_page_of_gaps(tmp_path):
    text = report.build(results.sweep(), Work(tmp_path / "work"), tmp_path)[0].page.read_text()
    assert "There is no result yet" in text and "not run yet" in text
    assert 'id="figures"' not in text and 'id="results"' not in text


def test_figures_and_tables_of_an_earlier_report_go(tmp_path):
    sweep = results.sweep(techniques=("half", "gone"))
    work = Work(tmp_path / "work")
    for cell in sweep.cells:
        results.publish(cell, work)
    paths = report.build(sweep, work, tmp_path)[0]
    assert list(paths.figures.glob("*.svg")) and paths.merged.exists()
    stale = [paths.svg("old"), paths.pdf("old"), paths.latex("old")]
    Owned.of(paths).claim(map(paths.name, stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    mine = paths.folder / "notes.txt"
    mine.write_text("mine")
    paths.merged.unlink()
    for cell in sweep.cells:
        work.cell(cell.id).manifest.unlink()
    report.build(sweep, work, tmp_path)
    assert not any(path.exists() for path in stale) and mine.exists()
    assert not list(paths.figures.glob("*"))


def test_the_page_names_only_files_that_are_there(small):
    outline = _Outline(small.read_text())
    files = {a["href"] for a in outline.named("a") if not str(a["href"]).startswith("#")}
    assert {"report.md", "results.csv", "results.h5", "sweep.yaml"} <= files
    assert all((small.parent / name).is_file() for name in files)
    assert (small.parent / "sweep.yaml").read_text().startswith("name: test\n")


def test_the_same_results_give_the_same_page_in_any_order(tmp_path):
    sweep = results.sweep(techniques=("half", "tiny-0.5", "gone"), seeds=(0, 1))
    pages = []
    for name, cells in (("one", sweep.cells), ("two", sweep.cells[::-1])):
        work = Work(tmp_path / name / "work")
        for cell in cells:
            if cell.technique != "gone":
                results.publish(cell, work)
        paths = report.build(sweep, work, tmp_path / name)[0]
        pages.append(
            {
                p.relative_to(paths.folder): p.read_bytes()
                for p in paths.folder.rglob("*")
                if p.is_file()
            }
        )
        assert str(tmp_path).encode() not in b"".join(pages[-1].values())
    assert pages[0] == pages[1]


def test_a_first_click_brings_the_best_up():
    columns = (
        Column("technique"),
        Column("n"),
        Column("accuracy", "accuracy"),
        Column("stored", "stored_bytes"),
        Column("id"),
    )
    line = (Value("a"), Value("1", 1), Value("98.00", 0.98), Value("", None), Value("x1"))
    heads = list(views.View("t", "", columns, (line,)).heads)
    assert [h["first"] for h in heads] == [
        "ascending",
        "descending",
        "descending",
        "ascending",
        "ascending",
    ]
    assert [h["classes"] for h in heads] == ["name", "n", "n", "n", "text"]


def test_the_fastest_card_has_the_lowest_latency_of_all_cards():
    """Each model was timed in turns with a base of its own run, and these ran at other speeds."""
    sweep = results.sweep(techniques=("small", "quick"))
    kinds = {"base": (1.0, 0.0, 1.0), "small": (10.0, 0.0, 1.0), "quick": (5.0, 0.005, 3.0)}
    rows = []
    for cell in sweep.cells:
        ratio, drop, slow = kinds[cell.technique]
        values = results.measured(cell, ratio, drop)
        speed = {"small": 2.0, "quick": 2.5}.get(cell.technique, 1.0)
        for model, ms in (("artifact", 4.0 / speed), ("base", 4.0)):
            values[f"latency/onnxruntime/{model}/all/batch1"] = numpy.full(20, slow * ms)
        rows.append(row.row(row.identity(cell), store.Result(cell.id, {}, {}, [], values)))
    [answer] = cards.answers(sweep, rows)
    speeds = [card.facts[1] for card in answer.cards]
    assert [card.group.technique for card in answer.cards] == ["small", "small", "quick"]
    assert [(fact.value, fact.change) for fact in speeds] == [
        ("2.00 ms", "2.00× faster"),
        ("2.00 ms", "2.00× faster"),
        ("1.60 ms", "2.50× faster"),  # its own median is 4.80 ms
    ]
    elsewhere = [replace(one, machine="board") if one.is_base else one for one in rows]
    [answer] = cards.answers(sweep, elsewhere)
    assert [card.facts[1].value for card in answer.cards] == ["2.00 ×", "2.00 ×", "2.50 ×"]


def test_very_many_lines_are_rows_at_first_and_text_after(tmp_path):
    text = many(tmp_path, techniques=1000, seeds=1).read_text()
    assert text.count("<tr>") < 1500
    for i in (0, 198, 199, 200, 998):
        assert f"technique-{i:05}" in text


# --- in a browser ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1440])
def test_it_opens_without_a_request_and_only_tables_move_sideways(small, evil, opened, width):
    for path in (small, evil):
        tab = opened(path, width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)")
        name = tab.locator("#results-0-table tbody th").first
        box = tab.locator("#results-0 .scroll")
        box.evaluate("(box) => { box.scrollLeft = 9999; }")
        assert name.bounding_box()["x"] == pytest.approx(box.bounding_box()["x"], abs=1)


def test_markup_in_names_is_shown_as_text(evil, opened):
    tab = opened(evil)
    assert tab.title().startswith("test:")
    assert tab.locator("script").count() == 1 and tab.locator("img[src=x]").count() == 0
    assert EVIL in column(tab, 1)
    assert tab.locator("#gaps tbody td").first.text_content() == f"exception: no {EVIL}"
    assert EVIL in tab.locator("#made pre").last.text_content()
    assert f"d{EVIL}" in tab.locator("#answer h3").text_content()


def test_columns_sort_by_number_best_first_and_back(small, opened):
    tab = opened(small)
    before = column(tab, 1)
    smaller = head(tab, "compression ratio, ×")
    place = 1 + smaller.evaluate("(cell) => cell.cellIndex")
    assert before == ["base", *SMALL]
    smaller.get_by_role("button").click()
    assert smaller.get_attribute("aria-sort") == "descending"
    assert numbers(column(tab, place)) == [10.0, 9.0, 4.0, 2.0, 1.0]  # as text, 9 is the highest
    assert column(tab, 1) == ["ten", "nine", "kd-0.5", "two", "base"]
    smaller.get_by_role("button").click()
    assert smaller.get_attribute("aria-sort") == "ascending"
    assert numbers(column(tab, place)) == [1.0, 2.0, 4.0, 9.0, 10.0]
    smaller.get_by_role("button").click()
    assert smaller.get_attribute("aria-sort") == "none" and column(tab, 1) == before
    head(tab, "accuracy drop, points").get_by_role("button").click()
    drop = 1 + head(tab, "accuracy drop, points").evaluate("(cell) => cell.cellIndex")
    assert numbers(column(tab, drop)) == sorted(numbers(column(tab, drop)))


def test_it_works_from_the_keyboard(small, opened):
    tab = opened(small)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.locator("#results [name=filter]").focus()
    tab.keyboard.type("kd")
    assert column(tab, 1) == ["kd-0.5"] and column(tab, 1, "#results-1-table") == ["kd-0.5"]
    assert tab.locator("#results output").text_content() == "1 of 5 lines"
    tab.locator("#results [name=filter]").fill("")
    button = head(tab, "compression ratio, ×").get_by_role("button")
    while not button.evaluate("(button) => button === document.activeElement"):
        tab.keyboard.press("Tab")
    outline = button.evaluate("(button) => getComputedStyle(button).outlineStyle")
    assert outline == "solid"
    tab.keyboard.press("Enter")
    assert column(tab, 1)[0] == "ten"
    tab.keyboard.press("Space")
    assert column(tab, 1)[0] == "base"


def test_it_filters_by_words_and_group_of_columns(small, opened):
    tab = opened(small)
    tab.locator("#results [name=filter]").fill("TEN, kd 0.5")
    assert column(tab, 1) == ["ten", "kd-0.5"]
    tab.locator("#results [name=filter]").fill("nothing like it")
    assert column(tab, 1) == []
    tab.locator("#results [name=filter]").fill("")
    stored = head(tab, "stored size, MB")
    assert stored.is_visible()
    assert not head(tab, "MACs, M").is_visible()  # on request
    tab.get_by_label("size", exact=True).uncheck()
    assert not stored.is_visible() and head(tab, "accuracy, %").is_visible()
    shown = tab.locator("#results-0-table tbody tr").first.locator("td:visible").count()
    assert shown == tab.locator("#results-0-table .columns th:visible").count() - 1
    tab.get_by_label("size", exact=True).check()
    assert stored.is_visible()


def test_a_narrow_screen_begins_with_the_columns_that_matter(small, opened):
    tab = opened(small, width=360)
    assert head(tab, "accuracy, %").is_visible() and head(tab, "stored size, MB").is_visible()
    assert not head(tab, "MACs, M").is_visible()
    tab.get_by_label("complexity", exact=True).check()
    assert head(tab, "MACs, M").is_visible()


def test_without_script_all_is_there_but_the_controls(small, opened):
    tab = opened(small, java_script_enabled=False)
    text = tab.locator("body").inner_text()
    for phrase in (
        "Smallest without accuracy loss",
        "kd-0.5",
        "netpress export",
        "exception: no",
        "name: test",
    ):
        assert phrase in text
    assert tab.locator("th button").count() == 0 and not tab.locator(".copy").first.is_visible()
    assert tab.locator("svg.marks").count() == tab.locator("svg.marks >> visible=true").count() == 2
    mark = tab.locator("svg.marks a", has_text="kd-0.5").first
    assert "14.7 MB, 4.00× smaller" in mark.locator("title").text_content()
    assert tab.locator(mark.get_attribute("href")).is_visible()
    assert not tab.locator("form.controls").first.is_visible()
    assert tab.locator("figure img").first.is_visible()


def test_the_answers_are_cards_whose_command_is_copied(small, opened):
    tab = opened(small, permissions=["clipboard-read", "clipboard-write"])
    cards = tab.locator("#shown-0 article.card")
    assert cards.count() == 2  # ten is the answer to two questions
    assert cards.nth(1).locator(".number").all_text_contents() == ["2", "3"]
    shown = [" ".join(text.split()) for text in cards.all_inner_texts()]
    assert "Smallest without accuracy loss" in shown[0] and "two" in shown[0]
    assert " ten size 5.89 MB 10.0× smaller latency, batch 1 " in shown[1]
    assert "0.22 points lower" in shown[1] and "It exports seed 0." in shown[1]
    cards.nth(1).get_by_role("button").click()
    cards.nth(1).get_by_text("Copied").wait_for()
    command = tab.evaluate("navigator.clipboard.readText()")
    assert command == cards.nth(1).locator("code").text_content()
    assert re.fullmatch(r"netpress export reports/test [0-9a-f]{16}", command)
    assert command[-16:] in cards.nth(1).get_by_role("button").get_attribute("aria-label")
    gist = tab.locator("header .gist span").first.text_content()
    assert gist.startswith("digits: 10.0× smaller at \u22120.22 points; ")


def test_data_set_and_model_are_chosen_once_for_the_whole_page(small, opened):
    tab = opened(small)
    about = {"digits": ("#shown-0", "#results-0"), "mnist": ("#shown-1", "#results-1", ".ratios")}
    for name, other in (("digits", "mnist"), ("mnist", "digits")):
        tab.get_by_label("Data set").select_option(name)
        assert all(tab.locator(one).is_visible() for one in about[name])
        assert not any(tab.locator(one).is_visible() for one in about[other])
    tab.get_by_label("Data set").select_option("")
    assert all(tab.locator(one).is_visible() for many in about.values() for one in many)
    tab.get_by_label("Data set").select_option("digits")
    tab.evaluate("location.hash = ''")
    tab.evaluate("document.querySelector('#shown-1 .model a').click()")
    assert tab.locator("#results-1").is_visible() and not tab.locator("#results-0").is_visible()


def test_a_section_with_nothing_on_the_chosen_data_set_says_so(small, opened):
    tab = opened(small)
    published, study = tab.locator("#published"), tab.locator("#study")
    tab.get_by_label("Data set").select_option("digits")
    assert published.inner_text().split("\n")[-1] == "None for digits, vgg16_bn."
    assert not published.locator("table").is_visible() and not study.locator("p.key").is_visible()
    tab.get_by_label("Data set").select_option("mnist")
    assert published.locator("table").is_visible() and study.locator("p.key").is_visible()
    assert not tab.get_by_text("None for").first.is_visible()
    heads = published.locator("thead th").all_inner_texts()
    cells = published.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert all(any(texts) for texts in zip(*cells, strict=True)) and len(heads) > 2
    shown = tab.locator(".ratios td.dots").first
    mark, value = shown.locator("use").last.bounding_box(), shown.locator("text").last
    box = value.bounding_box()
    assert box["x"] - 2 <= mark["x"] + mark["width"] / 2 <= box["x"] + box["width"] + 2


def test_marks_are_read_with_the_pointer_and_with_the_keyboard(small, opened):
    tab = opened(small)
    marks = tab.locator("#shown-0 svg.marks a.mark")
    assert marks.count() == 1 + len(SMALL)
    assert [marks.nth(i).get_attribute("tabindex") for i in range(5)].count("0") == 1
    box = marks.first.locator("use").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2 + 8, box["y"] + box["height"] / 2)
    assert tab.locator("#tip b").text_content() == "ten"
    tab.mouse.move(5, 5)
    assert not tab.locator("#tip").is_visible()
    marks.first.focus()
    for name in ("nine", "kd-0.5", "two", "base"):
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#tip b").text_content() == name
    tab.keyboard.press("Home")
    label = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("ten; 5.89 MB, 10.0× smaller; ")
    tab.keyboard.press("Enter")
    row = tab.locator("tr:target")
    assert row.locator("th").text_content() == "ten" and row.is_visible()


def test_a_long_table_folds_to_the_frontier_and_a_mark_unfolds_it(opened, tmp_path):
    ratios = {f"t{i:02}": (2.0 + i, 0.001 * (i % 3)) for i in range(15)}
    tab = opened(built(tmp_path, ratios))
    front = {"base", "t14", "t13", "t12"}  # the smallest, and the smallest of each other loss
    assert set(column(tab, 1)) == front
    tab.locator("#results [name=filter]").fill("t0")
    assert column(tab, 1) == [f"t{i:02}" for i in range(10)]
    tab.locator("#results [name=filter]").fill("")
    assert set(column(tab, 1)) == front
    tab.locator("svg.marks a", has=tab.locator("use")).nth(6).focus()
    name = tab.locator("#tip b").text_content()
    assert name not in front
    tab.keyboard.press("Enter")
    assert tab.locator("tr:target th").text_content() == name and len(column(tab, 1)) == 16
    tab.get_by_role("button", name="Show only the frontier").first.click()
    assert set(column(tab, 1)) == front


def test_a_machine_is_chosen_where_there_are_several(opened, tmp_path):
    sweep, work = results.sweep(techniques=("here", "there")), Work(tmp_path / "work")
    for cell in sweep.cells:
        hardware = results.FACTS["hardware"] | {"cpu": "B" if cell.technique == "there" else "A"}
        results.publish(cell, work, facts=results.FACTS | {"hardware": hardware})
    report_data = frames.read(sweep, work)
    path = tmp_path / "index.html"
    path.write_bytes(page.html(sweep, report_data, {}, {}, sections.measured(sweep, report_data)))
    tab = opened(path)
    tab.get_by_label("Machine").select_option("B, 2 cores, AVX-512 VNNI")
    assert column(tab, 1) == ["there"] and tab.locator("a.mark:visible").count() == 1
    tab.get_by_label("Machine").select_option("A, 2 cores, AVX-512 VNNI")
    assert len(column(tab, 1)) == 2 and tab.locator("a.mark:visible").count() == 2
    tab.get_by_label("Machine").select_option("")
    assert len(column(tab, 1)) == 3 and tab.locator("a.mark:visible").count() == 3


def test_answers_and_marks_are_of_the_machine_that_is_chosen(opened, tmp_path):
    ratios = {"ten": (10.0, 0.002), "two": (2.0, 0.0)}
    work, sweep = Work(tmp_path / "work"), results.sweep(techniques=tuple(ratios))
    built(tmp_path, ratios)
    for cell in sweep.cells:  # on the board the small one is the slow one
        values = results.measured(cell, ratios.get(cell.technique, (1.0, 0.0))[0])
        slow = 3.0 if cell.technique == "ten" else 1.0
        times = {name: slow * value for name, value in values.items() if "artifact/all" in name}
        results.measure(cell, work, "board", "Cortex-A72", **values | times)
    path = report.build(sweep, work, tmp_path / "reports")[0].page
    tab = opened(path)
    fastest = tab.locator(".shown:visible article").last
    assert fastest.locator(".model").text_content() == "ten"
    here = fastest.locator("dd").nth(1).text_content()
    tab.locator("select[name=machine]").select_option(label="board (Cortex-A72, 4 cores, ASIMD)")
    assert tab.locator(".shown:visible").count() == 1
    there = fastest.locator("dd").nth(1).text_content()
    assert fastest.locator(".model").text_content() == "ten" and "faster" in here + there
    assert float(there.split()[0]) == pytest.approx(3 * float(here.split()[0]), rel=0.2)
    tab.locator("a.mark:visible").first.focus()
    assert there.split(" ms")[0] in tab.locator("#tip").text_content()
    tab.keyboard.press("Enter")
    row = tab.locator("tr:target")
    assert row.locator("th").text_content() == "ten on board" and row.is_visible()
    tab.emulate_media(media="print")
    assert tab.locator(".shown:visible").count() == 1


def test_seeds_of_several_machines_are_told_apart(opened, tmp_path):
    """A measured two of three seeds of one technique, and most cells; B all of them."""
    ratios = {"two": (2.0, 0.0), "ten": (10.0, 0.002)}
    sweep = results.sweep(techniques=tuple(ratios), seeds=(0, 1, 2))
    work = Work(tmp_path / "work")
    for cell in sweep.cells:
        ratio, drop = ratios.get(cell.technique, (1.0, 0.0))
        values = results.measured(cell, ratio, drop + 0.001 * cell.seed)
        lacks = cell.technique == "two" and cell.seed == 2
        unmeasured = {name: value for name, value in values.items() if name in TRAINED}
        results.publish(cell, work, unmeasured if lacks else values)
        if cell.technique == "two" or cell.is_base:
            results.measure(cell, work, "board", "Cortex-A72", **values)
    tab = opened(report.build(sweep, work, tmp_path / "reports")[0].page)
    lines = [" ".join(texts) for texts in zip(column(tab, 1), column(tab, 2), strict=True)]
    assert lines == ["base 3", "ten 3", "two on A-CPU-2c-vnni 2"]
    machine = tab.locator("select[name=machine]")
    machine.select_option(label="board (Cortex-A72, 4 cores, ASIMD)")
    assert column(tab, 1) == ["base on board", "two on board"] and column(tab, 2) == ["3", "3"]
    tab.locator("a.mark:visible").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("tr:target th").text_content() == "two on board"
    tab.reload()  # as one opens a link that was passed on
    assert machine.input_value() == "1" and tab.locator("tr:target").is_visible()
    machine.select_option("")
    assert column(tab, 1)[:3] == ["base", "two", "ten"] and len(column(tab, 1)) == 6


TRAINED = ("stored_bytes", "runnable_bytes", "parameters", "macs")


def test_columns_that_only_another_machine_has_are_there(opened, tmp_path):
    ratios = {"two": (2.0, 0.0)}
    built(tmp_path, ratios)
    sweep, work = results.sweep(techniques=("two",)), Work(tmp_path / "work")
    energy = "energy/onnxruntime/artifact/all/batch1"
    for cell in sweep.cells:
        results.measure(cell, work, "board", "Cortex-A72", **{energy: 0.0123})
    tab = opened(report.build(sweep, work, tmp_path / "reports")[0].page)
    tab.locator("select[name=machine]").select_option(label="board (Cortex-A72, 4 cores, ASIMD)")
    heads = tab.locator("#results-0-table tr.columns th").all_text_contents()
    at = 1 + next(i for i, text in enumerate(heads) if text.startswith("energy an image, batch 1,"))
    assert column(tab, at) == ["12.3", "12.3"]
    simulated = tab.locator("#simulated")
    assert (
        "Measured on A CPU, 2 cores, AVX-512 VNNI, whichever machine is chosen"
        in simulated.text_content()
    )
    assert column(tab, 1, "#simulated-0-table") == ["base", "two"]


def test_what_a_machine_did_not_measure_is_said(opened, tmp_path):
    datasets = ("mnist", "digits")
    path = built(tmp_path, {"two": (2.0, 0.0)}, datasets=datasets)
    sweep, work = results.sweep(techniques=("two",), datasets=datasets), Work(tmp_path / "work")
    for cell in sweep.cells:
        if cell.dataset.name == "digits":
            results.measure(cell, work, "board", "Cortex-A72")
    tab = opened(report.build(sweep, work, path.parent.parent)[0].page)
    tab.locator("select[name=machine]").select_option(label="board (Cortex-A72, 4 cores, ASIMD)")
    text = tab.locator(".shown:visible").text_content()
    assert "Nothing of it was measured on board (Cortex-A72, 4 cores, ASIMD)." in text
    tab.get_by_label("Data set").select_option("digits")
    assert tab.locator(".shown:visible article .number").count() == 3


def test_it_opens_with_the_first_that_has_an_answer(opened, tmp_path):
    sweep = results.sweep(techniques=("two",), datasets=("mnist", "digits"))
    work = Work(tmp_path / "work")
    for cell in sweep.cells:
        if cell.is_base or cell.dataset.name == "digits":
            results.publish(cell, work)
    tab = opened(report.build(sweep, work, tmp_path / "reports")[0].page)
    assert tab.get_by_label("Data set").input_value() == "digits"
    assert tab.locator(".shown:visible h3").all_text_contents() == ["digits, vgg16_bn"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_text_can_be_read_in_light_and_dark(small, opened, scheme, width):
    tab = opened(small, width, color_scheme=scheme)
    background = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (_luminance(_rgb(background)) < 0.05) == (scheme == "dark")
    seen = tab.evaluate(COLOURS)
    assert len(seen) > 3
    poor = [(text, fore, back) for text, fore, back in seen if _contrast(fore, back) < CONTRAST]
    assert poor == []
    image = tab.locator("figure:not(#figure-pictures) img").first
    inverted = "invert" in image.evaluate("(i) => getComputedStyle(i).filter")
    assert inverted == (scheme == "dark")
    tab.emulate_media(media="print")
    assert image.evaluate("(i) => getComputedStyle(i).filter") == "none"


# Every pair of colours in which text stands: [some of the text, its colour, what is behind it].
COLOURS = """() => {
  const clear = (colour) => colour === "rgba(0, 0, 0, 0)" || colour === "transparent";
  const pairs = new Map();
  for (const node of document.querySelectorAll("body *:not(script):not(figure a)")) {
    const text = [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
    if (!text.trim() || !node.getClientRects().length) continue;
    let behind = node;
    while (behind && clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const back = getComputedStyle(behind || document.documentElement).backgroundColor;
    const fore = getComputedStyle(node).color;
    pairs.set(fore + back, [text.trim().slice(0, 30), fore, back]);
  }
  return [...pairs.values()];
}"""


def _rgb(colour: str) -> list[float]:
    return [float(number) / 255 for number in re.findall(r"[\d.]+", colour)[:3]]


def _luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted(_luminance(_rgb(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_paper_has_every_line_and_no_controls(opened, tmp_path):
    path = many(tmp_path, techniques=450, seeds=1)
    tab = opened(path)
    assert column(tab, 1) == ["base", "technique-00448"]  # the frontier
    tab.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert column(tab, 1) == ["base", *(f"technique-{i:05}" for i in range(449))]
    assert not tab.locator("form.controls").first.is_visible()
    assert not tab.locator("nav").is_visible()
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(column(tab, 1)) < 450
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(data) > 50_000


def test_every_page_of_paper_names_the_columns_of_its_table(opened, tmp_path):
    tab = opened(many(tmp_path, techniques=200, seeds=1))
    tab.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    tab.emulate_media(media="print")
    shown = tab.locator("thead .columns th button").evaluate_all(
        "(all) => all.map((button) => getComputedStyle(button).display)"
    )
    assert set(shown) == {"contents"}  # a button is not drawn again at the head of another page
    if shutil.which("pdftotext"):
        command = ["pdftotext", "-layout", tmp_path / "page.pdf", "-"]
        pages = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [text for text in pages.split("\f") if "technique-00100" in text]
        assert lines and all("agreement" in text for text in lines)


def test_a_narrow_screen_shows_the_whole_name_of_each_card(opened, tmp_path):
    name = "small-dense-rate-longer-0.03125-0.3"
    tab = opened(built(tmp_path, {name: (10.0, 0.0)}), width=390)
    model = tab.locator("article.card .model").first
    button = tab.locator("article.card button").first.bounding_box()
    box = model.bounding_box()
    assert model.text_content() == name
    assert model.evaluate("(p) => p.scrollWidth <= p.clientWidth")
    assert box["y"] + box["height"] <= button["y"]


def test_no_table_is_wider_than_the_paper(small, opened):
    a4 = {"portrait": 794 - 2 * 53, "landscape": 1123 - 2 * 38}  # pixels between the margins
    for kind, width in a4.items():
        tab = opened(small, width)
        tab.emulate_media(media="print")
        inside = ".wide" if kind == "landscape" else "section:not(.wide) >"
        tables = tab.locator(f"{inside} .setting table")
        assert tables.count()
        widths = tables.evaluate_all("(all) => all.map((t) => t.getBoundingClientRect().width)")
        assert max(widths) <= width


# --- ten thousand results --------------------------------------------------------------------

SHAPES = [(20, 500, 1), (10_000, 1, 1), (100, 1, 100)]  # techniques, seeds, data sets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a shape, made once."""
    return cache(lambda shape: many(tmp_path_factory.mktemp("many"), *shape))


@pytest.mark.alone
@pytest.mark.parametrize("shape", SHAPES, ids=["20x500 seeds", "10,000 techniques", "100x100"])
def test_ten_thousand_results_open_in_three_seconds(browser, made, shape):
    path = made(shape)
    tab = browser.new_page()
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    tab.goto(path.as_uri())
    told = session.send("Performance.getMetrics")["metrics"]
    used = {metric["name"]: metric["value"] for metric in told}
    assert used["TaskDuration"] < OPENS_IN_S
    assert path.stat().st_size < 8e6
    techniques, seeds, settings = shape
    if seeds > 1:
        tab.locator("#results-0 button.fold").click()
        assert len(column(tab, 1)) == techniques
    marks = tab.locator(".mark").count()
    assert marks <= plot.MOST_MARKS
    notice = tab.locator(".plot .quiet", has_text=f"of {techniques:,} techniques are drawn")
    assert notice.count() == (settings if techniques * settings > plot.MOST_MARKS else 0)
    tab.close()


def test_ten_thousand_lines_are_sorted_and_found_among_all_of_them(opened, made):
    tab = opened(made((10_000, 1, 1)))
    assert len(column(tab, 1)) == 2
    tab.locator("#results-0 button.fold", has_text="Show all 10,000 rows").click()
    first = len(column(tab, 1))
    assert 100 <= first <= 200
    head(tab, "accuracy, %").get_by_role("button").click()
    assert column(tab, 1)[0] == "technique-09994"  # the first of those that show 100.00
    tab.locator("#results [name=filter]").fill("technique-0987")
    assert sorted(column(tab, 1)) == [f"technique-{i:05}" for i in range(9870, 9880)]
    tab.locator("#results [name=filter]").fill("")
    tab.locator("#results-0 button.more").click()
    assert len(column(tab, 1)) == first + 1000


def test_the_shipped_page_of_25_results_is_small():
    assert (CODE / "reports" / "paper" / "index.html").stat().st_size <= 1.5e6


# --- how it is installed ---------------------------------------------------------------------


def test_style_script_and_template_are_installed_with_the_code(tmp_path):
    code = tmp_path / "code"
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*", "tests", "reports", "runs")
    shutil.copytree(CODE, code, ignore=ignored)
    script = "from setuptools import setup; setup(script_args=['-q', 'build'])"
    subprocess.run([sys.executable, "-c", script], cwd=code, check=True)
    installed = code / "build" / "lib" / "pipeline" / "report"
    names = {path.name for path in installed.iterdir()}
    data = {"page.html.j2", "page.css", "page.js", "published.csv", "references.bib"}
    assert data <= names
