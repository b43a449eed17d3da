"""`clipmill render`: from a manifest to files, again, after deletions, changes, kills and beside another terminal."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Terminal, write_catalog
from tests.acceptance.test_farm import free_port
from tests.videos import decode_mp4, probe_mp4

pytestmark = pytest.mark.farm


def test_a_catalog_becomes_clips_and_every_repetition_is_free(terminal: Terminal, catalog: Path) -> None:
    out = terminal.folder / "out"
    first = terminal.run("render", str(catalog), "--out", str(out))
    assert first.code == 0, first.err
    assert "camera" in first.err.splitlines()[0]
    assert "no GPU" in first.err.splitlines()[0]
    for i in range(6):
        video = out / f"row-{i}.mp4"
        facts = probe_mp4(video)
        assert (facts.width, facts.height, facts.frames, facts.codec, facts.pix_fmt) == (
            256,
            256,
            12,
            "h264",
            "yuv420p",
        )
        frames = decode_mp4(video).astype(int)
        assert abs(frames[-1] - frames[0]).mean() > 1, "the clip does not move"
        assert (out / f"row-{i}.jpg").stat().st_size > 1000
        provenance = json.loads((out / f"row-{i}.json").read_text())
        assert provenance["spec"]["family"] == "camera"
        assert "no GPU" in provenance["model_choice"]
    assert "row-5.mp4" in (out / "index.html").read_text()
    assert terminal.attempts() == 6

    again = terminal.run("render", str(catalog), "--out", str(out))
    assert again.code == 0
    assert "nothing had to be rendered" in again.err

    kept = (out / "row-2.mp4").read_bytes()
    (out / "row-2.mp4").unlink()
    (out / "row-3.mp4").write_bytes(b"cut short")
    assert terminal.run("render", str(catalog), "--out", str(out)).code == 0
    assert (out / "row-2.mp4").read_bytes() == kept
    assert probe_mp4(out / "row-3.mp4").frames == 12
    assert terminal.attempts() == 6

    # Files for a marketplace are made of the same clips: nothing is rendered for them, nor encoded twice.
    (terminal.home / "profiles.yaml").write_text("small: {like: shop, width: 128, height: 128, min_seconds: 1}\n")
    for encoded in (True, False):
        delivered = terminal.run("render", str(catalog), "--out", str(out), "--deliver", "small")
        assert delivered.code == 0, delivered.err
        assert "6 delivered" in delivered.err
        assert ("(0 encoded now)" not in delivered.err) is encoded
        assert terminal.attempts() == 6
    facts = probe_mp4(out / "small" / "row-0.mp4")
    assert (facts.width, facts.height, facts.codec, facts.pix_fmt) == (128, 128, "h264", "yuv420p")

    # The same rows as a shop's own table: nothing is rendered or encoded, and it comes back with a column more.
    table = catalog.parent / "liste.csv"
    rows = [json.loads(line) for line in catalog.read_text().splitlines()]
    lines = [f"{one['id']};{one['image']};{one['prompt']};256p;12;12\r\n" for one in rows]
    table.write_text("Nr;Bild;Text;Klasse;Bilder;Rate\r\n" + "".join(lines), newline="")
    ours = "{id: Nr, image: Bild, prompt: Text, resolution_class: Klasse, frames: Bilder, fps: Rate}"
    (terminal.folder / "map.yaml").write_text(f"columns: {ours}\nvideo_column: Film\n")
    words = ["--out", str(terminal.folder / "feed-out"), "--deliver", "small", "--mapping", "map.yaml"]
    fed = terminal.run("render", str(table), *words, "--feed-out", "neu.csv", "--public-url", "https://cdn.test")
    assert fed.code == 0, fed.err
    assert "taken for a table read by a mapping in UTF-8, semicolons: 6 products" in fed.err
    assert "nothing had to be rendered" in fed.err
    assert "6 delivered (0 encoded now)" in fed.err
    urls = [f"https://cdn.test/small/{one['id']}.mp4" for one in rows]
    linked = [line.replace("\r\n", f";{url}\r\n") for line, url in zip(lines, urls, strict=True)]
    expected = "Nr;Bild;Text;Klasse;Bilder;Rate;Film\r\n" + "".join(linked)
    assert (terminal.folder / "neu.csv").read_bytes().decode() == expected

    changed = catalog.read_text().replace("pan left", "pan right")
    catalog.write_text(changed)
    result = terminal.run("render", str(catalog), "--out", str(out), "--json")
    assert result.code == 0
    assert result.json["batch"]["attempts"] == 1
    assert terminal.attempts() == 7


def test_equal_rows_share_one_clip(terminal: Terminal) -> None:
    catalog = write_catalog(terminal.folder / "shop", [{"prompt": "zoom in"}, {"prompt": "zoom in"}])
    shutil.copy(catalog.parent / "still-0.png", catalog.parent / "still-1.png")
    result = terminal.run("render", str(catalog), "--out", "out")
    assert result.code == 0, result.err
    assert terminal.attempts() == 1
    out = terminal.folder / "out"
    assert (out / "row-0.mp4").read_bytes() == (out / "row-1.mp4").read_bytes()


def test_after_three_sigkills_every_row_is_done_and_none_twice(terminal: Terminal) -> None:
    moves = ["zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down"]
    rows = [{"prompt": f"slow {move}", "frames": 40} for move in moves * 3]
    catalog = write_catalog(terminal.folder / "shop", rows)
    points = sorted(random.Random(20261120).sample(range(2, 15), 3))
    done: set[str] = set()
    for point in points:
        process = terminal.start("render", str(catalog), "--out", "out")
        terminal.until(lambda point=point: len(completed(terminal)) >= point, process)
        done |= completed(terminal)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = terminal.run("render", str(catalog), "--out", "out")
    assert last.code == 0, last.err
    assert len(list((terminal.folder / "out").glob("*.mp4"))) == 18
    published = Counter(
        key
        for (key,) in terminal.rows(
            "SELECT jobs.content_key FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
            "WHERE attempts.outcome = 'completed'"
        )
    )
    assert len(published) == 18
    assert set(published.values()) == {1}, "a completed clip was rendered again"
    assert done <= set(published)
    begun = terminal.rows(
        "SELECT count(*) FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        "JOIN clips ON clips.content_key = jobs.content_key "
        "WHERE attempts.started_at > clips.created_at"
    )
    assert begun == [(0,)], "an attempt began after its clip was finished"


def test_two_terminals_on_one_home_render_nothing_twice(terminal: Terminal) -> None:
    rows = [{"prompt": f"zoom in {i}", "frames": 30} for i in range(8)]
    catalog = write_catalog(terminal.folder / "shop", rows)
    one = terminal.start("render", str(catalog), "--out", "one")
    terminal.until(lambda: terminal.attempts() > 0, one)
    two = terminal.start("render", str(catalog), "--out", "two")
    results = [terminal.finish(one), terminal.finish(two)]
    assert [r.code for r in results] == [0, 0], [r.err for r in results]
    for folder in ("one", "two"):
        assert len(list((terminal.folder / folder).glob("*.mp4"))) == 8
    assert terminal.rows("SELECT count(*) FROM attempts WHERE outcome = 'completed'") == [(8,)]


def test_a_second_terminal_takes_over_when_the_first_dies(terminal: Terminal) -> None:
    mine = write_catalog(terminal.folder / "a", [{"prompt": f"zoom in {i}", "frames": 40} for i in range(6)])
    other = write_catalog(terminal.folder / "b", [{"prompt": f"pan left {i}"} for i in range(3)])
    one = terminal.start("render", str(mine), "--out", "one")
    terminal.until(lambda: terminal.attempts() > 0, one)
    two = terminal.start("render", str(other), "--out", "two")
    terminal.until(lambda: len(terminal.rows("SELECT id FROM batches")) == 2, two)
    os.killpg(one.pid, signal.SIGKILL)
    one.wait()
    result = terminal.finish(two)
    assert result.code == 0, result.err
    assert len(list((terminal.folder / "two").glob("*.mp4"))) == 3


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(terminal: Terminal) -> None:
    rows = [{"prompt": f"zoom in {i}", "frames": 40} for i in range(10)]
    catalog = write_catalog(terminal.folder / "shop", rows)
    process = terminal.start("render", str(catalog), "--out", "out")
    terminal.until(lambda: len(completed(terminal)) >= 2, process)
    process.send_signal(signal.SIGINT)
    stopped = terminal.finish(process)
    assert stopped.code == 130
    assert f"clipmill render {catalog}" in stopped.err
    before = len(completed(terminal))
    assert before < 10
    assert "row-0.mp4" in (terminal.folder / "out" / "index.html").read_text(), "no sheet of what is done"
    assert terminal.run("render", str(catalog), "--out", "out").code == 0
    assert terminal.rows("SELECT count(*) FROM attempts WHERE outcome = 'completed'") == [(10,)]


def test_a_killed_ray_daemon_ends_the_command_with_an_error_and_the_next_one_goes_on(terminal: Terminal) -> None:
    rows = [{"prompt": f"zoom in {i}", "frames": 40} for i in range(10)]
    catalog = write_catalog(terminal.folder / "shop", rows)
    process = terminal.start("render", str(catalog), "--out", "out")
    terminal.until(lambda: len(completed(terminal)) >= 1, process)
    (raylet,) = [p.pid for p in psutil.Process(process.pid).children() if p.name() == "raylet"]
    os.kill(raylet, signal.SIGKILL)
    broken = terminal.finish(process)
    assert broken.code == 3, broken.err
    assert "raylet" in broken.err
    assert f"clipmill render {catalog}" in broken.err
    assert terminal.run("render", str(catalog), "--out", "out").code == 0
    assert terminal.rows("SELECT count(*) FROM attempts WHERE outcome = 'completed'") == [(10,)]


def test_a_ray_daemon_killed_while_a_farm_starts_ends_it_with_an_error(terminal: Terminal) -> None:
    """Ray's own start then waits for ever."""
    process = terminal.start("up", "--cards", "c8", "--port", str(free_port()))

    def deploys() -> bool:
        names = [p.name() for p in psutil.Process(process.pid).children(recursive=True)]
        return any(name.startswith("ray::ServeCont") for name in names)

    terminal.until(deploys, process)
    (raylet,) = [p.pid for p in psutil.Process(process.pid).children() if p.name() == "raylet"]
    os.kill(raylet, signal.SIGKILL)
    broken = terminal.finish(process)
    assert "the farm is up" not in broken.err, "it was up before the daemon was killed: this shows nothing"
    assert broken.code == 3, broken.err
    assert "Ray's raylet was ended by SIGKILL" in " ".join(broken.err.split())


