"""The data path at AgentTraj-L's size: 11,485 trajectories are read, selected in (random, 30 %), rendered and packed.

A synthetic data set of that size goes through the stages' own code: the selection of `atlas select`, the tokens
(rendered by Ray Data's tasks into Parquet) and examples of `atlas train`, and the packed batches of one epoch; then a
second arm opens the same tokens. Seconds, and the peak memory of all processes, Ray's among them, stand against the
limits: 10 minutes and 4 GB on two cores. The rival in rendering is the tokenizer alone, as fast as it can: plain texts
in one `encode_batch` on all cores, without a template, spans or tables.

The data itself is not at hand: `trajectories/agenttraj.py` says what it is like.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil

from atlas_ray.trajectories.agenttraj import SHAPES
from bench.table import Entry, named, parse, write_bench

LIMIT_SECONDS, LIMIT_GB = 600.0, 4.0
CORES = 2
SEED = 3
# As Llama 3 splits text before its merges.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def synthetic(share: float = 1.0) -> Iterator[object]:
    """Trajectories of pseudo-words, `share` of each environment's number."""
    from atlas_ray.types import Message, Trajectory

    rng = random.Random(SEED)
    sounds = ["".join(rng.choices("aeiourstlnmdkpbg", k=rng.randint(2, 4))) for _ in range(300)]
    words = ["".join(rng.choices(sounds, k=rng.randint(1, 3))) for _ in range(20_000)]

    def text(mean: int) -> str:
        return " ".join(rng.choices(words, k=max(3, int(rng.gauss(mean, mean / 4)))))

    for env, shape in SHAPES.items():
        for number in range(max(1, round(share * shape.trajectories))):
            steps = min(shape.most, max(1, round(rng.gauss(shape.steps, shape.steps / 3))))
            messages = [Message("user", text(shape.opening)), Message("assistant", "OK. I will follow the rules.")]
            for _ in range(steps):
                messages.append(Message("user", text(shape.observation) + "."))
                messages.append(Message("assistant", f"Thought: {text(shape.reply - 5)}.\nAction: {text(5)}", True))
            yield Trajectory(f"{env}/{number}", env, str(number), tuple(messages), reward=1.0)


