"""One request to an environment server. Flows in: a method, an address, a body; flows out: JSON, or a `Fault`."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from atlas_ray.text import printable

MAX_ANSWER = 2**22
_PASSING = (408, 425, 429)  # refusals for the moment, by a proxy
_BUSY = (429, 503)


class Fault(Exception):
    """A request that failed: the episode may be lost. `answered` tells whether the server spoke at all."""

    def __init__(self, cause: str, answered: bool = True) -> None:
        super().__init__(cause)
        self.answered = answered


class Refusal(Fault):
    """A request that the server will never take (HTTP 4xx)."""

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.status = status


class Busy(Fault):
    """A request that was turned away for the moment, before anything came of it."""


class Unreachable(Fault):
    """A request that was not even sent: nobody listens at the address."""


class Restarting(Unreachable):
    """The same where a server has answered before: it may be about to be started again."""


async def request_json(
    http: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None, timeout_s: float
) -> Any:
    """One request's JSON answer.

    Raises:
        Refusal: For HTTP 4xx.
        Fault: For everything else that is no answer: AgentGym's `{"error": ...}` (it may be empty) with HTTP 200, any
            other status, broken JSON, a lost connection, or none in time.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with http.request(method, url, json=body, timeout=timeout, allow_redirects=False) as response:
            status, text = response.status, await _text(response)
    except TimeoutError:
        raise Fault(f"no answer within {timeout_s:g} s", answered=False) from None
    except (aiohttp.ClientError, OSError, LookupError, ValueError) as error:
        refused = isinstance(getattr(error, "os_error", None), ConnectionRefusedError)
        raise (Unreachable if refused else Fault)(f"{type(error).__name__}: {error}", answered=False) from None
    shown = printable(text[:200].strip())
    if 400 <= status < 500 and status not in _PASSING:
        raise Refusal(f"HTTP {status}: {shown}", status)
    if status != 200:
        raise (Busy if status in _BUSY else Fault)(f"HTTP {status}: {shown}")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise Fault(f"the answer is no JSON: {shown!r}") from None
    if isinstance(answer, dict) and "error" in answer:
        raise Fault(f"it answers the error {answer['error']!r}")
    return answer


async def _text(response: aiohttp.ClientResponse) -> str:
    """The body, unpacked; memory is not the server's to fill.

    Raises:
        Fault: If it is too long.
    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER:
            raise Fault(f"the answer is longer than {MAX_ANSWER >> 20} MiB")
    return body.decode(response.charset or "utf-8", errors="replace")


class ServerResponse(aiohttp.ClientResponse):
    """A response whose socket is not used again after a 5xx.

    After an exception nobody handled, uvicorn closes the socket without saying so, and the next request on it would be
    lost: whether it was played, nobody could tell.
    """

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Reads the head."""
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= 500 and protocol is not None:
            protocol.force_close()  # instead of being kept, once the body is read
            if connection.protocol is None:  # it was read along with the head, and is kept already
                protocol.close()
        return self
