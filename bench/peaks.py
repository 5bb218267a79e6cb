"""What this machine does at best: matrix products, copies in memory, requests over loopback. The floors come from here.

    python -m bench peaks

A benchmark measures the peaks that it is held against in its own run, as a machine is not always equally fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence

from bench.endpoint import endpoint
from bench.table import parse, path_of

_SIZE = {"cuda": 8192, "cpu": 1024}  # of a matrix
_COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes, more than any cache holds
_SECONDS = 1.0


def gemm_flops(dtype: str, device: str = "cpu") -> float:
    """Operations a second of a large square matrix product."""
    import torch

    n = _SIZE[device]
    one = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    return 2 * n**3 * _rate(lambda: torch.mm(one, one), device)


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second that a copy reads and writes in memory."""
    import torch

    size = _COPIED[device]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size * _rate(lambda: target.copy_(source), device)


def _rate(work: Callable[[], object], device: str) -> float:
    """Times a second, by the fastest of a second's: what else the machine does makes the others slower."""
    import torch

    def seconds() -> float:
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    end, best = time.perf_counter() + _SECONDS, seconds()
    while time.perf_counter() < end:
        best = min(best, seconds())
    return 1 / best


def loopback(at_once: int) -> float:
    """Requests a second to an aiohttp server in another process, which answers at once."""
    from aiohttp import ClientSession, TCPConnector

    async def ask(url: str) -> float:
        async with ClientSession(connector=TCPConnector(limit=at_once)) as session:
            end, count = time.perf_counter() + _SECONDS, 0

            async def one_after_another() -> None:
                nonlocal count
                while time.perf_counter() < end:
                    async with session.post(url, json={"messages": []}) as reply:
                        await reply.read()
                    count += 1

            begun = time.perf_counter()
            await asyncio.gather(*(one_after_another() for _ in range(at_once)))
            return count / (time.perf_counter() - begun)

    with endpoint(seconds=0) as server:
        return asyncio.run(ask(f"{server.base_url}/chat/completions"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes `bench/peaks.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parse(parser, arguments)
    found = {
        "float32, GFLOP/s": gemm_flops("float32", given.device) / 1e9,
        "bfloat16, GFLOP/s": gemm_flops("bfloat16", given.device) / 1e9,
        "memory, GB/s": bandwidth(given.device) / 1e9,
        "loopback, requests/s": loopback(1),
        "loopback with 32 at once, requests/s": loopback(32),
    }
    path_of("peaks", given.tiny).write_text(json.dumps(found, indent=2) + "\n")
    print("this machine at best: " + "; ".join(f"{value:,.4g} {name}" for name, value in found.items()))


if __name__ == "__main__":
    main()
