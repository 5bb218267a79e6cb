"""What a selection by an LLM will cost, before it is run: from trajectories, or from the shape of data to come.

Flows in: a selector's section, and trajectories or their shapes; flows out: lines for `--dry-run`, and figures for a
recipe's plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_ray.errors import DataError
from atlas_ray.models.request import ChatMessages
from atlas_ray.selection.budget import budget
from atlas_ray.selection.llm.prompt import load_prompt
from atlas_ray.selection.llm.tokens import by_rule, counter, total
from atlas_ray.selection.llm.truncation import fitted
from atlas_ray.selection.protocol import Forecast
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Message, Trajectory, Usage

if TYPE_CHECKING:
    from atlas_ray.selection.llm.settings import LlmSettings

_TARIFF = {"live": "list price", "batch": "the price of batches"}
_REPLY_SECONDS = 8.0  # of one reply, where none has been timed
_REPLY_TOKENS = 400  # of a mean reply


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a selection would ask for, repairs not counted.

    Attributes:
        completion_tokens: At most (`max_tokens` a call).
        dollars: At most, at the price of the mode; None where the model's price is unknown.
        seconds: From concurrency and rate limits, at 8 s a reply.
        shortened: Trajectories that are longer than the model's context.
        too_long: Trajectories that will not be asked about, for they do not fit even so.
        by_rule: Whether tokens are counted by a rule for English, not by the model's tokenizer.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    seconds: float
    shortened: int
    too_long: int
    by_rule: bool


def estimate(trajectories: Iterable[Trajectory], config: LlmSettings) -> Estimate:
    """Calls, tokens, dollars and time of a selection, without a call.

    Raises:
        UserError: If prompt, price list, tokenizer or context are unusable.
    """
    prompt, known, form = load_prompt(config.prompt_file, config.prompt), config.price, config.reply_form
    count, limit = counter(config.tokenizer, config.model), config.prompt_limit
    asked = shortened = too_long = 0

    def prompts() -> Iterator[ChatMessages]:
        nonlocal asked, shortened, too_long
        for t in trajectories:
            try:
                messages, left_out = fitted(prompt, t, config.budget(t), form, limit, count)
            except DataError:
                too_long += 1
                continue
            asked += 1
            shortened += left_out > 0
            yield messages

    tokens = config.votes * total(prompts(), count)
    calls = config.votes * asked
    usage = Usage(prompt_tokens=tokens, completion_tokens=calls * config.max_tokens)
    endpoint = config.endpoint
    seconds = calls * _REPLY_SECONDS / min(endpoint.concurrency, calls or 1)
    if endpoint.requests_per_minute:
        seconds = max(seconds, 60 * calls / endpoint.requests_per_minute)
    if endpoint.tokens_per_minute:
        seconds = max(seconds, 60 * (tokens + usage.completion_tokens) / endpoint.tokens_per_minute)
    dollars = None if known is None else known.of(usage)
    return Estimate(
        calls, tokens, usage.completion_tokens, dollars, seconds, shortened, too_long, by_rule=count is by_rule
    )


def estimate_lines(config: LlmSettings, trajectories: Iterable[Trajectory]) -> list[str]:
    """The estimate in words."""
    found = estimate(trajectories, config)
    dollars = "an unknown price"
    if found.dollars is not None:
        dollars = f"at most ${found.dollars:,.2f} at {_TARIFF[config.mode]}"
    how = "by a rule for English" if found.by_rule else "by the tokenizer"
    lines = [
        f"{found.calls} calls of {config.model}: {found.prompt_tokens} prompt tokens ({how}), at most "
        f"{found.completion_tokens} completion tokens, {dollars}",
        f"{_pace(config, found)}; repairs not counted",
    ]
    if found.shortened or found.too_long:
        lines.append(
            f"{found.shortened} trajectories exceed the context: their observations are shortened; "
            f"{found.too_long} do not fit even so"
        )
    return lines


def forecast(config: LlmSettings, shapes: Mapping[str, Shape]) -> Forecast:
    """Calls, tokens and dollars for data of which the mean trajectories are known, by environment."""
    number = sum(s.trajectories for s in shapes.values())
    around = sum(s.trajectories * _prompt_tokens(config, round(s.steps)) for s in shapes.values())
    read = config.votes * (sum(s.trajectories * s.tokens for s in shapes.values()) + around)
    calls, written = config.votes * number, config.votes * number * _REPLY_TOKENS
    words = (
        f"{calls:,.0f} calls of {config.model}: {read / 1e6:.1f} M prompt tokens = trajectories + "
        f"{around / max(1, number):,.0f} each, {written / 1e6:.1f} M completion tokens = {_REPLY_TOKENS} each"
    )
    if config.engine is not None:
        return Forecast(words, read=read, written=written)
    known = config.price
    dollars = known.of(Usage(prompt_tokens=round(read), completion_tokens=round(written))) if known else 0.0
    return Forecast(words if dollars else f"{words}, at an unknown price", calls=calls, dollars=dollars)


def _prompt_tokens(config: LlmSettings, n_steps: int) -> int:
    """Of the prompt around a trajectory, and of the labels in it."""
    turns = [Message("user", ""), *[Message("assistant", "", True), Message("user", "")] * n_steps]
    prompt = load_prompt(config.prompt_file, config.prompt)
    return by_rule(prompt.messages(Trajectory("", "", "", tuple(turns)), budget(config.ratio, n_steps)))


def _pace(config: LlmSettings, found: Estimate) -> str:
    """How long it will take, and why."""
    if config.engine is not None:
        return f"{config.engine.replicas} engines of our own, at their speed"
    if config.mode == "batch":
        return "in batches, which take up to 24 h each"
    minutes, limits = max(1, round(found.seconds / 60)), config.endpoint
    rates = [f"{limits.concurrency} calls at once and {_REPLY_SECONDS:g} s a reply"]
    rates += [f"{limits.requests_per_minute:g} requests a minute"] if limits.requests_per_minute else []
    rates += [f"{limits.tokens_per_minute:g} tokens a minute"] if limits.tokens_per_minute else []
    return f"about {minutes} min at {', '.join(rates)}"
