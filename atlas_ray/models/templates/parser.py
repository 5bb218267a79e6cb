"""Calls of tools in a model's replies, read by the one of vLLM's parsers that reads what the chat template writes.

Flows in: a reply's text; flows out: what it says and calls. Which parser fits is tried out: replies with calls are
written by the template, and a parser that does not give back these calls and nothing else is passed over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.text import split_thoughts
from atlas_ray.types import Message, ToolCall

_PARAMETERS = {"place": {"type": "string"}, "days": {"type": "integer"}}
_FUNCTION = {
    "name": "look_up",
    "description": "look something up",
    "parameters": {"type": "object", "properties": _PARAMETERS, "required": ["place"]},
}
_TOOLS = json.dumps([{"type": "function", "function": _FUNCTION}])
_QUESTION = Message("user", "turn0")
_CALL = ToolCall("look_up", json.dumps({"place": "New O", "days": 3}))
# Several calls at once, and a text beside them, are no matter of course: some templates refuse them, some parsers too.
_REPLIES = (Message("assistant", "", calls=(_CALL,)), Message("assistant", "I see."))


class ReplyParser:
    """Reads the replies of a model.

    Attributes:
        name: vLLM's, of the parser.
        stop_ids: Tokens that end a reply, be it a text or calls.

    Raises:
        UserError: If the chat template writes no calls, or none of vLLM's parsers reads them.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._tokenizer, self.stop_ids = chat.tokenizer, chat.stop_ids
        self._parsers = lru_cache(64)(self._made)
        written = [(reply, self._written(chat, reply)) for reply in _REPLIES]
        self.name = next((name for name in _names() if self._reads(name, written)), "")
        if not self.name:
            raise UserError(
                f"none of vLLM's parsers of tool calls reads what the chat template of {chat.template.name} writes",
                "serve the model elsewhere and name its `endpoint`, or play by text: protocol: react",
            )

    def parse(self, text: str, tools: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What a reply without its thoughts says and calls; what cannot be read as calls is text.

        Args:
            text: The reply.
            tools: Schemas of the tools, as `Trajectory.tools` holds them.
        """
        return self._parsed(self.name, text, tools)

    def _written(self, chat: ChatFormat, reply: Message) -> str:
        """What a model writes to give a reply, without its end and its thoughts."""
        _, own = chat.template.met([_QUESTION], reply, _TOOLS)
        end = max((name for name in chat.template.specials if own.endswith(name)), key=len)
        self.stop_ids = tuple(dict.fromkeys([*self.stop_ids, self._tokenizer.convert_tokens_to_ids(end)]))
        return split_thoughts(own.removesuffix(end))[1]

    def _reads(self, name: str, written: Sequence[tuple[Message, str]]) -> bool:
        for reply, text in written:
            try:
                said, calls = self._parsed(name, text, _TOOLS)
            except Exception:  # noqa: BLE001 (a parser for another tokenizer may raise anything)
                return False
            alike = [call.key for call in calls] == [call.key for call in reply.calls]
            if not alike or said.strip() != reply.content:
                return False
        return True

    def _parsed(self, name: str, text: str, tools: str) -> tuple[str, tuple[ToolCall, ...]]:
        parser, request = self._parsers(name, tools)
        found = parser.extract_tool_calls(text, request)
        calls = tuple(ToolCall(c.function.name, c.function.arguments or "{}") for c in found.tool_calls)
        if not calls or not all(call.is_well_formed for call in calls):
            return text, ()
        return (found.content or "").strip(), calls

    def _made(self, name: str, tools: str) -> tuple[Any, Any]:
        """A parser, and the request that it looks up schemas in."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        # each reply that it cannot read would be on the screen, with a traceback
        for quiet in ("vllm.tool_parsers", "vllm.parser"):
            logging.getLogger(quiet).setLevel(logging.CRITICAL)
        request = ChatCompletionRequest(messages=[{"role": "user", "content": ""}], tools=json.loads(tools) or None)
        given: list[Any] | None = request.tools and [*request.tools]
        return ToolParserManager.get_tool_parser(name)(self._tokenizer, given), request


def _names() -> list[str]:
    """vLLM's parsers; the commonest first, for each is a module that has to be loaded."""
    from vllm.tool_parsers import ToolParserManager

    known = [*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers]
    return list(dict.fromkeys(["hermes", "llama3_json", "qwen3_xml", "mistral", *known]))
