"""The report in a browser, from disk: found, compared and linked, by mouse and by key; nothing foreign runs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from atlas_ray.report.tables import Cell, Column, Table
from atlas_ray.types import Message, ToolCall, Trajectory
from tests.support.viewer_records import HOSTILE_ID, IMAGE, SCRIPT, selection, site, write

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def need(found: Any, what: str) -> None:
    """CI installs a browser, so there its absence is a failure."""
    if not found:
        said = f"needs {what}"
        pytest.fail(said) if os.environ.get("CI") == "true" else pytest.skip(said)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need(BROWSER, "chromium (apt-get install chromium)")
    need(importlib.util.find_spec("playwright"), "playwright (the dev extra)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        launched = running.chromium.launch(executable_path=BROWSER, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("report")
    write(where, site())
    return where


class Viewer:
    """A page on the report that notes what must not happen."""

    def __init__(self, browser: Any, folder: Path, **options: Any) -> None:
        self.root = folder.as_uri()
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        self.context.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, place: str = "") -> Any:
        self.page.goto(f"{self.root}/index.html{place}")
        return self.page

    def see(self, selector: str, text: str) -> None:
        """Waits until an element with that text is in sight."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def close(self) -> None:
        assert self.complaints == []
        assert self.requests
        assert all(url.startswith(f"{self.root}/") for url in self.requests)
        assert self.page.evaluate("window.hit") is None
        self.context.close()


@pytest.fixture
def viewer(browser: Any, folder: Path) -> Iterator[Viewer]:
    found = Viewer(browser, folder)
    yield found
    found.close()


def test_the_overview_answers_first_and_leads_on(viewer: Viewer) -> None:
    page = viewer.open()
    viewer.see("h1", "Do critical steps make the better agent?")
    assert "303 trajectories" in viewer.text(".counts").replace("\n", " ")
    assert not page.locator("#tables").is_visible()
    page.get_by_role("link", name="Tables").click()
    viewer.see("#tables figcaption", "Table 1 </script>")
    page.get_by_role("link", name="Figures").click()
    viewer.see("#figures figcaption", "Figure 2 </script>")
    assert page.url.endswith("#/figures")


def test_a_trajectory_is_found_by_a_word_of_its_text(viewer: Viewer) -> None:
    page = viewer.open("#/trajectories")
    viewer.see(".count", "303 trajectories")
    assert 10 < viewer.count(".item") < 60  # no more rows than a screen holds, however many there are
    page.get_by_role("searchbox").fill("XYLO door")
    viewer.see(".count", "1 of 303 trajectories")
    page.locator(".row").click()
    viewer.see("#detail h1", "maze/maze_217")
    assert viewer.text("mark").lower() == "door"
    assert "?q=XYLO%20door" in page.url
    page.get_by_role("searchbox").fill("maze_217")
    viewer.see(".row", "maze/maze_217")
    page.get_by_role("searchbox").fill("maze_21")  # two letters are a word, three the start of one
    viewer.see(".row", "maze/maze_21")
    viewer.see(".count", "1 of 303 trajectories")
    page.get_by_role("searchbox").fill("nowhere")
    viewer.see(".count", "0 of 303 trajectories")


def test_a_far_row_is_drawn_when_it_is_scrolled_to(viewer: Viewer) -> None:
    page = viewer.open("#/trajectories")
    viewer.see(".count", "303")
    page.locator(".rows").evaluate("node => { node.scrollTop = node.scrollHeight; }")
    viewer.see(".row", "wordle/wordle_8")
    assert viewer.count(".item") < 60


def test_filters_narrow_the_list_and_stand_in_the_link(viewer: Viewer) -> None:
    page = viewer.open("#/trajectories")
    page.get_by_label("Environment").select_option("wordle")
    viewer.see(".count", "2 of 303")
    page.get_by_label("Outcome").select_option("failure")
    viewer.see(".count", "1 of 303")
    assert page.url.endswith("#/trajectories?env=wordle&outcome=failure")
    page.get_by_label("Chosen by").select_option("gold")
    viewer.see(".row", "wordle/wordle_7")
    page.get_by_role("link", name="Clear").click()
    viewer.see(".count", "303 trajectories")
    page.get_by_label("Chosen by").select_option("llm")
    viewer.see(".count", "302 of 303")  # one answer of the model could not be used


def test_two_selectors_stand_side_by_side_on_one_trajectory(viewer: Viewer) -> None:
    page = viewer.open("#/trajectory/maze%2Fmaze_3")
    viewer.see("#detail h1", "maze/maze_3")
    assert viewer.count(".step") == 5
    assert viewer.count(".loss-a.reply") == 2  # gold chose 2 and 4
    page.get_by_label("Selector B").select_option("llm")
    viewer.see(".agreement", "Both choose 1 · only gold 1 · only llm 1 · neither 2")
    tints = [step.get_attribute("class") for step in page.locator(".step .reply").all()]
    assert tints == ["reply loss-b", "reply loss-both", "reply", "reply loss-a", "reply"]
    assert "doors matter" in viewer.text(".accounts")
    assert viewer.text("#step-2 .lane.a").split("\n") == ["gold", "chosen", "score 2", "Plan Creation"]
    assert viewer.text("#step-3 .lane.b").split("\n") == ["llm", "not chosen"]
    assert viewer.count(".end") == 3
    assert "expert: Plan Creation, rank 1" in viewer.text("#step-2 header")
    page.get_by_label("Steps").select_option("differ")
    viewer.see(".note", "3 steps left out")
    assert viewer.count(".step") == 2
    assert page.url.endswith("?selectors=gold,llm&steps=differ")


