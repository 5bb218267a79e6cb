"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from typing import Any


def eventually(happened: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.05)
    return False