def test_every_diffusion_model_gives_equal_frames_twice(terminal: Terminal) -> None:
    models = ("i2vgen-xl-tiny", "svd-xt-tiny", "wan2.2-5b-tiny")
    row = {"prompt": "flowers blooming", "resolution_class": "256p", "frames": 5, "steps": 3}
    rows = [row | {"model": model} for model in models]
    catalog = write_catalog(terminal.folder / "shop", [*rows, rows[0] | {"prompt": "leaves falling"}])
    hashes = []
    for home in ("first", "second"):
        env = {"CLIPMILL_HOME": str(terminal.folder / home), "PYTHONHASHSEED": "0" if home == "first" else "77"}
        words = ("render", str(catalog), "--seed", "7", "--out", f"out-{home}")
        result = terminal.run(*words, **env)
        assert result.code == 0, result.err
        found = [json.loads((terminal.folder / f"out-{home}" / f"row-{i}.json").read_text()) for i in range(4)]
        assert [provenance["spec"]["family"] for provenance in found[:3]] == list(models)
        hashes.append([provenance["frames_sha256"] for provenance in found])
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 4


def test_the_shared_catalog(terminal: Terminal, shared_catalog: Path) -> None:
    result = terminal.run("render", str(shared_catalog), "--out", "out", "--limit", "3", "--class", "256p")
    assert result.code == 0, result.err
    assert len(list((terminal.folder / "out").glob("*.mp4"))) == 3


def completed(terminal: Terminal) -> set[str]:
    """Content keys with a finished clip."""
    return {key for (key,) in terminal.rows("SELECT content_key FROM clips")}
