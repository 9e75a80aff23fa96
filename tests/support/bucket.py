"""A stand-in for Cloud Storage on this machine: the part of its JSON API that gcsfs and TensorStore speak, with the
preconditions (ifGenerationMatch) on which concurrent writers rely. What is published for tests knows no preconditions.

    python -m tests.support.bucket 9023    then with `environment(9023)`: --workdir=gs://bucket/...

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
    """What a process needs, to take the stand-in for Google."""
    place = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": place,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": place,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
        "NO_GCE_CHECK": "true",
    }


class Bucket(ThreadingHTTPServer):
    """One bucket called NAME.

    Attributes:
      objects: name -> (bytes, generation).
      refuses: status with which it answers everything, or 0.
      hidden: nobody may look at the bucket itself, as an account that has rights on objects alone.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), _Request)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.refuses, self.hidden = 0, False
        self.lock, self.generations, self.uploads = threading.Lock(), itertools.count(1), {}

    def handle_error(self, request, client_address):
        """Clients that hang up are killed processes here."""


@contextlib.contextmanager
def running() -> Iterator[Bucket]:
    """The stand-in, in a thread."""
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
        asked = {key: values[-1] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
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
                return self._upload(asked, body)
            if self.command == "DELETE":
                return self._delete(name, asked)
            if name:
                return self._get(name, asked, media=kind == "/download" or asked.get("alt") == "media")
            if address.path.endswith("/o"):
                return self._list(asked)
            return self._error(403) if self.server.hidden else self._say({"name": NAME})

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say(self, content: dict):
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")

    def _error(self, status: int):
        told = {"error": {"code": status, "message": f"the stand-in says {status}"}}
        self._send(status, json.dumps(told).encode(), Content_Type="application/json")

    def _described(self, name: str) -> dict:
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

    def _unmet(self, name: str, asked: dict) -> int:
        """The status where a precondition does not hold, else 0."""
        generation = self.server.objects.get(name, (b"", 0))[1]
        if "ifGenerationMatch" in asked and int(asked["ifGenerationMatch"]) != generation:
            return 412
        return 304 if "ifGenerationNotMatch" in asked and int(asked["ifGenerationNotMatch"]) == generation else 0

    def _get(self, name: str, asked: dict, *, media: bool):
        if name not in self.server.objects:
            return self._error(404)
        if status := self._unmet(name, asked):
            return self._send(status)
        if not media:
            return self._say(self._described(name))
        content, generation = self.server.objects[name]
        headers = {"x_goog_generation": str(generation), "Content_Type": "application/octet-stream"}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1]) if wanted[1] else max(len(content) - int(wanted[2]), 0)
            last = min(int(wanted[2]), len(content) - 1) if wanted[1] and wanted[2] else len(content) - 1
            if first > last:
                return self._send(416)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], **headers)
        return self._send(200, content, **headers)

    def _list(self, asked: dict):
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or not asked.get("startOffset", "") <= name:
                continue
            if "endOffset" in asked and name >= asked["endOffset"]:
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                prefixes.add(prefix + inner + delimiter)
            else:
                items.append(self._described(name))
        self._say({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _upload(self, asked: dict, body: bytes):
        if "upload_id" in asked:
            return self._upload_more(asked["upload_id"], body)
        if asked["uploadType"] == "resumable":
            key = str(next(self.server.generations))
            self.server.uploads[key] = (asked.get("name") or json.loads(body)["name"], b"")
            place = f"http://127.0.0.1:{self.server.server_port}/upload/storage/v1/b/{NAME}/o?upload_id={key}"
            return self._send(200, Location=place)
        if asked["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            told, content = BytesParser().parsebytes(head + body).get_payload()
            asked["name"] = json.loads(told.get_payload())["name"]
            start = body.index(b"\n\n", body.index(b"Content-Type", body.index(b"{"))) + 2
            body = body[start : body.rindex(b"\n--")]
        return self._store(asked["name"], body, asked)

    def _upload_more(self, key: str, body: bytes):
        name, before = self.server.uploads[key]
        self.server.uploads[key] = (name, before + body)
        if not self.headers.get("Content-Range", "").endswith("/*"):
            return self._store(name, before + body, {})
        return self._send(308, Range=f"bytes=0-{len(before + body) - 1}")

    def _store(self, name: str, content: bytes, asked: dict):
        if status := self._unmet(name, asked):
            return self._error(status)
        self.server.objects[name] = (content, next(self.server.generations))
        return self._say(self._described(name))

    def _delete(self, name: str, asked: dict):
        if name not in self.server.objects:
            return self._error(404)
        if status := self._unmet(name, asked):
            return self._error(status)
        del self.server.objects[name]
        return self._send(204)

    def _rewrite(self, name: str, to: str):
        if name not in self.server.objects:
            return self._error(404)
        self.server.objects[to] = (self.server.objects[name][0], next(self.server.generations))
        return self._say({"kind": "storage#rewriteResponse", "done": True, "resource": self._described(to)})


if __name__ == "__main__":
    Bucket(int(sys.argv[1])).serve_forever()
