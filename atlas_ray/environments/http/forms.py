"""Bodies and queries of requests to our own servers, held against a form, with FastAPI's words where they do not fit.

Flows in: a request and a pydantic model; flows out: the filled model, or `Malformed`.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from atlas_ray.environments.http.request_limits import body_of


class Malformed(Exception):
    """FastAPI's list of what is wrong with a request."""

    def __init__(self, *details: dict[str, Any]) -> None:
        super().__init__(details)
        self.details = list(details)


async def read_form(request: web.Request, form: type[Any]) -> Any:
    """The request's JSON body as `form`.

    Raises:
        Malformed: If there is none, it is no JSON, or it does not fit.
    """
    raw = await body_of(request)
    try:
        value = json.loads(raw) if raw else None
    except json.JSONDecodeError as error:
        detail = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error", "input": {}}
        raise Malformed(detail | {"ctx": {"error": error.msg}}) from None
    except (ValueError, RecursionError):
        raise Malformed({"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "input": {}}) from None
    if value is None:
        raise Malformed({"type": "missing", "loc": ["body"], "msg": "Field required", "input": None})
    return checked(form, value, "body")


def checked(form: type[Any], value: Any, where: str) -> Any:
    """A decoded value as `form`.

    Args:
        form: A pydantic model.
        value: What came.
        where: In which part of the request, for the details.

    Raises:
        Malformed: If it does not fit.
    """
    try:
        return form.model_validate(value, from_attributes=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise Malformed(*({**d, "loc": [where, *d["loc"]]} for d in details)) from None
