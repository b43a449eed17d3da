import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.clips.clip import ClipSpec, Fit, ResolutionClass
from pipeline.clips.encode import encode_poster
from pipeline.clips.frames import Frames
from pipeline.clips.inspection.product import product_box
from pipeline.clips.prompts import CameraMove, Motion, Speed, read_motion
from pipeline.clips.stills import fit_still
from pipeline.families.layouts import RESIDENT
from pipeline.models.camera import CameraModel, Pose, Rect, _plan, path_within, progress, view_of
from pipeline.models.model import Model, RenderStopped
from pipeline.notes import reading_notes

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 200, 20), (20, 20, 220), (230, 220, 10)


def spec(prompt: str, *, size: tuple[int, int] = (192, 192), frames: int = 9, fit: Fit = Fit.CONTAIN) -> ClipSpec:
    return ClipSpec(
        family="camera",
        revision="1",
        prompt=prompt,
        resolution_class=ResolutionClass.P256,
        width=size[0],
        height=size[1],
        frames=frames,
        fps=24,
        steps=1,
        guidance=1,
        seed=0,
        fit=fit,
    )


def render(still: Image.Image, prompt: str, **options: object) -> Frames:
    return CameraModel().render(still, spec(prompt, **options), RESIDENT, lambda done, of, _snapshot: None)


def four_markers(side: int = 384) -> Image.Image:
    """Squares of four colours at a quarter and three quarters of a light grey picture."""
    still = Image.new("RGB", (side, side), (230, 230, 230))
    places = {RED: (0.25, 0.25), GREEN: (0.75, 0.25), BLUE: (0.25, 0.75), YELLOW: (0.75, 0.75)}
    for colour, (x, y) in places.items():
        still.paste(colour, tuple(round(side * v) for v in (x - 0.04, y - 0.04, x + 0.04, y + 0.04)))
    return still


