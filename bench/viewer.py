"""How fast the viewer answers with 10,000 trajectories, five selectors and 5,000 episodes.

The trajectories are made up, with the lengths of real ones: ten steps in the middle and some of thirty, observations of
some hundred characters and some of thousands, words as unevenly frequent as in any language. The report is opened from
disk in headless Chromium, anew for every run; the rival is the time that a reader is promised. Times are taken in the
page: from the start of the navigation, or from a change of a filter (the pause after a letter included), until what was
asked for is on the screen.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.report.html import write_report
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.results import build_results
from atlas_ray.report.site import SiteInput
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Category, Episode, GoldStep, Message, Selection, StopReason, Trajectory
from bench.table import Entry, parse, write_bench

FIRST_VIEW_MS = 2000.0
FILTER_MS = 300.0
ENVS = ("webshop", "alfworld", "babyai", "maze", "wordle", "sciworld", "textcraft", "weather", "movie", "todo")
SELECTORS = ("all", "gold", "random", "perplexity", "llm")
MODELS = ("base", "all", "gold", "random", "llm")

# In the page: resolves with the milliseconds until `test` holds and the frame that shows it has been drawn.
_UNTIL = """
const until = async (test, from) => {
  for (;;) {
    if (test()) break;
    if (performance.now() - from > 20000) throw new Error("not shown within 20 s");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  return performance.now() - from;
};
"""
_OPENED = "() => {" + _UNTIL + "return until(() => document.querySelector(SELECTOR)?.checkVisibility(), 0); }"
_CHANGED = (
    "async ([selector, value]) => {"
    + _UNTIL
    + """
  document.querySelector(".clear").click();
  await until(() => document.querySelector(".clear").hidden, performance.now());
  const rows = document.querySelector(".item"), from = performance.now();
  const field = document.querySelector(selector);
  field.value = value;
  field.dispatchEvent(new Event(field.tagName === "INPUT" ? "input" : "change", { bubbles: true }));
  return until(() => !rows.isConnected, from);
}"""
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the report, measures it and writes `bench/viewer.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=1000, help="of each of five models")
    parser.add_argument("--runs", type=int, default=7)
    given = parse(parser, arguments, trajectories=600, episodes=100, runs=1)
    if not shutil.which("chromium"):
        raise SystemExit("there is no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), given.trajectories, given.episodes)
        times = _measure(Path(folder), given.runs)
    limits = {"first view: overview": FIRST_VIEW_MS, "first view: list": FIRST_VIEW_MS, "one trajectory": FIRST_VIEW_MS}
    entries = [
        Entry(name, ms, [limits.get(name, FILTER_MS)], against="limit", unit="ms", better="lower")
        for name, ms in times.items()
    ]
    write_bench("viewer", entries, given.tiny)


def _make(folder: Path, count: int, episodes: int) -> None:
    rng = random.Random(0)
    trajectories = [_trajectory(rng, i) for i in range(count)]
    selections = {name: [_selection(rng, name, t) for t in trajectories] for name in SELECTORS}
    arms = [Arm(m, m, None, None, None, None, None, [_episode(rng, m, i) for i in range(episodes)]) for m in MODELS]
    whole = ReportInput(
        recipe="bench",
        seeds=[0],
        git_commit=None,
        versions={},
        seconds={},
        arms=arms,
        trajectories=trajectories,
        selections=selections,
        specs={env: EnvironmentSpec(env, "in", 15, "success", "first") for env in ENVS},
        n_expected=dict.fromkeys(ENVS, episodes // len(ENVS)),
    )
    results = build_results(whole)
    begun = time.monotonic()
    site = SiteInput(trajectories, selections, {arm.name: arm.episodes for arm in arms})
    write_report(RunFolder(str(folder)), results, site)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = [path for path in folder.rglob("*") if path.is_file()]
    text = sum(len(m.content) for t in trajectories for m in t.messages)
    steps = sorted(len(t.steps) for t in trajectories)
    size = sum(path.stat().st_size for path in files)
    print(
        f"{count} trajectories of {steps[count // 2]} steps (median; most {steps[-1]}), {text / count:.0f} characters: "
        f"{len(files)} files, {size / 2**20:.0f} MiB, written in {time.monotonic() - begun:.0f} s "
        f"in {peak / 1024:.0f} MiB of memory, records and figures included"
    )


def _measure(folder: Path, runs: int) -> dict[str, list[float]]:
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {}
    page_of = f"{folder.as_uri()}/index.html"
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        for _ in range(runs):
            for name, ms in _one_run(browser, page_of):
                times.setdefault(name, []).append(ms)
        browser.close()
    return times


def _one_run(browser: Any, address: str) -> Iterator[tuple[str, float]]:
    for name, place, selector in (
        ("first view: overview", "", ".answer"),
        ("one trajectory", "#/trajectory/maze%2Fmaze_503?selectors=gold,llm", "#step-2"),
        ("first view: list", "#/trajectories", ".row"),
    ):
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        page = context.new_page()
        page.goto(f"{address}{place}", wait_until="commit")
        yield name, page.evaluate(_OPENED.replace("SELECTOR", f"'{selector}'"))
        if name == "first view: list":
            for change, *asked in (
                ("filter: environment", "select[aria-label=Environment]", "maze"),
                ("filter: outcome", "select[aria-label=Outcome]", "failure"),
                ("filter: selector", 'select[aria-label="Chosen by"]', "llm"),
                ("search: frequent word, first", "input", "w1"),
                ("search: two words", "input", "w12 w734"),
                ("search: start of a word", "input", "w12"),
                ("search: id", "input", "maze_503"),
            ):
                yield change, page.evaluate(_CHANGED, asked)
        context.close()


def _words(rng: random.Random, count: float) -> str:
    """Words of a vocabulary of some 30,000, the k-th about 1/k as frequent as the first."""
    return " ".join(f"w{int(30_000 ** rng.random())}" for _ in range(max(1, round(count))))


def _conversation(rng: random.Random, env: str, steps: int) -> tuple[Message, ...]:
    turns = [Message("user", f"{env}: {_words(rng, 120)}"), Message("assistant", "OK")]
    for _ in range(steps):
        turns.append(Message("user", _words(rng, rng.lognormvariate(4, 0.8))))
        reply = f"Thought: {_words(rng, rng.lognormvariate(3.2, 0.5))}\nAction: {_words(rng, 4)}"
        turns.append(Message("assistant", reply, True))
    return (*turns, Message("user", "done"))


def _trajectory(rng: random.Random, number: int) -> Trajectory:
    env = ENVS[number % len(ENVS)]
    steps = min(40, max(2, round(rng.lognormvariate(2.3, 0.5))))
    gold = (GoldStep(1, 1, Category.PLAN_CREATION), GoldStep(steps, 2, Category.CRITICAL_ACTION))
    item = f"{env}_{number}"
    return Trajectory(f"{env}/{item}", env, item, _conversation(rng, env, steps), rng.choice([0.0, 0.5, 1.0]), gold)


def _selection(rng: random.Random, name: str, t: Trajectory) -> Selection:
    steps = range(1, len(t.steps) + 1)
    chosen = tuple(steps if name == "all" else sorted(rng.sample(steps, max(1, len(steps) * 3 // 10))))
    scores = tuple(rng.random() for _ in steps) if name in ("gold", "perplexity") else ()
    if name != "llm":
        return Selection(t.id, t.env, t.item_id, name, 0.3, len(steps), chosen, scores)
    error = "the reply names no step" if rng.random() < 0.01 else None
    shown = () if error else chosen
    plan, reason = _words(rng, 25), _words(rng, 60)
    return Selection(t.id, t.env, t.item_id, name, 0.3, len(steps), shown, plan=plan, reason=reason, error=error)


def _episode(rng: random.Random, model: str, number: int) -> Episode:
    env = ENVS[number % len(ENVS)]
    item, success = f"{env}_{20_000 + number}", rng.random() < 0.4
    messages = _conversation(rng, env, rng.randint(2, 15))
    stop = StopReason.DONE if success else StopReason.MAX_ROUNDS
    reward = float(success)
    return Episode(f"{env}/{item}@0", env, item, model, 0, 0, 0, messages, reward, reward, success, reward, 5, stop)


if __name__ == "__main__":
    main()
