"""An object store on loopback that speaks enough of S3 for pyarrow; objects lie in memory, and no key is looked at."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """Objects by `bucket/key`; `uri(path)` is how a run folder is named there."""

    def __init__(self) -> None:
        objects: dict[str, bytes] = {}
        parts: dict[str, dict[int, bytes]] = {}
        self.objects = objects

        class S3(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet: two wait for each other

            def handle_expect_100(self) -> bool:
                agreed = super().handle_expect_100()
                self.wfile.flush()
                return agreed

            def do_HEAD(self) -> None:
                path, _ = self._asked()
                if "/" not in path:
                    return self._answer(200)
                return self._answer(200, objects[path]) if path in objects else self._answer(404)

            def do_GET(self) -> None:
                path, query = self._asked()
                if "list-type" in query:
                    return self._list(path, query)
                if path not in objects:
                    return self._answer(404)
                content, wanted = objects[path], self.headers.get("Range")
                if wanted is None:
                    return self._answer(200, content)
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last), len(content) - 1) if last else len(content) - 1
                span = f"bytes {first}-{end}/{len(content)}"
                return self._answer(206, content[int(first) : end + 1], {"Content-Range": span})

            def do_PUT(self) -> None:
                path, query = self._asked()
                content = self._content()
                if source := self.headers.get("x-amz-copy-source"):
                    objects[path] = objects[unquote(source).lstrip("/")]
                    return self._xml("<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")
                if "partNumber" in query:
                    parts.setdefault(path, {})[int(query["partNumber"])] = content
                elif "/" in path:
                    objects[path] = content
                return self._answer(200)

            def do_POST(self) -> None:
                path, query = self._asked()
                asked = self._content().decode()
                if "uploads" in query:
                    return self._xml(
                        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
                    )
                if "delete" in query:
                    for key in asked.split("<Key>")[1:]:
                        objects.pop(f"{path}/{key.partition('<')[0]}", None)
                    return self._xml("<DeleteResult></DeleteResult>")
                objects[path] = b"".join(part for _, part in sorted(parts.pop(path, {}).items()))
                return self._xml("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")

            def do_DELETE(self) -> None:
                objects.pop(self._asked()[0], None)
                self._answer(204)

            def _list(self, bucket: str, query: dict[str, str]) -> None:
                prefix, mark = query.get("prefix", ""), query.get("delimiter", "")
                keys, folders = list[str](), set[str]()
                for key in sorted(k.removeprefix(f"{bucket}/") for k in objects if k.startswith(f"{bucket}/{prefix}")):
                    rest = key[len(prefix) :]
                    if mark and mark in rest:
                        folders.add(prefix + rest.partition(mark)[0] + mark)
                    else:
                        keys.append(key)
                when = "<LastModified>2026-01-01T00:00:00Z</LastModified>"
                found = [
                    f"<Contents><Key>{escape(k)}</Key><Size>{len(objects[f'{bucket}/{k}'])}</Size>{when}</Contents>"
                    for k in keys
                ]
                found += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
                count = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
                self._xml(f"<ListBucketResult>{count}{''.join(found)}</ListBucketResult>")

            def _asked(self) -> tuple[str, dict[str, str]]:
                url = urlsplit(self.path)
                query = parse_qs(url.query, keep_blank_values=True)
                return unquote(url.path).lstrip("/"), {key: values[0] for key, values in query.items()}

            def _content(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self._signed(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                found = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return self._signed(found)

            def _signed(self, content: bytes) -> bytes:
                """AWS's own chunks within the body, where they are used."""
                if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
                    return content
                found = b""
                while True:
                    head, _, content = content.partition(b"\r\n")
                    size = int(head.split(b";")[0], 16)
                    if not size:
                        return found
                    found, content = found + content[:size], content[size + 2 :]

            def _xml(self, body: str) -> None:
                self._answer(200, f'<?xml version="1.0"?>{body}'.encode(), {"Content-Type": "application/xml"})

            def _answer(self, code: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                given = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
                for name, value in (given | {"Content-Length": str(len(content))} | (headers or {})).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), S3)
        Thread(target=self._server.serve_forever, daemon=True).start()

    def uri(self, path: str) -> str:
        """Of something in the store."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self._server.server_port}&scheme=http"

    def close(self) -> None:
        """No longer answers."""
        self._server.shutdown()
        self._server.server_close()