def test_a_failed_and_an_absent_selection_are_said(viewer: Viewer) -> None:
    viewer.open(f"#/trajectory/wordle%2Fwordle_8?selectors=llm,{quote(f'odd,{IMAGE}', safe='')}")
    viewer.see(".account .error", "the reply names no step")
    viewer.see(".account:nth-child(2)", "No selection for this trajectory.")


def test_text_of_others_is_shown_and_never_run(viewer: Viewer) -> None:
    page = viewer.open(f"#/trajectory/{quote(HOSTILE_ID, safe='')}?selectors=gold,llm")
    viewer.see("#detail h1", HOSTILE_ID)
    assert SCRIPT in viewer.text("#step-2 .turn.user")
    assert IMAGE in viewer.text("#step-2 .turn.user")
    assert SCRIPT in viewer.text(".account:nth-child(2)")
    assert IMAGE in viewer.text(".bar #name")
    assert SCRIPT in page.get_by_label("Environment").inner_text()
    viewer.see(".row .id", HOSTILE_ID)
    viewer.open(f"#/episode/{quote(f'model{IMAGE}', safe='')}/maze%2Fmaze_901%400")
    viewer.see("#detail h2", f"model{IMAGE}")
    viewer.see(".turn.user", SCRIPT)
    assert page.locator("img").count() == 0
    assert page.locator("script:not([src])").count() == 0


def test_no_script_but_the_folder_s_runs_and_nothing_is_loaded(browser: Any, folder: Path) -> None:
    viewer = Viewer(browser, folder)
    page = viewer.open()
    stopped = page.evaluate(
        """async () => {
        const stopped = new Set();
        const all = new Promise((resolve) => document.addEventListener("securitypolicyviolation", (event) => {
            stopped.add(event.effectiveDirective);
            if (stopped.size === 3) resolve();
        }));
        const script = document.createElement("script");
        script.textContent = "window.hit = 3";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
        await fetch("http://127.0.0.1:9/").catch(() => null);
        await all;
        return [...stopped].sort();
        }"""
    )
    assert stopped == ["connect-src", "img-src", "script-src-elem"]
    assert page.evaluate("window.hit") is None
    viewer.context.close()


def test_two_models_stand_side_by_side_on_one_task(viewer: Viewer) -> None:
    page = viewer.open("#/episodes")
    viewer.see(".count", "9 episodes")
    page.get_by_label("Stopped by").select_option("env_error")
    viewer.see(".count", "3 of 9")
    assert viewer.text(".row .badge") == "excluded"
    page.get_by_label("Stopped by").select_option("")
    page.get_by_label("Model").select_option("base")
    viewer.see(".count", "3 of 9")
    page.locator(".row", has_text="maze_900").click()
    viewer.see("#detail h2", "base")
    page.get_by_label("Beside it").select_option("gold")
    viewer.see(".agreement", "The actions first differ at step 3.")
    assert viewer.count(".column") == 2
    assert viewer.text(".column .chip") == "failure"
    assert "stopped by done" in viewer.text(".column")
    assert page.url.endswith("#/episode/base/maze%2Fmaze_900%400?model=base&with=gold")


def test_keys_do_what_the_mouse_does(viewer: Viewer) -> None:
    page = viewer.open()
    page.keyboard.press("4")
    viewer.see(".count", "303")
    page.keyboard.press("/")
    page.locator("input:focus").wait_for()
    page.keyboard.type("wordle")
    page.keyboard.press("Escape")
    viewer.see(".count", "2 of 303")
    assert page.url.endswith("#/trajectories?q=wordle")
    page.keyboard.press("j")
    viewer.see("#detail h1", "wordle/wordle_7")
    page.keyboard.press("j")
    viewer.see("#detail h1", "wordle/wordle_8")
    page.keyboard.press("k")
    viewer.see("#detail h1", "wordle/wordle_7")
    page.keyboard.press("c")
    assert page.evaluate("document.activeElement.id") == "step-2"
    page.keyboard.press("n")
    page.keyboard.press("?")
    viewer.see("dialog", "next, previous trajectory")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    page.keyboard.press("Escape")
    viewer.see("#detail .hint", "Choose one")
    assert page.url.endswith("#/trajectories?q=wordle")


