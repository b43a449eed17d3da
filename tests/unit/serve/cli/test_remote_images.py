"""Catalogs of URLs on the command line: `check`, `forecast` and what `submit` hands in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli.common import local_farm
from serve.cli.main import app
from serve.embedded import FarmLock
from serve.settings import Settings
from tests.building import still_png
from tests.unit.cluster.remote.hosts import Asked, host

FLEET = Path(__file__).parents[4] / "examples" / "fleet.yaml"


def shop(asked: Asked) -> None:
    asked.send(200 if asked.path.startswith("/a.png") else 404, still_png(), ETag='"1"')


def catalog(folder: Path, port: int) -> str:
    path = folder / "c.csv"
    at = f"http://127.0.0.1:{port}"
    path.write_text(f"id,image,prompt\nA,{at}/a.png?sig=secret,zoom in\nB,{at}/b.png?sig=secret,zoom in\n")
    return str(path)


def run(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [*words])
    return found.exit_code, found.stdout, found.output


@pytest.mark.parametrize("command", ["check", "forecast"])
def test_rows_of_hosts_that_are_named_are_read(tmp_path: Path, command: str) -> None:
    more = ["--fleet", str(FLEET)] if command == "forecast" else []
    with host(shop) as server:
        words = [command, catalog(tmp_path, server.port), "--model", "camera", "--home", str(tmp_path / "home"), *more]
        code, out, _ = run(*words, "--json")
        assert code == 1
        assert out.count(f"port {server.port} is not asked") == 2
        assert server.connections == 0
        code, out, _ = run(*words, "--json", "--allow-private-hosts", f"127.0.0.1:{server.port}")
        assert code == 1
        assert "is not asked" not in out
        assert out.count("there is no such picture (404)") == 1
        assert "secret" not in out
    assert not (tmp_path / "home" / "clipmill.db").exists()
    json.loads(out)


def test_submit_puts_the_pictures_into_storage_and_asks_again_only_whether_they_changed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    farm = local_farm(settings)
    lock = FarmLock(settings.home)
    assert lock.try_acquire()
    lock.note(default_model="camera")
    try:
        with host(shop) as server:
            words = ["submit", catalog(tmp_path, server.port), "--home", str(settings.home), "--json"]
            words += ["--allow-private-hosts", f"127.0.0.1:{server.port}"]
            for _ in range(2):
                code, out, everything = run(*words)
                assert code in (0, 1), everything
                assert "secret" not in everything
                good, bad = farm.jobs(json.loads(out)["batch"]["id"])
                assert farm.storage.get_still(good.still) == still_png()
                assert [problem.field for problem in bad.problems] == ["image"]
            again = [asked for asked in server.requests if asked.headers["If-None-Match"]]
            assert [asked.path for asked in again] == ["/a.png?sig=secret"]
    finally:
        lock.release()


@pytest.mark.parametrize("hosts", ["http://x", "a b", "x:0", "10.0.0.0/99"])
def test_hosts_that_cannot_be_read_are_refused(tmp_path: Path, hosts: str) -> None:
    code, _, told = run("check", catalog(tmp_path, 1), "--model", "camera", "--allow-private-hosts", hosts)
    assert code == 2
    assert "--allow-private-hosts" in told
