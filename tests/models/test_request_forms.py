"""Endpoints differ in the fields that they take and in how they refuse: a form is found out once, an end met once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.config import EndpointConfig
from atlas_ray.errors import AtlasError, ContextOverflow, UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate
from atlas_ray.models.client import ChatClient
from atlas_ray.models.endpoint import EndpointSpec
from atlas_ray.models.protocol import Sampling
from atlas_ray.models.request import CompletionRequest, RequestForm, is_out_of_credit, is_too_long
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Message, StopReason, Task
from tests.support.fake_endpoint import FakeEndpoint

OPENING = [Message("user", "Play."), Message("assistant", "OK"), Message("user", "A wall.")]


def refusal(message: str, param: str | None = None, status: int = 400, **fields: Any) -> web.Response:
    return web.json_response({"error": {"message": message, "param": param, **fields}}, status=status)


def new_names(body: dict[str, Any]) -> web.Response | str:
    """As OpenAI's reasoning models: a new name, and values of their own."""
    if "max_tokens" in body:
        text = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return refusal(text, "max_tokens", code="unsupported_parameter")
    if "temperature" in body:
        text = (
            "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported."
        )
        return refusal(text, "temperature", code="unsupported_value")
    return "Action: move up"


def no_stop(body: dict[str, Any]) -> web.Response | str:
    """As servers that check a request by a schema of their own."""
    if "stop" in body:
        detail = [{"type": "extra_forbidden", "loc": ["body", "stop"], "msg": "Extra inputs are not permitted"}]
        return web.json_response({"detail": detail}, status=422)
    return "Action: move up"


def config_of(endpoint: FakeEndpoint, key: str = "FAKE_KEY", **fields: Any) -> EndpointConfig:
    return EndpointConfig(base_url=f"http://127.0.0.1:{endpoint.port}/v1", api_key_env=key, **fields)


@pytest.mark.parametrize(("answer", "wrong"), [(new_names, 2), (no_stop, 1)])
async def test_the_form_is_found_out_before_anything_is_played(
    answer: Callable[[dict[str, Any]], Any], wrong: int, endpoint: FakeEndpoint
) -> None:
    endpoint.answer = lambda body, _: answer(body)
    policy = await EndpointSpec("closed", "m", config_of(endpoint)).build()
    assert len(endpoint.calls) == wrong + 1
    for seed in range(3):
        conversation = policy.open(Task("maze", "maze_1"), OPENING, Sampling(0.0, 64))
        assert (await conversation.generate(seed)).text == "Action: move up"
    await policy.close()
    assert len(endpoint.calls) == wrong + 1 + 3
    assert endpoint.calls[-1].get("max_completion_tokens", endpoint.calls[-1].get("max_tokens")) == 64


async def test_names_of_fields_can_be_set(endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda *_: "OK"
    names = {"max_tokens": "max_completion_tokens", "stop": None, "seed": None}
    policy = await EndpointSpec("closed", "m", config_of(endpoint, request=names)).build()
    await policy.close()
    (sent,) = endpoint.calls
    assert sent.keys() == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}


BODY = CompletionRequest(
    [{"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"}],
    0.0,
    8,
    1,
    stop=("x",),
    tools=[{}],
).body("m")


@pytest.mark.parametrize(
    ("said", "param", "left"),
    [
        ("Unrecognized request argument supplied: seed", None, {"seed"}),
        ("`stop` is not supported by this model", None, {"stop"}),
        ("temperature is deprecated for this model.", "temperature", {"temperature"}),
        ("Unknown parameter: 'messages[0].reasoning_content'.", "messages[0].reasoning_content", set()),
        ("max_tokens is too large: 100000. This model supports at most 16384 completion tokens", "max_tokens", None),
        ("tools are not supported by this model", "tools", None),
        ("the upstream is not supported", None, None),
        ("Invalid value for 'seed'", "seed", None),
    ],
)
def test_what_a_refusal_says_of_the_form(said: str, param: str | None, left: set[str] | None) -> None:
    form = RequestForm({})
    assert form.learn(BODY, said, param) == (left is not None)
    if left is not None:
        made = form.applied(BODY)
        assert BODY.keys() - made.keys() == left
        assert ("reasoning" in made["messages"][0]) == bool(left)


