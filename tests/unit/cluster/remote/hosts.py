"""Hosts on loopback that send what a test wants, and count who comes."""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

#: A certificate of `right.test` with its key, made for these tests, and good for a hundred years.
CERTIFICATE = Path(__file__).parent / "right.test.pem"


def picture(colour: str = "red", kind: str = "PNG", side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


PICTURE = picture()

Answer = Callable[["Asked"], None]


class Asked(BaseHTTPRequestHandler):
    """One request of a host."""

    protocol_version = "HTTP/1.1"
    server: Host

    def do_GET(self) -> None:
        self.server.requests.append(self)
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            self.server.answer(self)

    do_POST = do_GET  # noqa: N815

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.begin(status, **({"Content_Length": str(len(body))} | headers))
        self.wfile.write(body)

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Host(ThreadingHTTPServer):
    """A host that answers by `answer`; `connections` counts sockets, whatever came through them."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answer = answer
        self.requests: list[Asked] = []
        self.connections = 0
        #: Set at the end, so that no handler waits on.
        self.over = threading.Event()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def get_request(self) -> Any:
        taken = super().get_request()
        self.connections += 1
        return taken

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def host(answer: Answer, *, tls: bool = False) -> Iterator[Host]:
    server = Host(answer)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Names:
    """A name server: each look-up of a name takes its next answer, the last one for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        answers = self.answers[name]
        return list(answers.pop(0) if len(answers) > 1 else answers[0])
