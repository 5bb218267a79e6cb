"""Perplexity of every step under a base model (App. B.2, Eq. 5): what is scored, and what is chosen. No model here.

Flows in: trajectories, then the losses of their step tokens from `torch_engine` or `vllm_engine`; flows out:
one perplexity per step, and selections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from atlas_ray.models.chat import ChatFormat
from atlas_ray.selection.budget import record, top_k
from atlas_ray.types import Selection, Trajectory, Usage

if TYPE_CHECKING:
    from atlas_ray.selection.perplexity.settings import PerplexitySettings

UNSCORED = 0.0  # below any perplexity, which is at least 1
_WORTH_A_PASS = 16  # tokens
_LARGEST = 700.0  # nats: where exp leaves a double


@dataclass(frozen=True, slots=True)
class Scored:
    """One sequence of a trajectory's tokens as far as they are read.

    Attributes:
        ids: Token ids up to the last step that lies wholly within the limit.
        spans: Half-open ranges of those steps' own tokens (thought, action, end of turn).
        steps: Which steps these are, from 1.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    steps: list[int]

    @classmethod
    def of(cls, trajectory: Trajectory, chat: ChatFormat, limit: int) -> list[Scored]:
        """Renders a trajectory and cuts each sequence after the last step that ends within `limit` tokens."""
        found = []
        for rendered in chat.render(trajectory.messages, trajectory.tools):
            met = [(step.index, rendered.spans[step.position]) for step in trajectory.steps]
            within = [(index, span) for index, span in met if span is not None and span[1] <= limit]
            if within:
                # A causal model needs nothing behind the last scored token.
                ids = rendered.ids[: within[-1][1][1]]
                found.append(cls(ids, [span for _, span in within], [index for index, _ in within]))
        return found

    def perplexities(self, losses: Sequence[float]) -> dict[int, float]:
        """The perplexity of each step: Eq. 5, exp of the mean negative log-likelihood.

        Args:
            losses: Negative log-likelihoods in nats, of the tokens in `spans` and in their order.
        """
        found, at = {}, 0
        for index, (start, end) in zip(self.steps, self.spans, strict=True):
            own = losses[at : at + end - start]
            found[index] = math.exp(min(math.fsum(own) / len(own), _LARGEST))
            at += end - start
        return found


@dataclass(frozen=True, slots=True)
class Scores:
    """What was found of a trajectory.

    Attributes:
        steps: One perplexity a step; `UNSCORED` beyond the limit.
        usage: The tokens that were read; `cached_tokens` among them were computed for another trajectory.
    """

    steps: tuple[float, ...]
    usage: Usage = Usage()


def beginnings(sequences: Sequence[Scored], groups: Sequence[str]) -> list[int]:
    """How many tokens each sequence has in common with all others of its group, e.g. an environment's instructions.

    The last token before a step predicts the step's first one: it is left out, as are steps. 0 where it is too little
    to be worth a pass of its own.
    """
    found = [0] * len(sequences)
    for group in dict.fromkeys(groups):
        members = [i for i, own in enumerate(groups) if own == group]
        if len(members) > 1:
            together = zip(*(sequences[i].ids for i in members), strict=False)
            alike = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))
            alike = min(alike, *(sequences[i].spans[0][0] - 1 for i in members))
            for i in members:
                found[i] = alike if alike >= _WORTH_A_PASS else 0
    return found


def in_order(trajectory: Trajectory, found: Iterable[Mapping[int, float]]) -> tuple[float, ...]:
    """The perplexities of all steps, from those of a trajectory's sequences; `UNSCORED` beyond the limit."""
    known = {index: value for part in found for index, value in part.items()}
    return tuple(known.get(step.index, UNSCORED) for step in trajectory.steps)


def readable(max_length: int, context: int | None) -> int:
    """Tokens of a trajectory that are read: what is asked for, within the model's own context.

    One token stays free, for vLLM generates at least one: both engines read alike.
    """
    return max_length if context is None else min(max_length, context - 1)


def dtype_of(config: PerplexitySettings, gpus: float) -> Literal["bfloat16", "float32"]:
    """The number format of scoring; `auto`: bfloat16 on GPUs, where float32 takes ten times as long, else float32."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if gpus else "float32"


def workers_of(config: PerplexitySettings, gpus: float, chunks: int) -> int:
    """Processes that score: as many as are asked for, else one to each GPU, as far as there are chunks for them."""
    return config.num_workers or max(1, min(int(gpus), chunks))


def engine_of(config: PerplexitySettings, gpus: float) -> Literal["torch", "vllm"]:
    """The engine that scores. `auto` takes the faster one where the two agree (`make bench-perplexity`).

    On CPU in float32 that is vLLM: 1.06 to 1.18 times as fast once it runs, and the same to 1e-5. In bfloat16 they
    differ by a percent, and on a GPU vLLM holds the logits of whole prompts in memory: there it is torch.
    """
    if config.engine != "auto":
        return config.engine
    return "vllm" if not gpus and dtype_of(config, gpus) == "float32" else "torch"


def select_perplexity(trajectory: Trajectory, config: PerplexitySettings, found: Scores) -> Selection:
    """The top k steps by perplexity (App. B.2); an error where no step could be scored."""
    scores = found.steps
    kept: dict[str, Any] = {"model": config.model, "usage": found.usage}
    if any(map(math.isnan, scores)):
        return record(trajectory, config, error="not a number: the model's output overflows", **kept)
    if not any(scores):
        why = f"too long: every step reaches beyond max_length={config.max_length} tokens or the model's context"
        return record(trajectory, config, scores=scores, error=why, **kept)
    chosen = top_k(scores, config.budget(trajectory), above=UNSCORED)
    return record(trajectory, config, chosen, scores=scores, **kept)