def write_inputs(folder: Path, share: float) -> None:
    """The data set, and a model folder with a byte-level tokenizer learnt on some of it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from atlas_ray.models.tiny import BOS, CHAT_TEMPLATE, EOT, HEAD, HEAD_END
    from atlas_ray.runs.folder import RunFolder
    from atlas_ray.runs.tables import TRAJECTORIES

    data = RunFolder(str(folder / "data"))
    found = list(synthetic(share))
    with data.writer(TRAJECTORIES) as writer:
        for trajectory in found:
            writer.add(trajectory)  # type: ignore[arg-type]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [BOS, HEAD, HEAD_END, EOT]
    texts = [m.content for t in found[:: max(1, len(found) // 300)] for m in t.messages]  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOT,
        additional_special_tokens=[HEAD, HEAD_END],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder / "model")
    LlamaConfig(max_position_embeddings=131072, vocab_size=len(tokenizer)).save_pretrained(folder / "model")


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Takes the data through; returns seconds per stage, and counts."""
    from atlas_ray.config import DataConfig, RayConfig
    from atlas_ray.models.chat import ChatFormat
    from atlas_ray.runs.folder import RunFolder
    from atlas_ray.runs.tables import SELECTIONS
    from atlas_ray.selection.baselines import RandomSelector
    from atlas_ray.selection.pipeline import select_steps
    from atlas_ray.selection.settings import SelectConfig
    from atlas_ray.training.data.batching import collate, global_batch_of, pack_micro_batches, total_steps
    from atlas_ray.training.data.corpus import render_on_ray
    from atlas_ray.training.data.examples import build_examples
    from atlas_ray.training.settings import TrainConfig
    from atlas_ray.training.stage import corpus_of
    from atlas_ray.trajectories.readers import read_trajectories

    data, model, marks = DataConfig(path=str(folder / "data")), str(folder / "model"), [time.monotonic()]
    selection = SelectConfig(run=str(folder / "select"), data=data, selector=RandomSelector(ratio=0.3), seed=SEED)
    select_steps(selection)
    marks.append(time.monotonic())
    trajectories = read_trajectories(data)
    config = TrainConfig(
        run=str(folder / "train"), data=data, model=model, num_workers=workers, ray=RayConfig(num_cpus=CORES)
    )
    chat = ChatFormat.load(model)
    marks.append(time.monotonic())
    by = partial(render_on_ray, chat=chat, model=model, template=None, ray_config=config.ray)
    corpus = corpus_of(config, trajectories, chat, by)
    marks.append(time.monotonic())
    prepared = build_examples(config, corpus, trajectories, RunFolder(selection.run).read(SELECTIONS))
    marks.append(time.monotonic())
    examples = prepared.examples
    lengths, micro_batches, packed = [e.length for e in examples], 0, 0
    for step in range(1, total_steps(len(examples), config.global_batch_size, 1) + 1):
        batch = global_batch_of(step, len(examples), config.global_batch_size, SEED)
        for share in pack_micro_batches(batch, lengths, lengths, workers, config.micro_batch_tokens):
            for micro_batch in share:
                packed += collate([examples[i] for i in micro_batch], config.loss).ids.numel()
                micro_batches += 1
    marks.append(time.monotonic())
    corpus_of(config, trajectories, chat, _nothing)
    marks.append(time.monotonic())
    names = ("select", "read", "render", "mask", "pack", "second arm")
    return {
        **{name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)},
        "seconds": marks[-1] - marks[0],
        "trajectories": len(trajectories),
        "steps": sum(len(t.steps) for t in trajectories),
        "step_fraction": prepared.statistics.step_fraction,
        "steps_lost": prepared.statistics.steps_lost,
        "tokens": packed,
        "micro_batches": micro_batches,
    }


def tokenizer_alone(folder: Path, share: float) -> float:
    """Seconds for the texts of a twentieth of the trajectories, times 20."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    few: list[Any] = list(synthetic(share))[::20]
    texts = ["\n".join(message.content for message in trajectory.messages) for trajectory in few]
    begun = time.monotonic()
    tokenizer.encode_batch_fast(texts)
    return 20 * (time.monotonic() - begun)


def _nothing(trajectories: object) -> NoReturn:
    raise SystemExit("the second arm renders again")


class PeakMemory:
    """The most that this process and all below it hold at once, in GB; pages that several share count once in all.

    A context manager.
    """

    def __init__(self) -> None:
        self.gb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            held = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):
                    held += process.memory_full_info().pss
            self.gb = max(self.gb, held / 1e9)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures once: the run is long enough not to need more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the trajectories; limits are for all of them")
    parser.add_argument("--workers", type=int, default=4)
    given = parse(parser, arguments, share=0.01)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), given.share)
        with PeakMemory() as peak:
            found = measure(Path(folder), given.workers)
        alone = tokenizer_alone(Path(folder), given.share)
    for name, value in found.items():
        print(f"{name:>14}: {value:,.2f}" if isinstance(value, float) else f"{name:>14}: {value:,}")
    tokenizer = named("tokenizers", "encode_batch_fast of the plain texts on all cores")
    entries = [
        Entry("time", [found["seconds"]], [LIMIT_SECONDS], against="limit", unit="s", better="lower"),
        Entry("memory", [peak.gb], [LIMIT_GB], against="limit", unit="GB", better="lower"),
        Entry(
            "rendering",
            [found["render"]],
            [alone],
            against=tokenizer,
            unit="s",
            better="lower",
            floor=alone,
        ),
    ]
    write_bench("rendering", entries, given.tiny)


if __name__ == "__main__":
    main()