def test_a_shared_link_opens_the_same_view(viewer: Viewer, browser: Any, folder: Path) -> None:
    page = viewer.open("#/trajectories?env=maze&q=door")
    viewer.see(".count", "300 of 303")
    page.locator(".row").nth(4).click()
    viewer.see("#detail h1", "maze/maze_4")
    page.get_by_label("Selector A").select_option("llm")
    viewer.see(".accounts", "doors matter")
    other = Viewer(browser, folder)
    other.open(page.url.removeprefix(f"{viewer.root}/index.html"))
    other.see(".accounts", "doors matter")
    for part in ("#detail", ".count", ".row[aria-current]"):
        assert other.text(part) == viewer.text(part)
    other.close()


def test_a_link_to_what_is_not_there_says_so(viewer: Viewer) -> None:
    viewer.open("#/trajectory/maze%2Fnone")
    viewer.see("#detail .error", "This report holds no trajectory maze/none.")
    viewer.open("#/episode/gold/maze/%E0%A4")
    viewer.see("#detail .error", "This report holds no episode")


def test_light_and_dark_follow_the_system_until_one_is_chosen(browser: Any, folder: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    viewer = Viewer(browser, folder, color_scheme="dark")
    page = viewer.open()
    assert page.evaluate(ground) == "rgb(23, 24, 26)"
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(ground) == "rgb(253, 252, 249)"
    viewer.open("#/trajectories")
    page.reload()
    assert page.evaluate(ground) == "rgb(253, 252, 249)"
    page.keyboard.press("t")
    assert page.evaluate(ground) == "rgb(23, 24, 26)"
    viewer.close()


def test_on_a_phone_every_tab_is_in_sight_and_a_wide_table_shows_that_it_scrolls(browser: Any, tmp_path: Path) -> None:
    wide = Table("Wide", [Column(f"column {i}") for i in range(20)], [[Cell("figure")] * 20])
    write(tmp_path, site(many=3, tables=[wide]))
    viewer = Viewer(browser, tmp_path, viewport={"width": 390, "height": 800})
    page = viewer.open("#/tables")
    tabs = [tab.bounding_box() for tab in page.locator(".views a").all()]
    assert len(tabs) == 5
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in tabs)
    buttons = page.locator(".tools").bounding_box()
    assert all(box["y"] >= buttons["y"] + buttons["height"] or box["x"] + box["width"] <= buttons["x"] for box in tabs)
    page.locator(".views a", has_text="Episodes").click()
    viewer.see(".count", "9")
    viewer.open("#/tables")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#tables-1 .scroll")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")

    def edge() -> tuple[int, int, int]:
        """The colour in the middle of the table's right edge."""
        box.screenshot(path=str(tmp_path / "table.png"))
        image = Image.open(tmp_path / "table.png").convert("RGB")
        red, green, blue = image.getpixel((image.width - 2, image.height // 2))
        return red, green, blue

    begun = edge()
    box.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    assert sum(begun) < sum(edge()) - 60  # darker as long as more follows
    viewer.close()


def test_an_empty_report_opens_too(browser: Any, tmp_path: Path) -> None:
    write(tmp_path, site(trajectories=[], selections={}, episodes={}))
    viewer = Viewer(browser, tmp_path)
    viewer.open("#/trajectories?q=door")
    viewer.see("#detail", "This report holds none.")
    viewer.close()


def test_calls_of_tools_and_their_results_are_drawn_as_such(browser: Any, tmp_path: Path) -> None:
    given = {"q": IMAGE, SCRIPT: {"n": [1]}}
    calls = (ToolCall("search", json.dumps(given), "a"), ToolCall(f"look{IMAGE}", "{}", "b"))
    called = Trajectory(
        *("kitchen/1", "kitchen", "1"),
        (
            Message("user", "Find X"),
            Message("assistant", "", True, f"Where? {SCRIPT}", calls),
            Message("tool", f"3 {IMAGE}", call_id="a"),
            Message("tool", "", call_id="b"),
            Message("assistant", "X is 3.", True),
        ),
    )
    write(tmp_path, site(trajectories=[called], selections={"gold": [selection("gold", called, 1)]}))
    viewer = Viewer(browser, tmp_path)
    page = viewer.open("#/trajectory/kitchen%2F1")
    viewer.see("#detail h1", "kitchen/1")
    first = page.locator("#step-1")
    assert first.locator(".reply.loss-a .call .name").all_inner_texts() == ["search", f"look{IMAGE}"]
    assert first.locator(".arguments dt").all_inner_texts() == ["q", SCRIPT]
    assert [" ".join(text.split()) for text in first.locator(".arguments dd").all_inner_texts()] == [
        IMAGE,
        '{ "n": [ 1 ] }',
    ]
    assert first.locator(".thought .text").inner_text() == f"Where? {SCRIPT}"
    assert first.locator(".action").count() == 0
    results = page.locator("#step-2 .turn.tool")
    assert results.locator(".name").all_inner_texts() == ["search", f"look{IMAGE}"]
    assert results.locator(".text").all_inner_texts() == [f"3 {IMAGE}", "(empty)"]
    assert page.locator("#step-2 .action .text").inner_text() == "X is 3."
    viewer.close()
