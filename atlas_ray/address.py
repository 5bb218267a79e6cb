"""Where runs lie: paths and URIs joined with names, and credentials kept out of them.

Flows in: a path or a URI such as `s3://bucket/runs?endpoint_override=HOST:PORT&scheme=http`; flows out: addresses below
it, or a refusal. Imports nothing heavy, for every configuration is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from atlas_ray.errors import UserError

# A user with a password. A store's secret key may hold slashes; a host of HTTP ends at the first one.
_PASSWORD = re.compile(r"https?://[^/?#\s]*:[^/?#\s]*@|(?!https?:)\b[a-z][a-z0-9+.-]*://[^?#@\s]*:[^?#\s]*@", re.I)
_SECRET = re.compile(
    r"\w://\S*[?&]([\w-]*[_-]|access|account|api|secret|sas)?"
    r"(key|secret|token|password|passwd|credentials|signature|sig)(_?id)?=",
    re.I,
)


def below(place: str, *names: str) -> str:
    """The address of something below a path or URI; a URI's query stays behind it."""
    path, query = _split(place)
    return "/".join([path, *names]) + query


def beside(place: str, name: str) -> str:
    """The address of a path's or URI's neighbour."""
    path, query = _split(place)
    parent = path.rpartition("/")[0]
    return f"{parent}/{name}{query}" if parent else name


def name_of(place: str) -> str:
    """The last part of a path or URI."""
    return _split(place)[0].rpartition("/")[2]


def _split(place: str) -> tuple[str, str]:
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return path.rstrip("/"), mark + query


def refuse_credentials(value: Any) -> None:
    """Looks into a text, or all texts of nested values.

    Raises:
        UserError: If an address holds a password or key; it is not repeated.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_credentials(key)
            refuse_credentials(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_credentials(inner)
    elif isinstance(value, str) and "://" in value:
        plain = unquote(value)
        if _PASSWORD.search(plain) or _SECRET.search(plain):
            raise UserError(
                "an address holds credentials, which would end up in manifests and logs",
                "take them out of it and set them in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
                " or GOOGLE_APPLICATION_CREDENTIALS",
            )
