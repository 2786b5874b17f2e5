"""Plays a model hub's server for huggingface_hub's own client: what a push asks for, on a port of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_the_right_token"


class Hub:
    """Holds repositories: name -> {"private", "files"}. asked: (method, path) of every request. full: refuses every commit."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.messages: list[str] = []
        self.url = ""
        self.full = False

    def add(self, name: str, private: bool) -> None:
        self.repos[name] = {"private": private, "files": {}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.repos[name]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, code: int, data: Any = None, **headers: str) -> None:
            body = b"" if data is None else json.dumps(data).encode()
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _begin(self) -> bool:
            hub.asked.append((self.command, self.path))
            if self.path.startswith("/blobs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}":
                return True
            self._body()
            self._answer(401, {"error": "Invalid user token"}, X_Error_Message="Invalid user token")
            return False

        def do_GET(self) -> None:
            if not self._begin():
                return
            name = self.path.removeprefix("/api/models/").partition("/revision/")[0].partition("?")[0]
            if name not in hub.repos:
                self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
                return
            repo = hub.repos[name]
            siblings = [{"rfilename": path} for path in repo["files"]]
            self._answer(
                200, {"id": name, "private": repo["private"], "sha": "0" * 40, "tags": [], "siblings": siblings}
            )

        def do_PUT(self) -> None:
            if self._begin():
                hub.blobs[self.path.removeprefix("/blobs/")] = self._body()
                self._answer(200)

        def do_POST(self) -> None:
            if not self._begin():
                return
            body = self._body()
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if name in hub.repos:
                    self._answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
                    return
                hub.add(name, asked.get("private", asked.get("visibility") == "private"))
                self._answer(200, {"url": f"{hub.url}/{name}", "name": name})
            elif self.path == "/api/validate-yaml":
                self._answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**o, "actions": {"upload": {"href": f"{hub.url}/blobs/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                self._answer(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                if hub.full:
                    self._answer(403, {"error": "storage limit reached"}, X_Error_Message="storage limit reached")
                    return
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                hub.commit(name, [json.loads(line) for line in body.splitlines()])
                oid = hashlib.sha1(body).hexdigest()
                self._answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})
            else:
                self._answer(404, {"error": f"the stub has no {self.path}"})

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """Serves an empty hub at `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