def test_a_successor_that_is_refused_too_is_left_out() -> None:
    form = RequestForm({})
    assert form.learn(BODY, "unsupported parameter: max_tokens", None)
    sent = form.applied(BODY)
    assert sent["max_completion_tokens"] == 8
    assert form.learn(sent, "unknown field max_completion_tokens")
    assert {"max_tokens", "max_completion_tokens"}.isdisjoint(form.applied(BODY))


TOO_LONG = {
    "openai": (
        400,
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    ),
    "openai, by code": (400, '{"error": {"code": "context_length_exceeded", "message": "no"}}'),
    "openai, new": (
        400,
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
    ),
    "openai, limit": (400, "Input tokens exceed the configured limit of 272000 tokens."),
    "vllm": (
        400,
        "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens (3488 in the",
    ),
    "vllm, prompt": (400, "The decoder prompt (length 3000) is longer than the maximum model length of 2048."),
    "vllm, output": (
        400,
        "You passed 2047 input tokens and requested 16 output tokens. However, the model's context length is only 2048",
    ),
    "vllm, max_tokens": (
        400,
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context len"
        "gth is 2048 tokens and your request has 2000 input tokens",
    ),
    "sglang": (400, "The input (3000 tokens) is longer than the model's context length (2048 tokens)."),
    "sglang, total": (400, "Requested token count exceeds the model's maximum context length of 2048 tokens."),
    "tgi": (
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2000 `inputs` tokens",
    ),
    "tgi, inputs": (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"),
    "llama.cpp": (
        400,
        '{"error":{"code":400,"message":"the request exceeds the available context size. try increasing '
        'the context size or enable context shift","type":"exceed_context_size_error","n_ctx":4096}}',
    ),
    "llama.cpp, older": (500, "input is too large to process. increase the physical batch size; context size exceeded"),
    "litellm": (
        400,
        "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: OpenAIExcep",
    ),
    "anthropic": (400, "prompt is too long: 210000 tokens > 200000 maximum"),
    "anthropic, both": (400, "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000"),
    "gemini": (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
    "mistral": (
        400,
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    ),
    "groq": (400, "Please reduce the length of the messages or completion."),
    "bedrock": (400, "Input is too long for requested model."),
    "a proxy": (413, "413 Request Entity Too Large"),
}
OTHERS = {
    "tokens a minute": (413, "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 7000"),
    "one limit of replies": (
        400,
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
    ),
    "a field": (400, "Unsupported parameter: 'max_tokens' is not supported with this model."),
    "a message": (400, "Invalid value: 'tool'. Supported values are: 'system', 'assistant', 'user'."),
    "a schema": (400, "Invalid schema for response_format: 'steps' is required"),
    "content": (400, "The response was filtered due to the prompt triggering content management policy."),
    "load": (503, "The server is overloaded: maximum context length is 8192"),
    "the cause": (400, "the cause"),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_conversation_that_is_too_long_is_told_by_every_servers_words(name: str) -> None:
    status, said = TOO_LONG[name]
    assert is_too_long(status, said)
    assert is_too_long(status, json.dumps({"error": {"message": said, "type": "invalid_request_error"}}))


@pytest.mark.parametrize("name", OTHERS)
def test_other_refusals_are_not_taken_for_it(name: str) -> None:
    status, said = OTHERS[name]
    assert not is_too_long(status, said)
    assert not is_too_long(status, json.dumps({"error": {"message": said, "param": "messages", "input": 3}}))


def test_an_account_without_credit() -> None:
    assert is_out_of_credit(402, "")
    assert is_out_of_credit(429, "You exceeded your current quota, please check your plan and billing details.")
    assert is_out_of_credit(400, "Your credit balance is too low to access the Anthropic API.")
    assert not is_out_of_credit(429, "Rate limit reached")


async def test_a_context_that_is_full_ends_the_conversation_at_once(endpoint: FakeEndpoint) -> None:
    for status, text in TOO_LONG.values():
        endpoint.answer = lambda body, _, s=status, t=text: "OK" if body["max_tokens"] == 1 else refusal(t, status=s)  # type: ignore[misc]
        policy = await EndpointSpec("closed", "m", config_of(endpoint, max_retries=3)).build()
        with pytest.raises(ContextOverflow):
            await policy.open(Task("maze", "maze_1"), OPENING, Sampling()).generate(0)
        assert policy.refused is None  # others may be shorter
        await policy.close()
    assert len(endpoint.calls) == 2 * len(TOO_LONG)


async def test_an_endpoint_that_calls_no_tools_says_so_at_the_first_call(endpoint: FakeEndpoint) -> None:
    text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    endpoint.answer = lambda body, _: refusal(text) if "tools" in body else "OK"
    policy = await EndpointSpec("closed", "m", config_of(endpoint)).build()
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    for _ in range(2):
        with pytest.raises(UserError, match=r"takes no tools to call: HTTP 400: .*requires --enable-auto-tool-choice"):
            await policy.open(Task("weather", "weather_1"), OPENING, Sampling(tools=tools)).generate(0)
    assert isinstance(policy.refused, UserError)
    await policy.close()
    assert len(endpoint.calls) == 2


async def test_a_refusal_of_every_request_is_told_from_one_of_this_request(endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda body, _: refusal("this project is archived")
    client = ChatClient("m", config_of(endpoint, max_retries=3))
    for _ in range(3):
        with pytest.raises(AtlasError, match=r"refuses every request: HTTP 400: .*this project is archived"):
            await client.complete(CompletionRequest([{"role": "user", "content": "Which steps?"}], 0.0, 8))
    await client.close()
    assert len(endpoint.calls) == 2


# What answers every request: the words of the error, or None where all tasks are played, and requests in all.
MODES: dict[str, tuple[Callable[[dict[str, Any]], web.Response | str], str | None, int]] = {
    "new names": (new_names, None, 3),
    "no stop": (no_stop, None, 2),
    "401": (lambda _: refusal("no", status=401), "refuses the key in ATLAS_WORKERS_KEY", 1),
    "no credit": (lambda _: refusal("You exceeded your current quota", status=429), "is out of credit", 1),
    "a web page": (
        lambda _: web.Response(text="<!DOCTYPE html>Welcome", content_type="text/html"),
        "answers with a web page",
        1,
    ),
    "400": (lambda _: refusal("no such deployment"), "HTTP 400: .*no such deployment", 1),
}
ROUNDS = 15  # of an episode that goes nowhere


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", MODES)
def test_an_evaluation_in_each_mode(mode: str, tmp_path: Path, endpoint: FakeEndpoint) -> None:
    answer, words, begun = MODES[mode]
    endpoint.answer = lambda body, _: answer(body)
    models = {"m": {"path": "m", "endpoint": config_of(endpoint, "ATLAS_WORKERS_KEY").model_dump()}}
    config = EvaluateConfig.model_validate({"run": str(tmp_path), "models": models, "tasks": {"maze": 4}})
    if words is not None:
        with pytest.raises(AtlasError, match=words):
            evaluate(config)
        assert len(endpoint.calls) == begun
        return
    (result,) = evaluate(config)["m"]
    assert (result.n, result.excluded) == (4, {})
    played = RunFolder(config.run).child("m").read(EPISODES)
    assert len(endpoint.calls) == begun + sum(e.rounds for e in played)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", ["openai", "vllm", "sglang", "tgi", "llama.cpp", "litellm"])
def test_a_task_that_does_not_fit_is_unsolved(name: str, tmp_path: Path, endpoint: FakeEndpoint) -> None:
    status, text = TOO_LONG[name]
    endpoint.answer = lambda body, _: "Action: move up" if len(body["messages"]) < 7 else refusal(text, status=status)
    models = {"m": {"path": "m", "endpoint": config_of(endpoint, "ATLAS_WORKERS_KEY").model_dump()}}
    config = EvaluateConfig.model_validate({"run": str(tmp_path), "models": models, "tasks": {"maze": 3}})
    (result,) = evaluate(config)["m"]
    assert (result.n, result.excluded, result.overflowed) == (3, {}, 1.0)
    played = RunFolder(config.run).child("m").read(EPISODES)
    assert {(e.stop_reason, e.success, e.rounds) for e in played} == {(StopReason.CONTEXT_OVERFLOW, False, 2)}
    assert len(endpoint.calls) == 1 + 3 * 3
