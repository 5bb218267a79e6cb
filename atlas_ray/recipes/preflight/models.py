"""Models before a run: templates that can be masked, contexts long enough, endpoints that answer one token.

Flows in: a recipe; flows out: findings. Weights are not loaded: that a model fits its device says `machine.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.policies import ModelConfig
from atlas_ray.models.protocol import ModelUse, opened
from atlas_ray.models.source import longest
from atlas_ray.recipes.preflight.findings import Finding, attempt
from atlas_ray.recipes.preflight.hub import require_cached
from atlas_ray.recipes.preflight.pending import Pending


def check_models(pending: Pending) -> list[Finding]:
    """Every model that exists before the run: what the run trains itself is not looked for."""
    found: list[Finding] = []
    needed: dict[tuple[str, str | None, str | None], ModelUse] = {}
    for model in _needed(pending):
        key = model.path, model.revision, model.chat_template
        known = needed.setdefault(key, model)
        if (model.tokens or 0) > (known.tokens or 0):
            needed[key] = model
    for model in needed.values():
        found += attempt("model", model.path, lambda m=model: _usable(m))  # type: ignore[misc]
    return found


def check_keys(pending: Pending) -> list[Finding]:
    """Every endpoint is asked for one token, which costs about as much."""
    found: list[Finding] = []
    # several arms may have the same judge
    asked = {
        (getattr(c.selector, "model", ""), endpoint.base_url, endpoint.api_key_env): c.selector
        for c in pending.select.values()
        if (endpoint := c.selector.paid_endpoint) is not None
    }
    for (model, url, _), judge in asked.items():
        found += attempt("key", f"{model} at {url}", lambda j=judge: asyncio.run(j.check_endpoint()))  # type: ignore[misc]
    for name, model in ((n, m) for c in pending.evaluations.values() for n, m in c.played.items()):
        if model.endpoint is not None:
            subject = f"{model.path} at {model.endpoint.base_url}"
            found += attempt("key", subject, lambda n=name, m=model: asyncio.run(_plays(n, m)))  # type: ignore[misc]
    return found


def _needed(pending: Pending) -> Iterator[ModelUse]:
    made = pending.made_here
    for train in pending.train.values():
        if train.model not in made:
            yield ModelUse(train.model, tokens=train.max_length, chat_template=train.chat_template)
    selecting = [use for c in pending.select.values() for use in c.selector.models()]
    playing = [use for c in pending.evaluations.values() for model in c.played.values() for use in model.models()]
    yield from (use for use in [*selecting, *playing] if not use.tokenizer_only and use.path not in made)
    for verify in pending.verify:
        if verify.model not in made:
            yield ModelUse(verify.model, chat_template=verify.chat_template)


def _usable(model: ModelUse) -> str:
    """What a model's template and context are; raises where they do not do.

    Raises:
        UserError: If there is no such model, its template cannot be masked, its context is too short, or a folder
            holds no weights.
    """
    require_cached(model.path, "model", model.revision)
    folder = Path(model.path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(f"{model.path} holds no weights (*.safetensors)", "copy the whole model there")
    chat = ChatFormat.load(model.path, model.revision, model.chat_template)
    context = longest(model.path, model.revision)
    if model.tokens is not None and context is not None and model.tokens > context:
        raise UserError(
            f"{model.path} was made for {context:,} tokens, and is asked to read {model.tokens:,}",
            f"set max_model_len (evaluation) or max_length (training) to {context} or less",
        )
    long = "unknown" if context is None else f"{context:,} tokens"
    return f"template ends replies with {chat.end_of_turn.strip()!r}, context {long}"


async def _plays(name: str, model: ModelConfig) -> str:
    from atlas_ray.models.endpoint import EndpointSpec

    assert model.endpoint is not None
    async with opened(EndpointSpec(name, model.path, model.endpoint.model_copy(update={"max_retries": 0}))) as policy:
        return f"answers, {policy.usage.prompt_tokens + policy.usage.completion_tokens} tokens"
