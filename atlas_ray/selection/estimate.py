"""What a selection will cost, before it is run. Flows in: a configuration; flows out: lines for `--dry-run`."""

from __future__ import annotations

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm import estimate
from atlas_ray.selection.settings import LlmSelector, PerplexitySelector, SelectConfig, ValueSelector
from atlas_ray.trajectories.readers import Rejected, read_trajectories


def estimate_lines(config: SelectConfig) -> list[str]:
    """Trajectories, model calls, tokens and dollars still to come; nothing is called.

    Raises:
        UserError: If the data cannot be read.
    """
    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    folder = RunFolder(config.run)
    done = folder.done(SELECTIONS) if folder.exists else set()
    todo = [t for t in trajectories if t.id not in done]
    steps = sum(len(t.steps) for t in todo)
    lines = [f"{len(todo)} trajectories with {steps} steps to judge, {len(done)} done, {len(rejected)} rows rejected"]
    selector = config.selector
    if getattr(selector, "scores", None):
        lines.append("scores are read again: no model call, no dollars")
    elif isinstance(selector, LlmSelector):
        found = estimate(todo, selector)
        dollars = "an unknown price" if found.dollars is None else f"at most ${found.dollars:,.2f} at list price"
        lines.append(
            f"{found.calls} calls of {selector.model}: {found.prompt_tokens} prompt tokens, at most "
            f"{found.completion_tokens} completion tokens, {dollars}"
        )
    elif isinstance(selector, ValueSelector):
        lines.append(f"{steps * selector.rollouts} rollouts: {selector.rollouts} from each of {steps} starts")
    elif isinstance(selector, PerplexitySelector):
        lines.append(f"{len(todo)} forward passes, one a trajectory")
    else:
        lines.append("no model call, no dollars")
    return lines
