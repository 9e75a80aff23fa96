"""A fake Cloud Storage on this machine: the part of its JSON API that gcsfs and TensorStore use. It has the
preconditions (ifGenerationMatch) that concurrent writers need; the published fakes for tests lack them.

    python -m tests.support.bucket 9023    serves gs://bucket/ to programs that run with `environment(9023)`

https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import contextlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

NAME = "bucket"


def environment(port: int) -> dict[str, str]:
    """The variables that make a process use the fake instead of Google's servers."""
    url = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
        "NO_GCE_CHECK": "true",
    }


class Bucket(ThreadingHTTPServer):
    """A server of one bucket, called NAME.

    Attributes:
      objects: name -> (bytes, generation).
      refuses: the HTTP status of every answer, as in an outage; 0: normal answers.
      hidden: if true, the bucket itself is not readable, as for an account with rights on objects only.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), _Request)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.refuses, self.hidden = 0, False
        self.lock, self.generations, self.uploads = threading.Lock(), itertools.count(1), {}

    def handle_error(self, request, client_address):
        """Ignores errors: a client that hangs up is a process that a test killed."""


@contextlib.contextmanager
def running() -> Iterator[Bucket]:
    """Runs the server in a thread."""
    with Bucket() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Bucket

    def log_message(self, *arguments):
        pass

    def _answer(self):
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        route = re.fullmatch(
            r"(/upload|/download)?/storage/v1/b(?:/([^/]+)(?:/o(?:/([^/]+)(?:/rewriteTo/b/([^/]+)/o/([^/]+))?)?)?)?",
            address.path,
        )
        if self.server.refuses:
            return self._error(self.server.refuses)
        if not route or unquote(route[2] or "") != NAME:
            return self._error(404)
        kind, _, name, _, to = (unquote(part) if part else "" for part in route.groups())
        with self.server.lock:
            if to:
                return self._rewrite(name, to)
            if kind == "/upload":
                return self._upload(query, body)
            if self.command == "DELETE":
                return self._delete(name, query)
            if name:
                return self._get(name, query, media=kind == "/download" or query.get("alt") == "media")
            if address.path.endswith("/o"):
                return self._list(query)
            return self._error(403) if self.server.hidden else self._send_json({"name": NAME})

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, content: dict):
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")

    def _error(self, status: int):
        error = {"error": {"code": status, "message": f"status {status} of the fake bucket"}}
        self._send(status, json.dumps(error).encode(), Content_Type="application/json")

    def _metadata(self, name: str) -> dict:
        content, generation = self.server.objects[name]
        return {
            "kind": "storage#object",
            "bucket": NAME,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        }

    def _failed_precondition(self, name: str, query: dict) -> int:
        """The HTTP status if a precondition of the request does not hold, else 0."""
        generation = self.server.objects.get(name, (b"", 0))[1]
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return 412
        return 304 if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation else 0

    def _get(self, name: str, query: dict, *, media: bool):
        if name not in self.server.objects:
            return self._error(404)
        if status := self._failed_precondition(name, query):
            return self._send(status)
        if not media:
            return self._send_json(self._metadata(name))
        content, generation = self.server.objects[name]
        headers = {"x_goog_generation": str(generation), "Content_Type": "application/octet-stream"}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(span[1]) if span[1] else max(len(content) - int(span[2]), 0)
            last = min(int(span[2]), len(content) - 1) if span[1] and span[2] else len(content) - 1
            if first > last:
                return self._send(416)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], **headers)
        return self._send(200, content, **headers)

    def _list(self, query: dict):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            inner, slash, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if slash:
                prefixes.add(prefix + inner + delimiter)
            else:
                items.append(self._metadata(name))
        self._send_json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _upload(self, query: dict, body: bytes):
        if "upload_id" in query:
            return self._upload_more(query["upload_id"], body)
        if query["uploadType"] == "resumable":
            key = str(next(self.server.generations))
            self.server.uploads[key] = (query.get("name") or json.loads(body)["name"], b"")
            url = f"http://127.0.0.1:{self.server.server_port}/upload/storage/v1/b/{NAME}/o?upload_id={key}"
            return self._send(200, Location=url)
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            metadata, _ = BytesParser().parsebytes(head + body).get_payload()
            query["name"] = json.loads(metadata.get_payload())["name"]
            start = body.index(b"\n\n", body.index(b"Content-Type", body.index(b"{"))) + 2
            body = body[start : body.rindex(b"\n--")]
        return self._store(query["name"], body, query)

    def _upload_more(self, key: str, body: bytes):
        name, before = self.server.uploads[key]
        self.server.uploads[key] = (name, before + body)
        if not self.headers.get("Content-Range", "").endswith("/*"):
            return self._store(name, before + body, {})
        return self._send(308, Range=f"bytes=0-{len(before + body) - 1}")

    def _store(self, name: str, content: bytes, query: dict):
        if status := self._failed_precondition(name, query):
            return self._error(status)
        self.server.objects[name] = (content, next(self.server.generations))
        return self._send_json(self._metadata(name))

    def _delete(self, name: str, query: dict):
        if name not in self.server.objects:
            return self._error(404)
        if status := self._failed_precondition(name, query):
            return self._error(status)
        del self.server.objects[name]
        return self._send(204)

    def _rewrite(self, name: str, to: str):
        if name not in self.server.objects:
            return self._error(404)
        self.server.objects[to] = (self.server.objects[name][0], next(self.server.generations))
        return self._send_json({"kind": "storage#rewriteResponse", "done": True, "resource": self._metadata(to)})


if __name__ == "__main__":
    Bucket(int(sys.argv[1])).serve_forever()
