"""A hub of models on loopback: as much of its HTTP as fetching a pinned revision takes, and its faults on demand.

Besides, the small networks as if they were published there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.devices.emulated import HostDevice
from pipeline.families import FAMILIES, Family, family_named
from pipeline.memory.footprint import memory_model
from pipeline.models.loading import load_model
from pipeline.models.tiny import make_tiny
from pipeline.weights.weights import MANIFEST, WeightsManifest, built_folder

TINY = [family for family in FAMILIES.values() if family.repo is None and family.components]
REVISION = "5" * 40
OTHER = "0" * 40


@dataclass
class Hub:
    """One repository at one revision. Weights are answered by a redirect to another host, as the real one does."""

    repo: str
    revision: str
    folder: Path
    #: Path -> how many bytes of each next answer come before the connection closes.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    #: Paths of which the last byte comes wrong.
    corrupt: set[str] = field(default_factory=set)
    #: Whether the listing says no sizes and checksums, as a plain mirror's.
    bare: bool = False
    #: Not None: only this token is let in.
    token: str | None = None
    #: HTTP status of every answer with bytes, instead of the bytes.
    broken: int | None = None
    #: The commit the hub says it gives, where that is not the one asked for.
    says: str | None = None
    #: (path, Range header, Authorization header, whether on the second host) of every answer with bytes.
    served: list[tuple[str, str | None, str | None, bool]] = field(default_factory=list)
    #: Authorization header of every request, whatever for.
    asked: list[str | None] = field(default_factory=list)
    #: Set once an answer was cut.
    was_cut: threading.Event = field(default_factory=threading.Event)
    #: Cleared: an answer that was cut stays open until it is set.
    close_cut: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __post_init__(self) -> None:
        self.close_cut.set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self) -> dict[str, bytes]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.close_cut.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        second = self.headers["Host"].startswith("localhost")
        hub.asked.append(self.headers["Authorization"])
        if not second and hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._fault(403 if self.headers["Authorization"] else 401, "GatedRepo")
        if path.startswith("/api/models/"):
            return self._listing(path)
        resolve = f"/{hub.repo}/resolve/{hub.revision}/"
        if not path.startswith(resolve):
            return self._fault(404, "RevisionNotFound" if f"/{hub.repo}/" in path else "RepoNotFound")
        name = path.removeprefix(resolve)
        content = hub.files().get(name)
        if content is None:
            return self._fault(404, "EntryNotFound")
        if name.endswith(".safetensors") and not second:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.port}{path}")
            self.send_header("X-Repo-Commit", hub.revision)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._bytes(name, content, second)

    def _listing(self, path: str) -> None:
        hub = self.hub
        if path.split("/revision/")[0] != f"/api/models/{hub.repo}":
            return self._fault(404, "RepoNotFound")
        if path.partition("/revision/")[2] != hub.revision:
            return self._fault(404, "RevisionNotFound")
        siblings: list[dict[str, Any]] = []
        for name, content in hub.files().items():
            entry: dict[str, Any] = {"rfilename": name}
            if not hub.bare:
                entry |= {"size": len(content), "blobId": git_sha1(content)}
                if name.endswith(".safetensors"):
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": hub.repo, "sha": hub.says or hub.revision, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def _bytes(self, name: str, content: bytes, second: bool) -> None:
        hub = self.hub
        wanted = self.headers["Range"]
        if self.command == "GET":
            hub.served.append((name, wanted, self.headers["Authorization"], second))
            if hub.broken:
                return self._fault(hub.broken, "")
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", hub.revision)
        self.send_header("ETag", f'"{git_sha1(content)}"')
        self.send_header("Content-Length", str(len(rest)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if name in hub.corrupt:
            rest = rest[:-1] + bytes([rest[-1] ^ 1])
        if hub.cuts.get(name):
            self.wfile.write(rest[: hub.cuts[name].pop(0)])
            self.wfile.flush()
            hub.was_cut.set()
            hub.close_cut.wait(30)
            self.close_connection = True
            return None
        self.wfile.write(rest)
        return None

    def _fault(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def git_sha1(content: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Folders(dict[str, Path]):
    """By family the folder of its small network: made once, when asked for, and never changed."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __missing__(self, name: str) -> Path:
        self[name] = built_folder(FAMILIES[name], self._home)
        make_tiny(FAMILIES[name], self[name])
        return self[name]


def from_hub(family: Family) -> Family:
    """The small family as if it were published."""
    return replace(
        family,
        name="published",
        repo="someone/small",
        revision=REVISION,
        memory=memory_model(family_named(family.name)),
    )


def load(family: Family, home: Path, folder: Path | None = None, **changes: Any) -> Any:
    options: dict[str, Any] = {"weights_dir": folder, "home": home, "offline": True, "on_load": lambda _text: None}
    return load_model(family, HostDevice(), **(options | changes))


def manifest_for(folder: Path, family: Family) -> WeightsManifest:
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    return WeightsManifest(family=family.name, repo=family.repo or "", revision=family.revision, files=files)
