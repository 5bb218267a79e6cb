"""What `bench.training` and its rival both train: shapes, trajectories, batches, settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bench.rendering import SHAPES

SEED = 30  # of 300 tried, the one whose share of tokens behind a last chosen step is nearest to their mean
RATIO = 0.3
Model = Literal["head", "layers", "smollm2"]  # what is trained on CPU
MODELS: tuple[Model, ...] = get_args(Model)


class Rival(NamedTuple):
    """A setting of TRL: trajectories a forward pass, passes a step, and whether a pass is one row without padding."""

    batch: int
    accumulation: int
    padding_free: bool = False

    def __str__(self) -> str:
        return f"{self.batch}x{self.accumulation}{' padding-free' * self.padding_free}"


@dataclass(frozen=True)
class Setup:
    """What both train.

    Attributes:
        trajectories: Their number.
        tokens: Of all of them, or `longest`: of the longest one.
        steps: Optimizer steps; the first `warm_up` are not timed.
        micro_batch_tokens: Ours.
        rivals: TRL's settings.
        reserve: GPU memory left to activations and logits when layers are counted, bytes.
    """

    shape: dict[str, Any]
    trajectories: int
    global_batch_size: int
    steps: int
    warm_up: int
    dtype: str
    micro_batch_tokens: int
    rivals: tuple[Rival, ...]
    tokens: int = 0
    longest: int = 0
    reserve: float = 0.0


def setup_of(device: str, tiny: bool, model: Model = "head") -> Setup:
    """Three models on CPU; Llama-3.1-8B's shape and vocabulary, up to 8192 tokens, on a GPU.

    `head` has 5 M parameters and the least vocabulary of a Llama, 32,000: agents are tuned with the tokenizer that they
    come with, and it alone costs a trainer the gigabytes that small models take. So small a model is mostly its head,
    where what carries no loss costs us nothing; `layers`, with as many parameters, is mostly its layers, as large
    models are, and what is gained there is no more than the tokens behind the last chosen steps, padding and the rest
    of the head. `smollm2` has SmolLM2-135M's shape and vocabulary, and is trained in bfloat16.
    """
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 256}
    if device == "cpu" and not tiny:
        small = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 32_000}
    if model == "layers":
        small = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5, "vocab_size": 4096}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    if tiny:
        return Setup(small | heads, 6, 2, 3, 1, "float32", 256, (Rival(1, 2), Rival(2, 1, True)), tokens=900)
    if device == "cpu":
        rivals = (Rival(8, 1), Rival(1, 8), Rival(2, 4), Rival(2, 4, True))
        if model == "smollm2":
            real = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
            heads |= {"num_attention_heads": 9, "num_key_value_heads": 3}
            return Setup(real | heads, 16, 8, 2, 0, "bfloat16", 1024, rivals, tokens=14_000)
        return Setup(small | heads, 16, 8, 2, 0, "float32", 1024, rivals, tokens=27_000)
    large = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "tie_word_embeddings": False}
    on_gpu = (Rival(2, 8), Rival(1, 16), Rival(2, 8, True))
    return Setup(large | heads, 64, 16, 4, 1, "bfloat16", 16384, on_gpu, longest=8192, reserve=16e9)


def examples_of(setup: Setup, seed: int = SEED) -> tuple[list[Any], list[np.ndarray]]:
    """Synthetic trajectories of random tokens with 30 % of the steps chosen at random, as `random` chooses them.

    They are a small AgentTraj-L: environments by their share, each with its steps and proportions of texts; only the
    lengths are scaled to `setup.tokens`.

    Returns:
        Examples as training cuts them, and the token ids of the whole trajectories.
    """
    from atlas_ray.selection.budget import budget
    from atlas_ray.training.data.examples import Example

    rng = np.random.default_rng(seed)
    shares = np.cumsum([shape.trajectories for shape in SHAPES.values()])
    quantiles = (np.arange(setup.trajectories) + 0.5) / setup.trajectories * shares[-1]
    shapes = [list(SHAPES.values())[k] for k in np.searchsorted(shares, quantiles)]
    steps = [min(shape.most, max(1, round(rng.normal(shape.steps, shape.steps / 3)))) for shape in shapes]
    words = [s.opening + n * (s.observation + s.reply) for s, n in zip(shapes, steps, strict=True)]
    scale = setup.longest / max(words) if setup.longest else setup.tokens / sum(words)
    examples, wholes = [], []
    for number in rng.permutation(setup.trajectories):
        shape, n = shapes[number], steps[number]
        ends = np.array([shape.opening + (k + 1) * (shape.observation + shape.reply) for k in range(n)])
        spans = (np.stack([ends - shape.reply, ends], axis=1) * scale).astype(np.int32)
        ids = rng.integers(5, setup.shape["vocab_size"], spans[-1, 1]).astype(np.int32)
        chosen = spans[np.sort(rng.choice(n, budget(RATIO, n), replace=False))]
        kept, every = ids[: chosen[-1, 1]], int(np.diff(spans).sum())
        examples.append(Example(str(number), kept, chosen, n, len(chosen), 0, every))
        wholes.append(ids)
    return examples, wholes


def a_model(setup: Setup, layers: int, device: str) -> Any:
    """Random weights, in float32, drawn where they will stand."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shape = setup.shape | {"num_hidden_layers": layers}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(max_position_embeddings=8192, **shape)).float()


def fitting_layers(setup: Setup, device: str) -> int:
    """As many layers as full fine-tuning has room for: weights, gradients and two moments, all of 4 bytes."""
    wanted = int(setup.shape["num_hidden_layers"])
    if device == "cpu":
        return wanted
    import torch

    hidden, inner = setup.shape["hidden_size"], setup.shape["intermediate_size"]
    shared = setup.shape["num_key_value_heads"] / setup.shape["num_attention_heads"]
    layer = hidden * (2 * hidden + 2 * shared * hidden + 3 * inner)
    room = torch.cuda.mem_get_info()[1] - setup.reserve - 16 * 2 * setup.shape["vocab_size"] * hidden
    # beside the 16 bytes a weight: its bfloat16 copy, and the layer's input kept for recomputation
    return max(1, min(wanted, int(room / (18 * layer + 2 * setup.micro_batch_tokens * hidden))))


def train_config(setup: Setup, device: str) -> Any:
    """The settings that both follow."""
    from atlas_ray.config import DataConfig
    from atlas_ray.training.settings import TrainConfig

    return TrainConfig(
        data=DataConfig(path="synthetic"),
        epochs=setup.steps * setup.global_batch_size / setup.trajectories,
        global_batch_size=setup.global_batch_size,
        micro_batch_tokens=setup.micro_batch_tokens,
        dtype=setup.dtype,  # type: ignore[arg-type]
        learning_rate=1e-3 if device == "cpu" else 2e-5,
        use_gpu=device == "cuda",
        seed=SEED,
    )


def batches_of(setup: Setup) -> list[list[int]]:
    """Examples of each step."""
    from atlas_ray.training.data.batching import global_batch_of

    return [
        global_batch_of(step, setup.trajectories, setup.global_batch_size, SEED) for step in range(1, setup.steps + 1)
    ]
