"""An S3 server on this machine, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

#: Names and keys that the server takes; none of them is anybody's.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
LIMIT_S = 60


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The URL of a server that is up until the block ends."""
    if not all(map(find_spec, ("moto", "flask", "flask_cors", "s3fs"))):
        pytest.skip("moto[s3], flask, flask-cors and s3fs are not installed")
    log = (folder / "s3.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | ENVIRONMENT,
    )
    try:
        yield _url_of(process, folder / "s3.log")
    finally:
        process.terminate()
        process.wait(timeout=LIMIT_S)
        log.close()


def _url_of(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        said = [line for line in log.read_text().splitlines() if "Running on http" in line]
        if said:
            url = said[-1].rpartition("Running on ")[2].strip()
            assert httpx.get(f"{url}/moto-api/data.json", timeout=LIMIT_S).status_code == 200
            return url
        time.sleep(0.05)
    raise AssertionError(f"the S3 server did not come up: {log.read_text()}")
