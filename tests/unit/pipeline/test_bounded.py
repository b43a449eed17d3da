"""Work in a process of its own: what it may take, what it says, and that the next work finds a process again."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline.bounded import MEMORY_BYTES, MOST_MEMORY_BYTES, ExhaustedError, RaisedError, run_bounded
from pipeline.clips.still_check import check_still, still_bounds
from pipeline.clips.stills import MAX_STILL_PIXELS, DeclaredSize, open_still
from pipeline.problems import BadInputError
from tests.building import still_png

HERE = "tests.unit.pipeline.test_bounded:"


def length(data: bytes) -> int:
    return len(data)


def process_id(data: bytes) -> int:
    return os.getpid()


def gigabytes(data: bytes) -> int:
    return len(bytearray(MEMORY_BYTES))


def for_ever(data: bytes) -> None:
    while True:
        sum(range(10**6))


def fall_asleep(data: bytes) -> None:
    time.sleep(10**6)


def end(data: bytes) -> None:
    os.abort()


def refuse(data: bytes) -> None:
    raise LookupError("nothing")


def environment(data: bytes) -> dict[str, str]:
    return dict(os.environ)


def chatter(data: bytes) -> str:
    print("a library says something")
    os.write(1, b"\0" * 100)
    return "done"


@pytest.mark.parametrize("size", [0, 1, 3 * 2**20 + 1])
def test_data_arrives_whole(size):
    assert run_bounded(HERE + "length", bytes(size), cpu_s=5) == size


def test_a_process_is_used_again_and_is_another():
    first, second = (run_bounded(HERE + "process_id", b"", cpu_s=5) for _ in range(2))
    assert first == second
    assert first != os.getpid()


@pytest.mark.parametrize(
    ("function", "words"),
    [("gigabytes", "MiB"), ("for_ever", "more than 1 s"), ("fall_asleep", "more than 1 s"), ("end", "MiB")],
)
def test_what_takes_too_much_is_ended_and_the_next_goes_on(function, words):
    with pytest.raises(ExhaustedError, match=words):
        run_bounded(HERE + function, b"", cpu_s=1)
    assert run_bounded(HERE + "length", b"abc", cpu_s=5) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_what_befell_a_process_that_waited_is_not_held_against_the_next_work(number):
    """A kernel short of memory, a person: pictures were refused for it, one for each process that had waited."""
    idle = run_bounded("tests.light_work:process_id", b"", cpu_s=5)
    handle = os.pidfd_open(idle)
    try:
        os.kill(idle, number)
        if number != signal.SIGSTOP:
            assert select.select([handle], [], [], 30)[0]
        other = run_bounded("tests.light_work:process_id", b"", cpu_s=0.3)
        assert other != idle
        assert select.select([handle], [], [], 30)[0], "what does not answer is ended"
    finally:
        os.close(handle)


def end_once(data: bytes) -> str:
    mark = Path(data.decode())
    if mark.exists():
        return "done"
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def killed(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_work_whose_process_somebody_kills_is_done_once_more(tmp_path):
    assert run_bounded(HERE + "end_once", str(tmp_path / "mark").encode(), cpu_s=5) == "done"
    with pytest.raises(ExhaustedError, match="MiB"):
        run_bounded(HERE + "killed", b"", cpu_s=5)


def test_an_exception_is_told_by_name():
    with pytest.raises(RaisedError) as raised:
        run_bounded(HERE + "refuse", b"", cpu_s=5)
    assert raised.value.kind == "LookupError"


def test_secrets_stay_here(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ExhaustedError):
        # The next process is a new one.
        run_bounded(HERE + "end", b"", cpu_s=1)
    assert "hf_secret" not in run_bounded(HERE + "environment", b"", cpu_s=5).values()


def test_what_a_library_prints_is_no_answer():
    assert run_bounded(HERE + "chatter", b"", cpu_s=5) == "done"


def test_many_threads_get_their_own_answers():
    answers: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: run_bounded(HERE + "length", bytes(n), cpu_s=5)}))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n for n in range(20)}


# -- stills ------------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_a_still_has_the_size_that_it_is_opened_with():
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x112] = 6
    data = saved(turned, "JPEG", exif=exif)
    assert check_still(data) == open_still(data).size == (20, 40)
    assert check_still(still_png()) == (160, 120)


@pytest.mark.parametrize("data", [b"", b"no picture", still_png()[:50], saved(Image.new("RGB", (3, 3)), "PNG")])
def test_a_still_is_refused_in_the_words_of_whoever_opens_it(data):
    with pytest.raises(BadInputError) as expected:
        open_still(data)
    with pytest.raises(BadInputError) as found:
        check_still(data)
    assert found.value.problem == expected.value.problem


def test_a_picture_of_the_largest_size_is_taken_whoever_else_is_busy():
    """16 bits and 100 megapixels: refused or not by chance, when all sizes had one limit."""
    side = int(MAX_STILL_PIXELS**0.5)
    data = saved(Image.fromarray(np.zeros((side, side - 1), np.uint16)), "PNG")
    assert len(data) < 2**20
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(check_still(data))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(side - 1, side)] * 3


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("PNG", {"compress_level": 0}, "RGBA"),
        ("JPEG", {"progressive": True, "subsampling": 0, "quality": 95}, "CMYK"),
        ("TIFF", {}, "F"),
        ("WEBP", {"lossless": True, "quality": 0, "method": 0}, "RGBA"),
        pytest.param("AVIF", {"speed": 10}, "RGBA", marks=pytest.mark.skipif(not features.check("avif"), reason="")),
    ],
)
def test_memory_for_a_still_follows_from_its_size(kind, options, mode):
    """Noise, without the allowance that small pictures have: what is left is for its pixels and its file."""
    values = np.random.default_rng(5).integers(0, 256, (3000, 3000, 3), np.uint8)
    data = saved(Image.fromarray(values).convert(mode), kind, **options)
    bounds = still_bounds(DeclaredSize(width=3000, height=3000), len(data))
    none = still_bounds(DeclaredSize(width=0, height=0), 0)
    assert none.memory_bytes == MEMORY_BYTES
    own = 24 * 9_000_000 + 3 * len(data) + 250 * 2**20
    answer = run_bounded(
        "pipeline.clips.still_check:size_of", data, cpu_s=bounds.cpu_s, memory_bytes=min(own, MOST_MEMORY_BYTES)
    )
    assert answer == {"size": [3000, 3000]}


def test_a_stills_bounds_grow_with_what_it_declares():
    sides = (0, 100, 1000, 5000, 10_000)
    bounds = [still_bounds(DeclaredSize(width=side, height=side), 0) for side in sides]
    assert [one.cpu_s for one in bounds] == sorted({one.cpu_s for one in bounds})
    assert bounds[-1].memory_bytes > bounds[0].memory_bytes
    assert still_bounds(DeclaredSize(width=10_000, height=10_000), 10**10).memory_bytes == MOST_MEMORY_BYTES


def test_a_picture_that_takes_many_times_what_its_size_explains_is_ended():
    """A small progressive JPEG whose last scan comes again and again."""
    data = saved(Image.new("RGB", (1600, 1600)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:-2] + scan * 40_000 + b"\xff\xd9"
    assert len(bomb) < 10 * 2**20
    with pytest.raises(BadInputError, match=r"takes more than [0-9]+ s to open"):
        check_still(bomb)


def test_a_limit_beyond_all_is_refused():
    with pytest.raises(ValueError, match="memory_bytes"):
        run_bounded(HERE + "length", b"", cpu_s=1, memory_bytes=MOST_MEMORY_BYTES + 1)


def test_an_animation_of_very_many_frames_does_not_hang():
    frame = saved(Image.new("P", (16, 16)), "GIF")
    # Header, screen, colours; then the one frame again and again.
    head, body = frame[: frame.index(b",")], frame[frame.index(b",") : -1]
    # Its first frame is the still; no other is looked at.
    assert check_still(head + body * 1_000_000 + b";") == (16, 16)


def test_no_process_is_left_where_this_one_ends(tmp_path: Path):
    """Their pipes close with whoever started them, however that ends."""
    code = (
        "from pipeline.bounded import run_bounded; import time\n"
        f"print(run_bounded({HERE!r} + 'process_id', b'', cpu_s=5), flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert starter.stdout
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
