"""The contact sheet as a person opens it: a file, in a real browser, without any server."""

import shutil
import subprocess

import pytest
from PIL import Image, ImageDraw

from cluster.results.export import BatchSummary, ResultRow, write_clip, write_sheet
from cluster.storage import Storage
from pipeline.problems import Problem

pytestmark = pytest.mark.browser

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REMEDY = "Export the picture again as WEBP, JPEG or PNG."
SIZES = [(256, 256), (208, 256), (320, 208), (256, 256)]


def clip(storage: Storage, folder, number: int, size: tuple[int, int]) -> dict[str, str]:
    for n in range(16):
        frame = Image.new("RGB", size, (40 * number, 120, 200))
        ImageDraw.Draw(frame).ellipse([8 * n, 40, 8 * n + 60, 100], fill="white")
        frame.save(folder / f"{n:03}.png")
    pattern, video = str(folder / "%03d.png"), folder / "clip.mp4"
    options = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-framerate", "8", "-i", pattern]
    subprocess.run([*command, *options, str(video)], check=True)
    frame.save(folder / "poster.jpg")
    keys = {f"{kind}_key": f"clips/{number}.{kind}" for kind in ("video", "poster", "provenance")}
    storage.put_file(keys["video_key"], video)
    storage.put_file(keys["poster_key"], folder / "poster.jpg")
    storage.put_bytes(keys["provenance_key"], b'{"seed": 7}')
    return keys


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    storage, out = Storage(folder / "farm"), folder / "out 100% #1"
    rows = []
    for number, (width, height) in enumerate(SIZES, start=1):
        row = ResultRow(
            id=f"mug #{number} 50%?&'\"<b>",
            number=number,
            prompt="pan left </script><script>window.hacked = 1</script>",
            state="completed",
            resolution_class="256p" if number < 4 else "512p",
            width=width,
            height=height,
            frames=16,
            fps=8,
            seconds=2,
            seed=number,
            extra={"brand": f"Brand{number}"},
            **clip(storage, folder, number, (width, height)),
        )
        assert len(write_clip(out, row, storage)) == 3
        rows.append(row)
    problem = Problem(field="image", message="pics/5.webp ends after 1,024 bytes", remedy=REMEDY)
    rows.append(ResultRow(id="broken", number=5, prompt="tilt up", state="failed", problem=problem))
    return write_sheet(out, "Autumn", rows, BatchSummary(finished_at=0)).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, sheet):
    """The sheet, opened; afterwards nothing may have been complained of or fetched from elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(sheet)
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []


def test_every_clip_plays_when_it_is_seen(page):
    tiles = page.locator(".tile video")
    assert tiles.count() == len(SIZES)
    for n in range(len(SIZES)):
        tiles.nth(n).scroll_into_view_if_needed()
        page.wait_for_function("n => document.querySelectorAll('.tile video')[n].currentTime > 0.2", arg=n)
    sizes = page.evaluate("[...document.querySelectorAll('.tile video')].map(v => [v.videoWidth, v.videoHeight])")
    assert sizes == [list(size) for size in SIZES]


def test_a_clip_out_of_sight_rests(page):
    page.wait_for_function("document.querySelector('.tile video').currentTime > 0")
    page.set_viewport_size({"width": 360, "height": 260})
    page.locator(".tile").last.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.tile video').paused")


def test_a_failed_row_tells_what_to_do(page):
    card = page.locator(".tile.failed")
    assert REMEDY in card.inner_text()
    assert "image" in card.inner_text()
    card.locator(".open").click()
    assert REMEDY in page.locator("dialog").inner_text()


def test_rows_are_filtered_by_text_state_and_class(page):
    def shown() -> int:
        return page.locator(".tile:visible").count()

    page.get_by_label("Search").fill("brand2")
    assert shown() == 1
    assert page.locator("#count").inner_text() == "1 of 5 rows"
    page.get_by_label("Search").fill("no such thing")
    assert shown() == 0
    page.get_by_text("Show everything").click()
    assert shown() == 5
    page.get_by_label("State", exact=True).select_option("failed")
    assert shown() == 1
    page.get_by_label("State", exact=True).select_option("")
    page.get_by_label("Resolution class").select_option("512p")
    assert shown() == 1


def test_rows_are_sorted(page):
    page.get_by_label("Sort by").select_option("size")
    first = page.locator(".tile").first
    assert "320 × 208" in first.text_content()


def test_the_large_view_by_keyboard(page):
    page.locator(".tile .open").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert "Brand1" in dialog.inner_text()
    page.wait_for_function("document.querySelector('dialog video').currentTime > 0.2")
    page.keyboard.press("ArrowRight")
    assert "Brand2" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # The browser first gives focus back to where the dialog was opened from.
    page.wait_for_function("document.activeElement.closest('.tile')?.textContent.includes('mug #2')")


def test_links_lead_to_the_files(page):
    page.locator(".tile .open").first.click()
    links = page.locator("dialog .links a").evaluate_all("links => links.map(a => decodeURIComponent(a.pathname))")
    # What some disks do not take in a name is written as in URLs.
    name = "mug #1 50%%3F&'%22%3Cb%3E"
    assert [link.rsplit("/", 1)[1] for link in links] == [f"{name}.mp4", f"{name}.json"]


def test_reduced_motion_is_respected(browser, sheet):
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(sheet)
    page.wait_for_function("document.querySelector('.tile video').near === true")
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    page.locator(".tile .play").first.click()
    page.wait_for_function("document.querySelector('.tile video').currentTime > 0")
    context.close()
