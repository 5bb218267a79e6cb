"""An object store on loopback that speaks S3 (moto's server): objects lie in memory, and no key is looked at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any

import pyarrow.fs as pafs
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


class Store:
    """Buckets named `bucket`, and what is asked of them.

    Attributes:
        requests: Method and path of every request so far.
        denied: Paths (`bucket/key`) that nobody may read.
        on_get: Called with the path before an object is read.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[tuple[str, str]] = []
        self.denied: set[str] = set()
        self.on_get: Callable[[str], object] = lambda path: None
        self._backend = get_backend("s3")
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.files().create_dir("bucket")

    @property
    def address(self) -> str:
        """As AWS_ENDPOINT_URL has it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def uri(self, path: str) -> str:
        """Of something in the store."""
        port = self._server.server_port
        return f"s3://{path}?endpoint_override=127.0.0.1:{port}&scheme=http&allow_bucket_creation=true"

    def files(self) -> pafs.FileSystem:
        """All that lies there."""
        return pafs.FileSystem.from_uri(self.uri("bucket"))[0]

    def put(self, path: str, content: bytes) -> None:
        """Writes an object, under any name."""
        bucket, _, key = path.partition("/")
        self._backend[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, content)

    def read(self, *parts: str) -> list[str]:
        """Paths of the objects read so far whose path holds one of the parts (all where none is given)."""
        read = [path for method, path in self.requests if method == "GET" and path.partition("/")[2]]
        return [path for path in read if not parts or any(part in path for part in parts)]

    def close(self) -> None:
        """No longer answers, and forgets all."""
        self._server.shutdown()
        self._server.server_close()
        for backend in self._backend.values():
            for region in backend.values():
                region.reset()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
        listing = "list-type" in environ["QUERY_STRING"]
        self.requests.append((method, "" if listing else path))
        if path in self.denied:
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))])
            return [] if method == "HEAD" else [_DENIED]
        if method == "GET" and not listing:
            self.on_get(path)
        return self._app(environ, start)
