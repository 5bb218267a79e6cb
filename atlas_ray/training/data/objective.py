"""What the loss is a mean of: tokens, steps or trajectories.

Flows in: examples; flows out: a weight per token that carries loss, and how many units a set of examples counts for.
The loss of a global batch is the sum of weight x negative log-likelihood over its units, wherever a token was computed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from atlas_ray.training.data.masking import Example
from atlas_ray.training.settings import Objective


def token_weights(example: Example, objective: Objective) -> NDArray[np.float32]:
    """Weights of an example's loss tokens, in order, float32, (loss_tokens,).

    `token`: 1. `step`: one over the tokens of the token's own step. `trajectory`: one over the example's loss tokens.
    """
    sizes = example.spans[:, 1] - example.spans[:, 0]
    if objective == "step":
        return np.repeat(1 / sizes, sizes).astype(np.float32)
    return np.full(sizes.sum(), 1 if objective == "token" else 1 / sizes.sum(), dtype=np.float32)


def units(examples: Iterable[Example], objective: Objective) -> int:
    """Loss tokens, steps that carry loss, or trajectories."""
    count = {"token": lambda e: e.loss_tokens, "step": lambda e: len(e.spans), "trajectory": lambda _: 1}[objective]
    return sum(count(example) for example in examples)
