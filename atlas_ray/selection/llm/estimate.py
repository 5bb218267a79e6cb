"""What a selection will cost, before it is run. Flows in: a configuration; flows out: lines for `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from atlas_ray.errors import DataError
from atlas_ray.models.prices import price_of
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.budget import budget
from atlas_ray.selection.llm.judge import form_of, room_of
from atlas_ray.selection.llm.prompt import ChatMessages, load_prompt
from atlas_ray.selection.llm.tokens import by_rule, counter, total
from atlas_ray.selection.llm.truncation import fitted
from atlas_ray.selection.settings import LlmSelector, PerplexitySelector, SelectConfig, ValueSelector
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected, rejected_figures
from atlas_ray.types import Trajectory, Usage

_TARIFF = {"live": "list price", "batch": "the price of batches"}
_REPLY_SECONDS = 8.0  # of one reply, where none has been timed


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


def estimate(trajectories: Sequence[Trajectory], config: LlmSelector) -> Estimate:
    """Calls, tokens, dollars and time of a selection, without a call.

    Raises:
        UserError: If prompt, price list, tokenizer or context are unusable.
    """
    prompt, known, form = load_prompt(config.prompt_file, config.prompt), price_of(config), form_of(config)
    count, room = counter(config.tokenizer, config.model), room_of(config)
    shortened = too_long = 0

    def prompts() -> Iterator[ChatMessages]:
        nonlocal shortened, too_long
        for t in trajectories:
            try:
                messages, left_out = fitted(prompt, t, budget(config.ratio, len(t.steps)), form, room, count)
            except DataError:
                too_long += 1
                continue
            shortened += left_out > 0
            yield messages

    tokens = config.votes * total(prompts(), len(trajectories), count)
    calls = config.votes * (len(trajectories) - too_long)
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


def estimate_lines(config: SelectConfig) -> list[str]:
    """Trajectories, model calls, tokens and dollars still to come; nothing is called.

    Raises:
        UserError: If the data cannot be read.
    """
    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    refused = rejected_figures(rejected)["rejected"]
    folder = RunFolder(config.run)
    done = folder.done(SELECTIONS) if folder.exists else set()
    todo = [t for t in trajectories if t.id not in done]
    steps = sum(len(t.steps) for t in todo)
    lines = [f"{len(todo)} trajectories with {steps} steps to judge, {len(done)} done, {refused} rows rejected"]
    selector = config.selector
    if getattr(selector, "scores", None):
        lines.append("scores are read again: no model call, no dollars")
    elif isinstance(selector, LlmSelector):
        found = estimate(todo, selector)
        tariff = _TARIFF[selector.mode]
        dollars = "an unknown price" if found.dollars is None else f"at most ${found.dollars:,.2f} at {tariff}"
        how = "by a rule for English" if found.by_rule else "by the tokenizer"
        lines.append(
            f"{found.calls} calls of {selector.model}: {found.prompt_tokens} prompt tokens ({how}), at most "
            f"{found.completion_tokens} completion tokens, {dollars}"
        )
        lines.append(f"{_pace(selector, found)}; repairs not counted")
        if found.shortened or found.too_long:
            lines.append(
                f"{found.shortened} trajectories exceed the context: their observations are shortened; "
                f"{found.too_long} do not fit even so"
            )
    elif isinstance(selector, ValueSelector):
        whole = f"{steps * selector.rollouts} rollouts: {selector.rollouts} from each of {steps} starts"
        lines.append(whole if selector.mode == "exhaustive" else f"fewer than the exhaustive mode's {whole}")
    elif isinstance(selector, PerplexitySelector):
        lines.append(f"{len(todo)} forward passes, one a trajectory")
    else:
        lines.append("no model call, no dollars")
    return lines


def _pace(selector: LlmSelector, found: Estimate) -> str:
    """How long it will take, and why."""
    if selector.engine is not None:
        return f"{selector.engine.replicas} engines of our own, at their speed"
    if selector.mode == "batch":
        return "in batches, which take up to 24 h each"
    minutes, limits = max(1, round(found.seconds / 60)), selector.endpoint
    rates = [f"{limits.concurrency} calls at once and {_REPLY_SECONDS:g} s a reply"]
    rates += [f"{limits.requests_per_minute:g} requests a minute"] if limits.requests_per_minute else []
    rates += [f"{limits.tokens_per_minute:g} tokens a minute"] if limits.tokens_per_minute else []
    return f"about {minutes} min at {', '.join(rates)}"
