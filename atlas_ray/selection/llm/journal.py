"""Replies that were paid for, on disk before they are used. Flows in: replies; flows out: the same, after any kill."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from atlas_ray.models.request import CompletionRequest
from atlas_ray.runs.folder import COMPACT_FROM, RunFolder
from atlas_ray.runs.tables import SELECTIONS, TableSpec
from atlas_ray.types import Usage

_GATHER_SECONDS = 0.1  # between two writes; replies that come meanwhile share the next one


@dataclass(frozen=True, slots=True)
class PaidReply:
    """One reply as it came; `id` is a digest of everything that was asked."""

    id: str
    trajectory_id: str
    text: str
    finish: str
    usage: Usage


REPLIES: TableSpec[PaidReply] = TableSpec(
    "replies",
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "trajectory_id", "text", "finish")),
            ("usage", SELECTIONS.schema.field("usage").type),
        ]
    ),
    asdict,
    lambda row: PaidReply(**row | {"usage": Usage(**row["usage"])}),
)


def digest(address: str, model: str, trajectory_id: str, request: CompletionRequest) -> str:
    """Of everything that can change a reply: what is asked, whom, and with what parameters.

    Replies are kept as they came and read anew each time, so a better parser needs no new call.
    """
    q = request
    asked = [address, model, trajectory_id, q.messages, q.temperature, q.max_tokens, q.seed, q.schema]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Journal:
    """Replies on disk, each before it is used: none is paid for twice, whatever is killed.

    Args:
        folder: The run's.
        shared: A folder of replies that several runs share, or None. A reply found there costs this run nothing; it
            is copied into the run's own folder, as a call of no tokens.

    Attributes:
        spent: US dollars for all replies held.
    """

    def __init__(self, folder: RunFolder, shared: RunFolder | None = None) -> None:
        self._folder, self._shared = folder, shared
        folder.compact(REPLIES)
        self._held = {reply.id: reply for reply in folder.read(REPLIES)}
        self._others = {reply.id: reply for reply in shared.read(REPLIES)} if shared else {}
        self.spent = sum(reply.usage.cost for reply in self._held.values())
        self._waiting: list[PaidReply] = []
        self._writing = asyncio.Lock()
        self._written, self._shards = 0.0, 0

    async def get(self, key: str) -> PaidReply | None:
        """The reply to a request that was paid for before."""
        if key not in self._held and key in self._others:
            await self._write(replace(self._others[key], usage=Usage()))
        return self._held.get(key)

    async def keep(self, reply: PaidReply) -> None:
        """Returns once the reply is on disk; replies that arrive during a write share the next one."""
        self.spent += reply.usage.cost
        await self._write(reply)

    async def _write(self, reply: PaidReply) -> None:
        self._waiting.append(reply)
        async with self._writing:
            if self._waiting:
                await asyncio.sleep(self._written + _GATHER_SECONDS - time.monotonic())
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._to_disk, batch)
                except BaseException:
                    self._waiting = batch + self._waiting
                    raise
                self._written = time.monotonic()
        self._held[reply.id] = reply

    def _to_disk(self, batch: list[PaidReply]) -> None:
        self._folder.write_shard(REPLIES, batch)
        if self._shared and (new := [reply for reply in batch if reply.id not in self._others]):
            self._shared.write_shard(REPLIES, new)
        # Small files would slow the next start down; how many are too many grows with what is held.
        self._shards += 1
        if self._shards > max(4 * COMPACT_FROM, len(self._held) // COMPACT_FROM):
            self._folder.compact(REPLIES)
            self._shards = 0
