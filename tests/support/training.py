"""Small trainings for tests: seven trajectories in words of the tiny tokenizer, a selection of them, a base model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import torch

from atlas_ray.config import DataConfig
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.training import loop
from atlas_ray.training.data.corpus import Tokens, tokens_of
from atlas_ray.training.data.examples import Example, training_examples
from atlas_ray.training.metrics import METRICS
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Message, Selection, Trajectory
from tests.support.tiny import WORDS, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


def a_trajectory(number: int, turns: int) -> Trajectory:
    words = [WORDS[(7 * number + 3 * k) % len(WORDS)] for k in range(turns)]
    messages = [
        message
        for k, word in enumerate(words)
        for message in (
            Message("user", f"see {word} " * (1 + (number + k) % 3)),
            Message("assistant", f"Thought: {word} {'see ' * (k % 3)}\nAction: go {words[k - 1]}", True),
        )
    ]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(messages))


TRAJECTORIES_HERE = [a_trajectory(number, 2 + number % 5) for number in range(7)]
CHOSEN = {t.id: (1, len(t.steps)) if number % 2 else (2,) for number, t in enumerate(TRAJECTORIES_HERE)}
SELECTIONS_HERE = [
    Selection(t.id, t.env, t.item_id, "gold", 0.3, len(t.steps), CHOSEN[t.id]) for t in TRAJECTORIES_HERE
]


def training_example(tokens: Tokens, chosen: Collection[int] | None, max_length: int) -> Example:
    """Of a trajectory that is one sequence."""
    (example,) = training_examples(tokens, chosen, max_length)
    return example


def the_examples() -> list[Example]:
    chat = ChatFormat(tiny_tokenizer())
    return [training_example(tokens_of(t, chat), CHOSEN[t.id], 500) for t in TRAJECTORIES_HERE]


def a_config(**options: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "data": DataConfig(path="data"),
        "dtype": "float32",
        "learning_rate": 1e-3,
        "global_batch_size": 3,
        "micro_batch_tokens": 120,
        "use_gpu": False,
        "max_length": 500,
        "epochs": 2,
    }
    return TrainConfig(**plain | options)


def write_base(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_locally(config: TrainConfig, model: Any = None, **options: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    module = loop.place_model(model or tiny_llama(80), config, CPU)
    optimizers, steps = loop.make_optimizers(module, config), list[dict[str, Any]]()
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=steps.append, **options)
    return module, optimizers, steps


def curve(steps: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(s[k] for k in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for s in steps]


def write_data(folder: Path) -> DataConfig:
    RunFolder(str(folder / "data")).write_shard(TRAJECTORIES, TRAJECTORIES_HERE)
    return DataConfig(path=str(folder / "data" / "trajectories"))


def a_long_run(folder: Path, **options: Any) -> TrainConfig:
    """80 steps of 2 an epoch; a checkpoint at the end of each epoch."""
    base = write_base(folder / "base")
    plain: dict[str, Any] = {"epochs": 40, "global_batch_size": 4, "checkpoint_steps": 5}
    return a_config(run=str(folder / "run"), model=base, **plain | options)


def written_lines(folder: Path) -> list[str]:
    file = folder / "run" / METRICS
    return file.read_text().splitlines() if file.exists() else []


def written_curve(folder: Path) -> list[tuple[Any, ...]]:
    return curve([json.loads(line) for line in written_lines(folder)])


def undisturbed(config: TrainConfig) -> list[tuple[Any, ...]]:
    from transformers import AutoModelForCausalLM

    return curve(run_locally(config, AutoModelForCausalLM.from_pretrained(config.model))[2])


def kept_lines(folder: Path) -> list[str]:
    """What the last checkpoint that counts has behind it, with the times of when it was done."""
    state = max(done.parent for done in (folder / "run").glob("checkpoints/*/*/.metadata"))
    return (state / METRICS).read_text().splitlines()


def llama_8b(folder: Path, **options: Any) -> TrainConfig:
    """Llama-3.1-8B's configuration, of which no weights exist here."""
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        dtype="bfloat16",
    ).save_pretrained(folder)
    return a_config(
        model=str(folder), **{"dtype": "bfloat16", "micro_batch_tokens": 16384, "max_length": 8192, **options}
    )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """The driver with every process that it started: its whole cluster."""
    owned = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in owned:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    _, alive = psutil.wait_procs(owned[1:], timeout=20)
    assert not alive


def noted_gradients(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The whole gradients of the optimizer's last step, by name, once it has taken one."""
    gradients = dict[str, torch.Tensor]()

    def note(*_: Any) -> None:
        for name, p in module.named_parameters():
            if p.grad is not None:
                gradients[name] = (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()

    optimizer.register_step_pre_hook(note)
    return gradients
