"""What other trainers' own code makes of an export: `python -m tests.support.other_trainers TRAINER EXPORT MODEL OUT`.

Writes a list of `input_ids` and `labels`, a pair for each row. Run in a process of its own, with their packages on the
path; what they import and no text needs is left out.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.tiny import tiny_llama

Pair = tuple[list[int], list[int]]


def _rows(export: Path, kind: str) -> Any:
    """The rows as `datasets` reads them, from which all three trainers take them."""
    from datasets import load_dataset

    files = sorted(map(str, (export / "data").iterdir()))
    return load_dataset(kind, data_files=files, split="train", cache_dir=str(export / "cache"))


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def trl(export: Path, model: str) -> list[Pair]:
    """The batches of `SFTTrainer`'s data loader."""
    import torch
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tokenizer(model)
    tokenizer.pad_token = tokenizer.eos_token
    settings = SFTConfig(
        str(export / "trl"), max_length=None, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4
    )
    data = _rows(export, "parquet")
    trainer = SFTTrainer(tiny_llama(len(tokenizer)), settings, train_dataset=data, processing_class=tokenizer)
    found: list[Pair] = []
    for batch in trainer.get_train_dataloader():
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            assert torch.all(labels[real == 0] == -100)
            found.append((ids[real == 1].tolist(), labels[real == 1].tolist()))
    return found


def axolotl(export: Path, model: str) -> list[Pair]:
    """The strategy of `type: chat_template` that axolotl.yaml asks for."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    settings = DictDefault(yaml.safe_load((export / "axolotl.yaml").read_text()))
    strategy = load(_tokenizer(model), settings, settings.datasets[0])
    made = [strategy.tokenize_prompt(row) for row in _rows(export, "json")]
    return [(row["input_ids"], row["labels"]) for row in made]


def _llamafactory(model: str, **settings: Any) -> tuple[Any, Any, Any]:
    """Its arguments, tokenizer and template."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    audio = types.ModuleType("torchaudio")  # reads sound, and has no build for this torch
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = audio
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    arguments, tokenizer = DataArguments(**settings), _tokenizer(model)
    tokenizer.pad_token = tokenizer.eos_token
    return arguments, tokenizer, get_template_and_fix_tokenizer(tokenizer, arguments)


def llamafactory(export: Path, model: str) -> list[Pair]:
    """The converter and processor that its two files ask for, with the template of the tokenizer."""
    settings = yaml.safe_load((export / "llamafactory.yaml").read_text())
    names = ("mask_history", "train_on_prompt", "cutoff_len", "dataset_dir", "dataset")
    arguments, tokenizer, template = _llamafactory(model, **{name: settings[name] for name in names})
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor import SupervisedDatasetProcessor

    (data,) = get_dataset_list([settings["dataset"]], settings["dataset_dir"])
    convert = get_dataset_converter(data.formatting, data, arguments)
    process = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
    aligned = [convert(row) for row in _rows(export, "json")]
    made = process.preprocess_dataset({key: [row[key] for row in aligned] for key in aligned[0]})
    return list(zip(made["input_ids"], made["labels"], strict=True))


def llamafactory_tokens(export: Path, model: str) -> list[Pair]:
    """Rows of TRL through `tokenized_path`, as its collator batches them."""
    place = str(export / "tokens")
    _rows(export, "parquet").remove_columns("id").save_to_disk(place)
    arguments, tokenizer, template = _llamafactory(model, tokenized_path=place, dataset="none", template="empty")
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset

    data = get_dataset(template, None, arguments, None, "sft", tokenizer)["train_dataset"]
    collate = SFTDataCollatorWith4DAttentionMask(template=template, tokenizer=tokenizer, label_pad_token_id=-100)
    batches = [collate([dict(row)]) for row in data]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def tinker(export: Path, model: str) -> list[Pair]:
    """Each line as the SDK's own type; a label is the target of the token before, where it has weight."""
    from tinker import types as tinker_types

    found: list[Pair] = []
    for file in sorted((export / "data").iterdir()):
        for row in map(json.loads, file.read_text().splitlines()):
            inputs = {name: row[name] for name in ("target_tokens", "weights")}
            datum = tinker_types.Datum(tinker_types.ModelInput.from_ints(row["model_input"]), inputs)
            targets, weights = (datum.loss_fn_inputs[name].to_numpy().tolist() for name in inputs)
            ids = datum.model_input.to_ints()
            assert ids[1:] == targets[:-1]
            labels = [t if w else -100 for t, w in zip(targets, weights, strict=True)]
            found.append(([*ids, targets[-1]], [-100, *labels]))
    return found


TRAINERS: dict[str, Callable[[Path, str], list[Pair]]] = {
    one.__name__: one for one in (trl, axolotl, llamafactory, llamafactory_tokens, tinker)
}

if __name__ == "__main__":
    name, export, model, out = sys.argv[1:]
    Path(out).write_text(json.dumps(TRAINERS[name](Path(export), model)))
