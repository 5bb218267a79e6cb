"""What a selection will cost: prices, token counts, the estimate, long trajectories, and replies shared by runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.errors import AtlasError, DataError, UserError
from atlas_ray.models.prices import price
from atlas_ray.selection.estimate import estimate_lines
from atlas_ray.selection.llm.estimate import estimate
from atlas_ray.selection.llm.prompt import load_prompt
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.llm.tokens import by_rule, counter, text_tokens, total
from atlas_ray.selection.llm.truncation import fitted
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.types import Message, Trajectory, Usage
from tests.selection.llm.test_llm_answers import GOOD
from tests.selection.test_selection import expert
from tests.support.fake_endpoint import FakeEndpoint, ask, chosen


def test_list_prices() -> None:
    assert price("gpt-4o-2024-08-06") == price("gpt-4o")
    assert price("gpt-4o-2024-05-13") != price("gpt-4o")
    assert price("gpt-3.5-turbo-0125") == price("gpt-3.5-turbo")
    assert price("my-model") is None
    known = price("gpt-4o")
    assert known is not None
    assert (known.context, known.structured, known.batch_discount) == (128_000, True, 0.5)
    assert known.of(Usage(1_000_000, 400_000, 100_000)) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 0.1 * 10)


def test_a_users_own_prices_go_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"models": {"gpt-4o": {"prompt": 1, "completion": 2}, "mine": {"prompt": 3, "completion": 4}}}')
    own = price("gpt-4o", str(file))
    assert own is not None
    assert (own.prompt, own.cached, own.completion, own.context) == (1, 1, 2, None)
    assert price("mine", str(file)) is not None
    assert price("gpt-4.1", str(file)) == price("gpt-4.1")
    for i, (text, why) in enumerate((("{", "cannot be used"), ('{"models": {"m": {"prompt": -1}}}', "models"))):
        bad = tmp_path / f"bad{i}.json"
        bad.write_text(text)
        with pytest.raises(UserError, match=why):
            price("m", str(bad))
    with pytest.raises(UserError, match="cannot be used"):
        price("m", str(tmp_path / "nothing.json"))


# Counted by tiktoken 0.14 with o200k_base, four tokens around each message and three before the reply.
_O200K = {"text": 769, "json": 762}


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_rule_counts_a_prompt_as_openai_does(form: Any) -> None:
    assert by_rule(load_prompt().messages(expert(10), 3, form)) == pytest.approx(_O200K[form], rel=0.02)


def test_the_rule_by_kind_of_text() -> None:
    assert text_tokens("") == 0
    assert text_tokens("The lamp is on the table.") == 7
    assert text_tokens("12345 678") == 4  # 123, 45, a space, 678
    assert text_tokens("\n\n") == 1


def test_a_large_set_is_counted_by_a_sample() -> None:
    prompt = load_prompt()
    prompts = [prompt.messages(expert(4 + i % 27, i), 3) for i in range(1200)]
    counted: list[int] = []

    def count(messages: Any) -> int:
        counted.append(1)
        return by_rule(messages)

    assert total(prompts, count) == pytest.approx(sum(map(by_rule, prompts)), rel=0.01)
    assert len(counted) < 500
    assert total([], by_rule) == 0


def test_the_estimate() -> None:
    data = [expert(10, i) for i in range(4)]
    found = estimate(data, LlmSelector(max_tokens=100))
    assert (found.calls, found.completion_tokens, found.by_rule) == (4, 400, True)
    assert found.prompt_tokens == pytest.approx(4 * _O200K["json"], rel=0.02)
    assert found.dollars == pytest.approx(found.prompt_tokens * 2.5e-6 + 400 * 1e-5)
    assert found.seconds == 8.0
    assert estimate(data, LlmSelector(model="my-model")).dollars is None
    papers = estimate(data, LlmSelector(max_tokens=100, prompt="paper"))
    assert papers.prompt_tokens == sum(by_rule(load_prompt(name="paper").messages(t, 3)) for t in data)
    assert papers.prompt_tokens != found.prompt_tokens
    voted = estimate(data, LlmSelector(max_tokens=100, votes=3))
    assert (voted.calls, voted.prompt_tokens) == (12, 3 * found.prompt_tokens)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"concurrency": 1}, 32.0),
        ({"requests_per_minute": 2}, 120.0),
        ({"tokens_per_minute": 1000, "concurrency": 1}, 0.06 * (4 * _O200K["json"] + 400)),
    ],
)
def test_the_time_follows_the_slowest_limit(limits: dict[str, float], seconds: float) -> None:
    config = LlmSelector.model_validate({"max_tokens": 100, "endpoint": limits})
    assert estimate([expert(10, i) for i in range(4)], config).seconds == pytest.approx(seconds, rel=0.02)


def test_a_local_models_own_tokenizer_counts_exactly(tiny_models: tuple[str, str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models[0])
    data = [expert(4 + i % 20, i) for i in range(50)]
    messages = [load_prompt().messages(t, max(1, 3 * len(t.steps) // 10)) for t in data]
    real = sum(len(tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False)) for m in messages)
    by_model = estimate(data, LlmSelector(model=tiny_models[0]))
    assert (by_model.prompt_tokens, by_model.by_rule) == (real, False)
    named = estimate(data, LlmSelector(model="served-name", tokenizer=tiny_models[0]))
    assert named.prompt_tokens == real


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer .* cannot be used"):
        counter(str(tmp_path), "m")


def test_a_dry_run_makes_no_call(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    config = ask(tmp_path, endpoint.port, trajectories=6, votes=2, endpoint={"requests_per_minute": 4})
    lines = "\n".join(estimate_lines(config))
    for words in ("6 trajectories with 60 steps", "12 calls of gpt-4o", "by a rule for English", "at most $", "3 min"):
        assert words in lines
    assert "64 calls at once and 8 s a reply, 4 requests a minute" in lines
    assert endpoint.calls == []
    assert not (tmp_path / "run").exists()


def test_max_cost_on_the_command_line(tmp_path: Path) -> None:
    plan = CliRunner().invoke(app, ["select", "--data", str(tmp_path / "data"), "--max-cost", "2.5", "--dry-run"])
    assert "holds no" in str(plan.exception) or "data" in str(plan.exception)
    ask(tmp_path, 1)
    plan = CliRunner().invoke(app, ["select", "--data", str(tmp_path / "data"), "--max-cost", "2.5", "--dry-run"])
    assert "max_cost: 2.5" in plan.output


def talkative(characters: int, n_steps: int = 6) -> Trajectory:
    """An expert whose third observation is a long page, and the fifth half of one."""
    turns = list(expert(n_steps).messages)
    pages = {
        6: "<begin>" + "word " * (characters // 5) + "<end>",
        10: "<head>" + "note " * (characters // 10) + "<tail>",
    }
    for position, page in pages.items():
        turns[position] = Message("user", page)
    return replace(expert(n_steps), messages=tuple(turns))


def test_long_trajectories_lose_the_middle_of_long_observations_alone() -> None:
    prompt, trajectory = load_prompt(), talkative(40_000)
    room = 5_000
    messages, left_out = fitted(prompt, trajectory, 2, "text", room, by_rule)
    text = messages[1]["content"]
    assert 0.9 * room < by_rule(messages) * 1.05 <= room
    for kept in ("<begin>", "<end>", "<head>", "<tail>", "Find the way.", "You are at 1, 1.", "You are at 3."):
        assert kept in text
    assert all(m.content in text for m in trajectory.messages if m.role == "assistant")
    marks = [line for line in text.splitlines() if line.startswith("[...")]
    assert len(marks) == 2
    assert all(mark.endswith(" characters left out ...]") for mark in marks)
    whole = sum(len(m.content) for m in trajectory.messages)
    assert left_out == sum(int(mark.split()[1].replace(",", "")) for mark in marks)
    assert 0 < left_out < whole


def test_what_fits_stays_whole() -> None:
    prompt = load_prompt()
    for room in (None, 100_000):
        assert fitted(prompt, talkative(9_000), 2, "text", room, by_rule) == (prompt.messages(talkative(9_000), 2), 0)


def test_what_does_not_fit_even_so_is_said() -> None:
    with pytest.raises(DataError, match="even with its observations cut"):
        fitted(load_prompt(), talkative(9_000, n_steps=60), 2, "text", 700, by_rule)


@pytest.mark.usefixtures("ray_cluster")
def test_shortened_trajectories_are_recorded_and_counted(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    from tests.selection.test_selection import data_in

    long, huge = replace(talkative(40_000, 10), id="maze/long"), replace(talkative(10, 200), id="maze/huge")
    data_in(tmp_path / "data", [expert(10), replace(long, item_id="long"), replace(huge, item_id="huge")])
    config = ask(tmp_path, endpoint.port, context=4_500, max_tokens=200)
    found = chosen(config)
    assert found["maze_0"].shortened == 0
    assert found["long"].shortened > 30_000
    assert (found["huge"].error or "").startswith("too long")
    assert len(endpoint.calls) == 2
    figures = select_steps(config).finished or {}
    assert (figures["shortened"], figures["errors"]) == (1, {"too long": 1})
    lines = "\n".join(estimate_lines(config))
    assert "1 do not fit even so" in lines
    with pytest.raises(UserError, match="leaves no room"):
        chosen(ask(tmp_path / "none", endpoint.port, context=2_000))


def test_replies_are_shared_by_runs_that_name_one_cache(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    cache = str(tmp_path / "cache")
    first = ask(tmp_path, endpoint.port, cache=cache)
    assert len(chosen(first)) == len(endpoint.calls) == 4
    second = first.model_copy(update={"run": str(tmp_path / "second")})
    found = chosen(second)
    assert len(endpoint.calls) == 4
    assert {s.chosen for s in found.values()} == {(2, 7)}
    assert sum((s.usage for s in found.values()), Usage()) == Usage()  # they cost this run nothing
    other = ask(tmp_path / "other", endpoint.port, cache=cache, temperature=0.5)
    assert len(chosen(other)) == 4
    assert len(endpoint.calls) == 8


def test_what_can_change_a_judgement_is_part_of_its_key(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    cache = str(tmp_path / "cache")
    own = tmp_path / "own.j2"
    own.write_text("{{ conversation }} choose {{ max_steps }}")
    variants: list[dict[str, Any]] = [
        {},
        {"model": "gpt-4o-mini"},
        {"temperature": 0.1},
        {"max_tokens": 900},
        {"structured": "text"},
        {"ratio": 0.4},
        {"prompt": "paper"},
        {"prompt_file": str(own)},
        {"endpoint": {"base_url": f"http://localhost:{endpoint.port}/v1"}},
    ]
    for i, variant in enumerate(variants):
        endpoint.calls.clear()
        for again in ("a", "b"):
            chosen(ask(tmp_path / f"{i}{again}", endpoint.port, trajectories=1, cache=cache, **dict(variant)))
        asked = [c for c in endpoint.calls if len(c["messages"]) <= 2]
        assert len(asked) == 1, variant


def test_usage_is_what_the_endpoint_reports(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    def answer(body: dict[str, Any], call: int) -> web.Response:
        usage = {"prompt_tokens": 900, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 800}}
        message = {"role": "assistant", "content": GOOD}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    endpoint.answer = answer
    config = ask(tmp_path, endpoint.port, trajectories=3)
    chosen(config)
    select_steps(config)
    usage = json.loads((tmp_path / "run" / "finished.json").read_text())["usage"]
    assert usage == {
        "prompt_tokens": 2700,
        "cached_tokens": 2400,
        "completion_tokens": 150,
        "calls": 3,
        "cost": pytest.approx(3 * (100 * 2.5e-6 + 800 * 1.25e-6 + 50 * 1e-5)),
    }


def test_a_server_that_asks_to_wait_too_long_stops_the_stage(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda body, call: web.Response(status=429, headers={"Retry-After": "7200"})
    with pytest.raises(AtlasError, match="asks to wait 7200 s"):
        chosen(ask(tmp_path, endpoint.port))
