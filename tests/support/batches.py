"""OpenAI's Batch API on loopback: files, batches, and whatever can go wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any]], str | int]


class FakeBatches:
    """Batches end when they are looked at for the `looks`-th time.

    Attributes:
        answer: Reply to the body of a request, or an HTTP status that it fails with.
        ends: How the next batches end, in order; "completed" after those. "expired:n": after n requests.
        limit: Requests that may be queued at once.
        asked: How often each conversation was submitted.
        words: What a failed request is told.
        lost: Answers to `POST /batches` that get lost on the way, though the batch is made.
    """

    def __init__(self, answer: Answer, looks: int = 2) -> None:
        self.answer, self.looks, self.ends = answer, looks, list[str]()
        self.limit = 10**9
        self.lost, self.words = 0, "failed"
        self.asked: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.app = web.Application(client_max_size=2**30)
        self.app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/files", self._upload),
                web.get("/v1/files/{id}/content", self._content),
                web.post("/v1/batches", self._create),
                web.get("/v1/batches", self._list),
                web.get("/v1/batches/{id}", self._retrieve),
            ]
        )

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        content = form["file"].file.read()  # type: ignore[union-attr]
        return web.json_response({"id": self._keep(content), "object": "file", "bytes": len(content)})

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def _create(self, request: web.Request) -> web.Response:
        given = await request.json()
        assert (given["endpoint"], given["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = self._lines(given["input_file_id"])
        assert len({line["custom_id"] for line in lines}) == len(lines)
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "status": "validating",
            "created_at": 2_000_000_000 + len(self.batches),
            **given,
        }
        self.batches.append(batch)
        if len(lines) > self.limit:
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
        else:
            self.asked.update(line["body"]["messages"][-1]["content"] for line in lines)
        if self.lost:
            self.lost -= 1
            return web.json_response({"error": {"message": "gateway"}}, status=502)
        return web.json_response(batch)

    def _lines(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[file].splitlines()]

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.batches[::-1], "has_more": False})

    async def _retrieve(self, request: web.Request) -> web.Response:
        found = [b for b in self.batches if b["id"] == request.match_info["id"]]
        if not found:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        (batch,) = found
        self.seen[batch["id"]] += 1
        if batch["status"] in ("validating", "in_progress"):
            batch["status"] = "in_progress"
            if self.seen[batch["id"]] >= self.looks:
                self._end(batch)
        return web.json_response(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        batch["status"], _, done = (self.ends.pop(0) if self.ends else "completed").partition(":")
        if batch["status"] == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "model_not_found", "message": "no model of that name"}],
            }
            return
        lines = self._lines(batch["input_file_id"])
        n = int(done) if done else len(lines)
        good, bad = list[bytes](), list[bytes]()
        for line in lines[:n]:
            answer = self.answer(line["body"])
            (good if isinstance(answer, str) else bad).append(self._line(line["custom_id"], answer))
        for line in lines[n:]:
            error = {"code": "batch_expired", "message": "This request could not be executed before it expired."}
            bad.append(json.dumps({"custom_id": line["custom_id"], "response": None, "error": error}).encode())
        # The API leaves a file out that would be empty, and gives no order.
        batch["output_file_id"] = self._keep(b"\n".join(good[::-1])) if good else None
        batch["error_file_id"] = self._keep(b"\n".join(bad[::-1])) if bad else None

    def _line(self, custom_id: str, answer: str | int) -> bytes:
        if isinstance(answer, int):
            status, body = answer, {"error": {"message": f"{self.words} with {answer}", "type": "x", "code": None}}
        else:
            message = {"role": "assistant", "content": answer}
            usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
            usage |= {"prompt_tokens_details": {"cached_tokens": 400}}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            base = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
            status, body = 200, base | {"choices": [choice], "usage": usage}
        response = {"status_code": status, "request_id": "r", "body": body}
        return json.dumps({"id": "x", "custom_id": custom_id, "response": response, "error": None}).encode()
