"""Step losses by vLLM's `prompt_logprobs`: for models that plain torch cannot pack or hold. No Ray.

vLLM computes the output head over every token, and only then throws away what is not a step's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from atlas_ray.config import EngineConfig
from atlas_ray.models.engine import EngineSpec, VllmPolicy
from atlas_ray.selection.perplexity.scores import Scored, Scores, in_order, readable
from atlas_ray.types import Trajectory, Usage

# Of a GPU's memory. vLLM does not count on the logits of whole prompts when it takes its share, and no reply is
# generated that would want a large key-value cache.
_GPU_MEMORY = 0.7


class VllmScorer:
    """Scores steps with a started engine.

    Args:
        policy: The engine.
        max_length: Tokens of a trajectory that are read; later steps get no score.
    """

    def __init__(self, policy: VllmPolicy, max_length: int = 8192) -> None:
        self._policy, self._limit = policy, readable(max_length, policy.context)

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        """Perplexities of trajectories, one per step.

        Raises:
            ModelFailure: If the engine fails.
        """
        return list(await asyncio.gather(*map(self._score, trajectories)))

    async def _score(self, trajectory: Trajectory) -> Scores:
        sequences = Scored.of(trajectory, self._policy.chat, self._limit)
        found = await asyncio.gather(*map(self._perplexities, sequences))
        # What `prompt_logprobs` asks for is never taken from the prefix cache.
        return Scores(in_order(trajectory, found), Usage(sum(len(s.ids) for s in sequences), 0, 0, len(sequences)))

    async def _perplexities(self, scored: Scored) -> dict[int, float]:
        losses = await self._policy.losses(scored.ids)  # of every token but the first
        return scored.perplexities([losses[i - 1] for start, end in scored.spans for i in range(start, end)])


def start_vllm(
    model: str,
    dtype: Literal["bfloat16", "float32"],
    max_length: int,
    *,
    workers: int = 1,
    gpu_share: float = 1.0,
    chat_template: str | None = None,
) -> Callable[[Sequence[Trajectory]], list[Scores]]:
    """Starts an engine in this process, on an event loop that runs while it scores; it ends with the process.

    Args:
        model: Folder or hub id in Hugging Face format.
        dtype: Of weights and activations; log-probabilities are always float32.
        max_length: Tokens of a trajectory that are read.
        workers: Processes like this one.
        gpu_share: Of a GPU that this one may use; 0 on CPU.
        chat_template: In place of the tokenizer's own.

    Raises:
        UserError: If the model or its tokenizer cannot be used.
        ModelFailure: If the engine does not start.
    """
    config = EngineConfig(
        replicas=workers,
        dtype=dtype,
        max_model_len=max_length + 1,
        gpu_memory_utilization=_GPU_MEMORY * (gpu_share or 1.0),
    )
    runner = asyncio.Runner()
    scorer = VllmScorer(
        runner.run(EngineSpec("perplexity", model, config, chat_template=chat_template).build()), max_length
    )
    return lambda trajectories: runner.run(scorer.score(trajectories))
