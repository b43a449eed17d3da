"""A timestamp authority is asked where one is set up, once a file, and nobody else ever is."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.marks.mark import mark
from pipeline.marks.marker import Marker
from pipeline.marks.problems import SigningError
from pipeline.marks.trial import try_signing
from pipeline.marks.verdict import MarkState
from pipeline.marks.verify import verify
from tests.unit.pipeline.marks.clips import FACTS, identity, make_files

CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
O = Test authority
CN = clock
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[clock]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[tsa]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256,sha384,sha512
"""


@contextmanager
def authority(answer: bytes | Path) -> Iterator[tuple[str, list[str]]]:
    """The address of an authority, and what it was asked: one that answers so, or by openssl with the keys there."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["content-type"])
            query = self.rfile.read(int(self.headers["content-length"]))
            reply = answer if isinstance(answer, bytes) else stamped(answer, query)
            self.send_response(200)
            self.send_header("content-type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stamped(folder: Path, query: bytes) -> bytes:
    (folder / "query").write_bytes(query)
    command = ["openssl", "ts", "-reply", "-config", "config", "-section", "tsa", "-queryfile", "query"]
    keys = ["-signer", "clock.pem", "-inkey", "clock.key", "-chain", "root.pem", "-out", "reply"]
    subprocess.run([*command, *keys], cwd=folder, check=True, capture_output=True)
    return (folder / "reply").read_bytes()


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "config").write_text(CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    key = ["-newkey", "rsa:2048", "-nodes", "-config", "config"]
    for words in (
        "req -x509 -extensions root -subj /CN=root -keyout root.key -out root.pem",
        "req -keyout clock.key -out clock.csr",
        "x509 -req -in clock.csr -CA root.pem -CAkey root.key -set_serial 2 -extfile config -extensions clock"
        " -out clock.pem",
    ):
        command = words.split() + (key if words.startswith("req") else [])
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_time_of_an_authority_is_read_back(tmp_path: Path, clock: Path) -> None:
    with authority(clock) as (url, asked):
        stamping = replace(identity(), timestamp_url=url)
        try_signing(stamping)
        path = mark(make_files(tmp_path)["mp4"], FACTS, Marker(stamping, ""))
        assert asked == ["application/timestamp-query"] * 2
        found = verify(path)
        # Reading asks nobody.
        assert len(asked) == 2
    assert found.state is MarkState.VALID
    assert found.signer is not None
    assert found.signer.stamped_at


def test_an_authority_that_gives_no_time_signs_nothing(tmp_path: Path) -> None:
    path = make_files(tmp_path)["mp4"]
    before = path.read_bytes()
    with authority(b"no") as (url, asked):
        with pytest.raises(SigningError, match=url):
            mark(path, FACTS, Marker(replace(identity(), timestamp_url=url), ""))
        assert len(asked) == 1
    assert path.read_bytes() == before
