"""An ASGI application behind a real server, which is what Serve's proxy is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

PATIENCE_S = 60


@contextmanager
def served(api: Any, port: int = 0) -> Iterator[int]:
    """Serves `api` on a port of loopback (0: on a free one); yields the port."""
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert time.monotonic() < deadline, "the server never started"
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.force_exit = server.should_exit = True
        thread.join(PATIENCE_S)
