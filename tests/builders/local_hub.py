"""A hub on this machine: what huggingface_hub's client needs to create a repository, commit to it and download it.

One branch, files in memory, no large-file storage, no users.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote


class LocalHub(ThreadingHTTPServer):
    """``repositories``: id → path → content; ``commits``: id → id of the last commit; ``history``: of all of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.history: dict[str, dict[str, dict[str, bytes]]] = {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        content = self.repositories.setdefault(name, {})
        content |= files
        self.commits[name] = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.history.setdefault(name, {})[self.commits[name]] = dict(content)
        return self.commits[name]


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.commit(name, {})
            self._answer({"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})
        elif parts[1] == "validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        elif "commit" in parts:
            lines = [json.loads(line)["value"] for line in body.splitlines() if json.loads(line)["key"] == "file"]
            name = "/".join(parts[2:4])
            commit = self.server.commit(name, {line["path"]: base64.b64decode(line["content"]) for line in lines})
            url = f"{self.server.endpoint}/{name}/commit/{commit}"
            self._answer({"commitUrl": url, "commitOid": commit, "success": True})
        else:
            self._missing("Endpoint")

    def do_GET(self) -> None:
        self._file_or_information()

    def do_HEAD(self) -> None:
        self._file_or_information()

    def _file_or_information(self) -> None:
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.server.repositories:
            return self._missing("Repo")
        place = 5 if parts[0] == "api" else 3
        revision = parts[place] if len(parts) > place else "main"
        commit = self.server.commits[name] if revision == "main" else revision
        if commit not in self.server.history[name]:
            return self._missing("Revision")
        files = self.server.history[name][commit]
        if parts[0] == "api" and (len(parts) == 4 or parts[4] == "revision"):
            return self._answer({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
        if parts[0] == "api" and parts[4] == "tree":
            return self._answer([])
        path = "/".join(parts[4:])
        if path not in files:
            return self._missing("Entry")
        digest = hashlib.sha1(files[path]).hexdigest()
        self._send(200, files[path], {"ETag": f'"{digest}"', "X-Repo-Commit": commit})

    def _answer(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, what: str) -> None:
        self._send(404, b"", {"X-Error-Code": f"{what}NotFound"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that runs inside the ``with``."""
    hub = LocalHub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
