"""What a trainer is to be told of its data: the settings beside it, and a sentence on what it does with it."""

from __future__ import annotations

import json
from typing import Any

import yaml

from atlas_ray.address import below
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.templates.turns import THOUGHTS
from atlas_ray.training.export.writer import DATA
from atlas_ray.training.settings import ExportConfig

_TURN_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")
_NAME = "atlas"  # of the data set, where a trainer wants one
RULES = {
    "agenttraj": "atlas train and AgentGym's own trainer learn the turns with loss: true",
    "sharegpt": "atlas train learns the turns with train: true; trainers that read no such key learn all of them",
    "openai": "OpenAI's fine-tuning learns the turns with weight: 1; it knows no thoughts, which stand in <think>",
    "axolotl": "axolotl.yaml holds its settings; it learns what differs in a turn with train: true from an empty one",
    "llamafactory": "llamafactory.yaml holds its settings; it learns the last turn of each row (mask_history)",
    "trl": "SFTTrainer takes the rows as they are, tokens and labels; leave its packing out to have equal batches",
    "tinker": "each line makes a Datum: targets are the next tokens, weights the selection's",
    "parquet": "each row is a sequence: input_ids, loss_mask of the tokens that are targets, weights",
}


def files_for(config: ExportConfig, chat: ChatFormat | None) -> dict[str, str]:
    """The files beside the data, by name.

    Args:
        config: Of the export.
        chat: Of its model; None: no model was named.
    """
    if config.format == "axolotl":
        return {"axolotl.yaml": _yaml(_axolotl(config, chat))}
    if config.format == "llamafactory":
        info = json.dumps({_NAME: _DATASET}, indent=2) + "\n"
        return {"dataset_info.json": info, "llamafactory.yaml": _yaml(_llamafactory(config))}
    return {}


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _axolotl(config: ExportConfig, chat: ChatFormat | None) -> dict[str, Any]:
    dataset: dict[str, Any] = {
        "path": below(config.out, DATA),
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
        # it hands a template the keys that it finds in its text, and finds not all of them
        "message_property_mappings": {key: key for key in _TURN_KEYS} | dict.fromkeys(THOUGHTS, "reasoning_content"),
        "roles_to_train": [],
        "train_on_eos": "turn",
    }
    model = {} if config.model is None else {"base_model": config.model}
    # it looks for the tokenizer's end of text, which need not end a turn
    ends = {}
    if chat is not None and chat.stop_ids[0] != chat.tokenizer.eos_token_id:
        dataset |= {"train_on_eot": "turn", "train_on_eos": None}
        ends = {"eot_tokens": [chat.tokenizer.convert_ids_to_tokens(chat.stop_ids[0])]}
    template = {"chat_template": "tokenizer_default"}
    if config.chat_template is not None:
        template = {"chat_template": "jinja", "chat_template_jinja": config.chat_template}
    sizes = {"train_on_inputs": False, "sequence_len": config.max_length}
    return model | {"datasets": [dataset]} | template | ends | sizes


_DATASET = {
    "file_name": DATA,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "tools": "tools"},
    "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    | {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"},
}


def _llamafactory(config: ExportConfig) -> dict[str, Any]:
    model = {} if config.model is None else {"model_name_or_path": config.model}
    return model | {
        "stage": "sft",
        "dataset_dir": config.out,
        "dataset": _NAME,
        "mask_history": True,
        "train_on_prompt": False,
        "cutoff_len": config.max_length,
    }