def marker(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Centroid (x, y) of a colour, weighted by likeness, so to a fraction of a pixel."""
    distance = np.abs(frame.astype(float) - colour).sum(axis=2)
    weight = np.clip(1 - distance / 150, 0, None)
    y, x = np.mgrid[0 : frame.shape[0], 0 : frame.shape[1]]
    assert weight.sum() > 20, "marker not in the frame"
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def span(frame: np.ndarray, a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(marker(frame, a) - marker(frame, b)))


def middle(frame: np.ndarray) -> np.ndarray:
    return np.mean([marker(frame, c) for c in (RED, GREEN, BLUE, YELLOW)], axis=0)


@pytest.mark.parametrize(
    ("prompt", "grows"),
    [("zoom in", True), ("zoom out", False), ("dolly in", True), ("dolly out", False), ("a nice thing", True)],
)
def test_zoom_and_dolly_change_the_size_in_the_right_direction(prompt: str, grows: bool) -> None:
    frames = render(four_markers(), prompt)
    sizes = np.array([span(f, RED, YELLOW) for f in frames])
    steps = np.diff(sizes) if grows else -np.diff(sizes)
    assert (steps > 0).all()
    assert max(sizes) / min(sizes) > 1.08
    # The wide end is the whole picture: markers a quarter in, half the clip apart.
    assert min(sizes) == pytest.approx(96 * math.sqrt(2), rel=0.02)


@pytest.mark.parametrize(
    ("prompt", "axis", "sign"),
    # The camera goes one way, the picture is seen to go the other.
    [("pan left", 0, 1), ("pan right", 0, -1), ("tilt up", 1, 1), ("tilt down", 1, -1)],
)
def test_pan_and_tilt_move_the_picture_against_the_camera(prompt: str, axis: int, sign: int) -> None:
    frames = render(four_markers(), prompt)
    path = np.array([middle(f) for f in frames])
    assert (sign * np.diff(path[:, axis]) > 0).all()
    assert np.ptp(path[:, axis]) > 0.1 * 192
    assert np.ptp(path[:, 1 - axis]) < 0.1


def test_a_slow_move_is_smooth_below_a_pixel() -> None:
    y, x = np.mgrid[0:192, 0:192]
    blob = 230 - 200 * np.exp(-((x - 96) ** 2 + (y - 96) ** 2) / 100)
    still = Image.fromarray(blob.round().astype(np.uint8)).convert("RGB")
    # Without its faintest rim, or a background off by one level would weigh as much as the blob.
    dark = np.clip(222 - render(still, "slow pan left", frames=60)[..., 0].astype(float), 0, None)
    centroids = (dark * x).sum(axis=(1, 2)) / dark.sum(axis=(1, 2))
    steps = np.diff(centroids)
    assert (steps > 0).all()
    assert steps.max() < 1
    # The path itself changes its step by at most ½ (π/N)² of its way, 0.03 px here; rounding to 8 bits adds a little.
    # Whole pixels would jump by 1, and a kernel without linear precision by 0.4.
    assert np.abs(np.diff(steps)).max() < 0.12
    assert steps[len(steps) // 2] > 3 * steps[1]


@pytest.mark.parametrize(("prompt", "turn"), [("roll clockwise", -1), ("roll counterclockwise", 1)])
def test_roll_turns_the_picture_against_the_camera(prompt: str, turn: int) -> None:
    frames = render(four_markers(), prompt)
    slopes = []
    for frame in frames:
        dx, dy = marker(frame, GREEN) - marker(frame, RED)
        slopes.append(math.degrees(math.atan2(dy, dx)))  # y points down: growing is clockwise
    assert (turn * np.diff(slopes) > 0).all()
    assert abs(slopes[-1] - slopes[0]) == pytest.approx(9, abs=0.5)


@pytest.mark.parametrize(("prompt", "sign"), [("orbit right", 1), ("orbit left", -1)])
def test_orbit_bends_the_perspective(prompt: str, sign: int) -> None:
    frames = render(four_markers(), prompt)
    ratio = np.array([span(f, GREEN, YELLOW) / span(f, RED, BLUE) for f in frames])  # right height over left height
    assert (sign * np.diff(ratio) > 0).all()
    assert ratio[len(ratio) // 2] == pytest.approx(1, abs=0.01)
    # A camera 13° to the right, 1.6 widths away, markers ¼ width off the axis: by similar triangles.
    depth = 0.25 * math.sin(math.radians(13))
    assert (ratio[-1] if sign > 0 else 1 / ratio[-1]) == pytest.approx((1.6 + depth) / (1.6 - depth), abs=0.01)


def test_a_dolly_sinks_while_it_closes_in() -> None:
    frames = render(four_markers(), "dolly in")
    keystone = [span(f, BLUE, YELLOW) / span(f, RED, GREEN) for f in (frames[0], frames[-1])]
    assert keystone[0] < 0.99  # from above the lower edge is further away
    assert keystone[1] == pytest.approx(1, abs=0.005)


def test_combined_moves_compose() -> None:
    frames = render(four_markers(), "zoom in while panning right")
    assert span(frames[-1], RED, BLUE) > 1.1 * span(frames[0], RED, BLUE)
    assert middle(frames[-1])[0] < middle(frames[0])[0] - 20


def test_speed_words_scale_the_move() -> None:
    ways = [
        np.ptp([middle(f)[0] for f in render(four_markers(), p)])
        for p in ("slow pan left", "pan left", "quick pan left")
    ]
    assert ways[0] / ways[1] == pytest.approx(0.6, abs=0.02)
    assert ways[2] / ways[1] == pytest.approx(1.6, abs=0.05)


@given(st.integers(2, 400))
def test_loops_close_without_a_jump_or_a_repeated_frame(frames: int) -> None:
    steps = progress(frames, loop=True)
    around = np.append(steps, steps[0])
    changes = np.abs(np.diff(around))
    assert changes.min() > 0
    # The way around is 2; no step is longer than an even cosine's steepest.
    assert changes.max() <= math.sin(math.pi / frames) + 1e-9


@pytest.mark.parametrize("frames", [12, 13])
def test_a_looping_clip_has_neighbours_alike_but_none_equal(frames: int) -> None:
    clip = render(four_markers(), "zoom in, looping", frames=frames).astype(int)
    changes = [np.abs(clip[i] - clip[(i + 1) % frames]).mean() for i in range(frames)]
    assert min(changes) > 0
    assert changes[-1] <= max(changes[:-1])


def test_one_way_starts_and_ends_at_rest() -> None:
    steps = progress(50, loop=False)
    assert steps[0] == 0
    assert steps[-1] == pytest.approx(1)
    assert np.diff(steps)[[0, -1]].max() < 0.1 * np.diff(steps).max()


# ------------------------------------------------------------------------------------- staying in the picture


def framed(side: int = 300) -> Image.Image:
    """A busy picture whose surroundings cannot be continued: its rim changes colour all along."""
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(40, 216, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize(
    "prompt", ["fast pan left", "tilt up", "roll clockwise", "orbit right", "fast dolly out", "zoom out"]
)
def test_no_frame_shows_what_lies_outside_a_busy_picture(prompt: str, fit: Fit) -> None:
    size = (192, 192)
    placed = Rect(left=-96, top=-96, right=96, bottom=96)
    path, *_ = _plan(framed(), spec(prompt, size=size, fit=fit), read_motion(prompt))
    for view in path.views:
        for x, y in [(-96, -96), (96, -96), (96, 96), (-96, 96)]:
            u, v, w = view @ (x, y, 1)
            assert placed.left - 1e-3 <= u / w <= placed.right + 1e-3
            assert placed.top - 1e-3 <= v / w <= placed.bottom + 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(list(CameraMove)), min_size=1, max_size=4),
    st.sampled_from(list(Speed)),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
)
def test_any_mix_of_moves_stays_within_its_limits(moves: set[CameraMove], speed: Speed, tiles: tuple[int, int]) -> None:
    width, height = 16 * tiles[0], 16 * tiles[1]
    limits = Rect(left=-width / 2, top=-height / 2, right=width / 2, bottom=height / 2)
    motion = Motion(moves=tuple(sorted(moves)), speed=speed)
    for view in path_within(motion, progress(7, False), (width, height), limits).views:
        for x, y in [(a, b) for a in (limits.left, limits.right) for b in (limits.top, limits.bottom)]:
            u, v, w = view @ (x, y, 1)
            assert w > 0
            assert abs(u / w) <= width / 2 + 1e-3
            assert abs(v / w) <= height / 2 + 1e-3


def test_a_plain_background_goes_on_so_the_product_is_not_enlarged() -> None:
    still = four_markers()
    frames = render(still, "pan left")
    assert span(frames[4], RED, GREEN) == pytest.approx(96, abs=0.3)
    # All of the frame's rim is background, at every moment.
    for frame in frames:
        rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).astype(int)
        assert np.abs(rim - 230).max() <= 1


def test_the_wide_end_of_a_zoom_is_the_fitted_still() -> None:
    smooth = Image.linear_gradient("L").resize((300, 300)).convert("RGB")
    for fit in Fit:
        first = render(smooth, "zoom in", size=(256, 192), fit=fit)[0].astype(int)
        fitted = np.asarray(fit_still(smooth, (256, 192), fit), int)
        assert np.abs(first - fitted).mean() < 2, fit


def test_zooming_into_a_large_still_stays_sharp() -> None:
    # Stripes of one clip pixel: they exist in the large still and must survive at 1.22 times.
    x = np.arange(768)
    stripes = Image.fromarray(np.tile(np.where(x // 4 % 2, 255, 0).astype(np.uint8), (768, 1))).convert("RGB")
    # With a plain border there is room for all of the zoom.
    stripes.paste((128, 128, 128), (0, 0, 160, 768))
    stripes.paste((128, 128, 128), (608, 0, 768, 768))
    stripes.paste((128, 128, 128), (0, 0, 768, 160))
    stripes.paste((128, 128, 128), (0, 608, 768, 768))
    large = render(stripes, "zoom in")[-1].astype(float)
    small = render(stripes.resize((192, 192), Image.Resampling.LANCZOS), "zoom in")[-1].astype(float)
    assert large[96, 60:130, 0].std() > 1.5 * small[96, 60:130, 0].std()


# ------------------------------------------------------------------------------------------- as a model


def test_at_rest_the_view_is_the_plane_itself() -> None:
    view = view_of(Pose(), 320, 192)
    np.testing.assert_allclose(view / view[2, 2], np.eye(3), atol=1e-12)


def test_same_arguments_same_bytes_and_every_frame_is_told() -> None:
    still, told = four_markers(), []
    first = CameraModel().render(
        still, spec("orbit right"), RESIDENT, lambda done, of, _snapshot: told.append((done, of))
    )
    assert told == [(i, 9) for i in range(1, 10)]
    other_seed = spec("orbit right").model_copy(update={"seed": 99})
    second = CameraModel().render(still, other_seed, RESIDENT, lambda done, of, _snapshot: None)
    assert first.shape == (9, 192, 192, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == second.tobytes()


def test_stopping_ends_within_the_frame() -> None:
    told = []

    def stop(done: int, of: int, _snapshot: object) -> None:
        told.append(done)
        if done == 3:
            raise RenderStopped

    with pytest.raises(RenderStopped):
        CameraModel().render(four_markers(), spec("zoom in"), RESIDENT, stop)
    assert told == [1, 2, 3]


def test_notes_tell_an_assumed_move() -> None:
    model: Model = CameraModel()
    assert model.notes(spec("a shoe"))["assumed"] is True
    notes = model.notes(spec("slow pan left, looping"))
    assert notes["moves"] == ["pan left"]
    assert (notes["speed"], notes["loop"], notes["assumed"]) == ("slow", True, False)
    assert {"numpy", "pillow"} <= set(model.describe())


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (16, 16), (30, 2000)])
@pytest.mark.parametrize("fit", list(Fit))
def test_odd_stills_render(shape: tuple[int, int], fit: Fit) -> None:
    frames = render(Image.new("RGB", shape, (9, 90, 200)), "orbit right and zoom in", size=(96, 64), frames=3, fit=fit)
    assert np.abs(frames.astype(int) - (9, 90, 200)).max() <= 1


def test_a_static_camera_shows_the_fitted_still_throughout() -> None:
    frames = render(four_markers(), "static shot", frames=3)
    assert (frames == frames[0]).all()


# ------------------------------------------------------------------------------------------- the product stays whole

MOVES = ["pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out", "fast zoom out", "dolly in",
         "orbit left", "roll clockwise", "pan left and zoom in", "fast pan right, looping"]  # fmt: skip


def product_of(share: float, background: str, side: int = 450) -> Image.Image:
    """A red square over `share` of a picture whose background is plain or not."""
    levels = np.random.default_rng(0).integers(90, 170, (side, side, 1), dtype=np.uint8)
    grounds = {
        "white": np.full((side, side, 3), 255, np.uint8),
        "gradient": np.broadcast_to(np.linspace(200, 240, side)[:, None, None], (side, side, 3)).astype(np.uint8),
        "busy": levels.repeat(3, axis=2),
    }
    pixels = grounds[background].copy()
    edge = round(side * (1 - share) / 2)
    pixels[edge : side - edge, edge : side - edge] = (200, 30, 30)
    return Image.fromarray(pixels)


def sides_cut(frame: np.ndarray) -> list[str]:
    red = frame[..., 0].astype(int) - frame[..., 1] > 80
    edges = {"left": red[:, 0], "right": red[:, -1], "top": red[0], "bottom": red[-1]}
    return [name for name, edge in edges.items() if edge.any()]


@pytest.mark.parametrize("background", ["white", "gradient", "busy"])
@pytest.mark.parametrize("prompt", MOVES)
def test_a_product_as_large_as_shops_ask_for_stays_whole(prompt: str, background: str, tmp_path: Path) -> None:
    frames = render(product_of(0.867, background), prompt)
    assert {i: sides for i, frame in enumerate(frames) if (sides := sides_cut(frame))} == {}
    encode_poster(frames, tmp_path / "poster.jpg")
    assert sides_cut(np.asarray(Image.open(tmp_path / "poster.jpg"))) == []
    # It still moves.
    assert np.abs(frames[0].astype(int) - frames[len(frames) // 2]).max() > 60


def test_a_move_without_room_is_shortened_and_says_so() -> None:
    for share, background, short in ((0.5, "white", False), (0.867, "white", False), (0.867, "busy", True)):
        model, wanted = CameraModel(), spec("pan left")
        model.render(product_of(share, background), wanted, RESIDENT, lambda done, of, _snapshot: None)
        told = model.notes(wanted)
        assert ("move_share" in told) is short, (share, background)
        assert [note.code for note in reading_notes(told)] == (["move_shortened"] if short else [])
        # Of another clip it knows nothing.
        assert "move_share" not in model.notes(spec("pan right"))


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("size", [(256, 128), (128, 256), (192, 192)])
def test_a_product_that_the_fit_cuts_stops_no_move(fit: Fit, size: tuple[int, int]) -> None:
    path, *_ = _plan(product_of(0.867, "white"), spec("pan left", size=size, fit=fit), read_motion("pan left"))
    assert path.share > 0.3


def test_a_small_product_changes_nothing() -> None:
    path, *_ = _plan(product_of(0.5, "white"), spec("pan left"), read_motion("pan left"))
    free = path_within(
        read_motion("pan left"), progress(9, False), (192, 192), Rect(left=-1e9, top=-1e9, right=1e9, bottom=1e9)
    )
    np.testing.assert_array_equal(path.views, free.views)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.867, 0.95])
@pytest.mark.parametrize("background", ["white", "gradient"])
def test_the_product_is_found_on_plain_backgrounds(share: float, background: str) -> None:
    box = product_box(product_of(share, background, side=1000))
    assert box == pytest.approx((0.5 - share / 2, 0.5 - share / 2, 0.5 + share / 2, 0.5 + share / 2), abs=0.01)


def test_no_product_is_found_where_there_is_none_or_nobody_can_tell() -> None:
    assert product_box(product_of(0.6, "busy")) is None
    assert product_box(Image.new("RGB", (64, 48), (9, 90, 200))) == (0.5, 0.5, 0.5, 0.5)
    slope = np.broadcast_to(np.linspace(180, 240, 300)[:, None, None], (300, 200, 3)).astype(np.uint8)
    assert product_box(Image.fromarray(slope)) == (0.5, 0.5, 0.5, 0.5)
