"""The dry run against what is not its tracker: the profiler's allocator events, published sizes, earlier figures."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from pipeline.clips.clip import ResolutionClass  # noqa: E402
from pipeline.devices.emulated import HostDevice  # noqa: E402
from pipeline.dryrun import table  # noqa: E402
from pipeline.dryrun.device import DryDevice  # noqa: E402
from pipeline.dryrun.run import DryModel, clip_of  # noqa: E402
from pipeline.families import FAMILIES, Line, Stage, family_named  # noqa: E402
from pipeline.families.layouts import RESIDENT, Layout  # noqa: E402
from pipeline.memory.footprint import memory_model  # noqa: E402
from pipeline.models.build import build, build_parts, configs_of  # noqa: E402

GIB = 2**30
TINY = family_named("i2vgen-xl-tiny")
LEAN = Layout(split_guidance=True, chunk_feed_forward=4)
#: Millions of parameters, as the models' pages and papers give them.
PUBLISHED = {
    "i2vgen-xl": {"unet": 1420.5, "vae": 83.7, "text_encoder": 353.0, "image_encoder": 632.1},
    "svd-xt": {"unet": 1524.6, "vae": 97.7, "image_encoder": 632.1},
    "wan2.2-5b": {"transformer": 4999.8, "vae": 704.7, "text_encoder": 5680.9},
}


def ignore_step(_done, _total, _snapshot):
    """Progress nobody reads."""


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_packaged_configurations_are_the_published_networks(name):
    family = family_named(name)
    parts = build_parts(family, configs_of(family), torch.float16)
    found = {component: round(count(getattr(parts, component)) / 1e6, 1) for component in parts.stages}
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_is_built_in_its_own_precision_and_never_takes_more_of_the_card(name):
    family, card = family_named(name), DryDevice()
    with card.work():
        parts = build_parts(family, configs_of(family), getattr(torch, family.half), "meta")
    weights = sum(tensor.nbytes for network in parts.networks for tensor in (*network.parameters(), *network.buffers()))
    assert card.peak_bytes() < 1.02 * weights
    assert torch.get_default_dtype() is torch.float32


def allocator_peak(work, folder: Path):
    """(result, highest live bytes above the start), from the allocator's own events.

    What a convolution allocates and frees within itself (copies in its library's own arrangement) is left out: it is
    of the CPU's kernels, not of the network.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        result = work()
    path = folder / "trace.json"
    found.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "aten::convolution")
    moves = sorted((e["ts"], e["args"]["Addr"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    inner: set[int] = set()
    open_at: dict[int, int] = {}
    place = 0
    for index, (at, address, size) in enumerate(moves):
        if size > 0:
            open_at[address] = index
        elif (made := open_at.pop(address, None)) is not None:
            while place < len(spans) and spans[place][1] < at:
                place += 1
            if place < len(spans) and spans[place][0] <= moves[made][0] and at <= spans[place][1]:
                inner |= {made, index}
    live = peak = 0
    for index, (_, _, size) in enumerate(moves):
        if index not in inner:
            live += size
            peak = max(peak, live)
    return result, peak


def test_peaks_are_those_of_the_allocator_in_a_real_run(tmp_path):
    # From the second step on what is computed once a clip is there.
    spec = clip_of(TINY, 192, 128, 3).model_copy(update={"steps": 2})
    real, dry = build(TINY, HostDevice(), torch.float32), DryModel(TINY, torch.float32)
    with torch.no_grad():
        halves = real.condition(Image.new("RGB", spec.size), spec)
        # Networks on the card, libraries warm.
        real.decode(real.denoise(halves, spec, RESIDENT, ignore_step), RESIDENT)
        held = {id(t): t for half in (halves.conditional, halves.unconditional) for t in half.values()}
        conditions = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
        # The sampler's tables stay on the host beside a real card; here all is host memory.
        tables = sum(t.nbytes for t in vars(real.scheduler_of(spec)).values() if isinstance(t, torch.Tensor))
        for layout in (RESIDENT, LEAN):
            predicted = dry.run(192, 128, 3, layout).stages
            latents, peak = allocator_peak(partial(real.denoise, halves, spec, layout, ignore_step), tmp_path)
            assert conditions + peak - tables == pytest.approx(predicted[Stage.DENOISE].peak_bytes, rel=0.02)
        _, peak = allocator_peak(lambda: real.decode(latents, RESIDENT), tmp_path)
        assert latents.nbytes + peak == pytest.approx(predicted[Stage.DECODE].peak_bytes, rel=0.02)


@pytest.fixture(scope="module")
def i2vgen():
    return DryModel(family_named("i2vgen-xl"))


@pytest.mark.parametrize(
    ("layout", "gib"), [(RESIDENT, 2.59), (Layout(split_guidance=True, chunk_feed_forward=8), 0.61)], ids=str
)
def test_the_real_network_takes_what_two_other_trackers_found(i2vgen, layout, gib):
    """512p × 16 frames in float16; 41.9 TFLOP a step however it is laid out.

    Less the keys and values that 16 frames of two halves share with all steps; those of one frame are there meanwhile.
    """
    # Widths of the layers with cross-attention; tokens of prompt, picture's latents and picture; one of two halves.
    widths, tokens, half = 5 * (320 + 640) + 6 * 1280, 77 + 64 + 4, 2
    kept = half * tokens * widths * 2
    projected = 16 * half * tokens * widths * 2 * 1024 * 2
    run = i2vgen.run(512, 512, 16, layout, frozenset({Stage.DENOISE})).stages[Stage.DENOISE]
    assert run.peak_bytes / GIB == pytest.approx(gib + 2 * kept / GIB, abs=0.01)
    assert run.flops / 1e12 == pytest.approx(41.9 - projected / 1e12, abs=0.05)
    assert run.where.startswith("unet.")


def test_weights_are_counted_once_and_nothing_is_left_behind(i2vgen):
    expected = {Stage.ENCODE: 985.1e6 * 2, Stage.DENOISE: 1420.5e6 * 2, Stage.DECODE: 83.7e6 * 2}
    assert dict(i2vgen.weights) == pytest.approx(expected, rel=1e-3)
    i2vgen.run(256, 256, 2)
    assert i2vgen.device.used_bytes() == sum(i2vgen.weights.values())


def test_attention_takes_no_room_for_pairs_of_tokens():
    """Its operations grow with the square of the tokens, its memory does not."""
    device = DryDevice()
    found = []
    with device.work():
        for tokens in (4096, 8192):
            query = torch.empty(2, 3, tokens, 64, dtype=torch.float16, device="meta")
            device.reset_peak()
            before = device.used_bytes()
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
            found.append((device.peak_bytes() - before, device.flops))
    assert found[1][0] == pytest.approx(2 * found[0][0], rel=0.01)
    assert found[0][0] == pytest.approx(2 * 3 * 4096 * (64 * 2 + 4), rel=0.01)
    assert [flops for _, flops in found] == [2 * 2 * 2 * 3 * tokens**2 * 64 for tokens in (4096, 8192)]


def points(form):
    """Points of a stage whose live bytes are `form(pixels, frames)` = (bytes, place)."""
    sizes = [(side * side, frames) for side in (256, 512, 1024) for frames in (8, 16, 32)]
    found = [(pixels, frames, *form(pixels, frames)) for pixels, frames in sizes]
    return [table.Point(pixels=p, frames=f, bytes=count, where=where) for p, f, count, where in found]


def test_one_line_is_found_where_there_is_one():
    (line,) = table.fit_lines(points(lambda pixels, frames: (1000 + 3 * pixels + 7 * pixels * frames, "unet")))
    assert line == pytest.approx({"fixed": 1000, "per_pixel": 3, "per_pixel_frame": 7}, rel=1e-3, abs=1)


def test_a_peak_that_moves_gets_a_line_for_each_place():
    def form(pixels, frames):
        return max((15_000_000, "text"), (60 * pixels + 2 * pixels * frames, "vae"))

    lines = table.fit_lines(points(form))
    assert len(lines) == 2
    for side, frames in ((256, 8), (320, 12), (768, 24), (1024, 16), (2048, 8)):
        told = max(Line(**line).at(side * side, frames) for line in lines)
        assert told == pytest.approx(form(side * side, frames)[0], rel=0.02)


@pytest.mark.parametrize("family", [f.name for f in FAMILIES.values() if f.components])
def test_tables_are_of_the_networks_there_are(family):
    memory = memory_model(family_named(family))
    assert memory is not None
    assert memory.configs == table.configs_hash(family_named(family)), f"run `clipmill footprint {family} --write`"
    assert set(memory.denoise) >= {layout.denoise_switches for layout in family_named(family).layouts}


@pytest.mark.parametrize("family", [f.name for f in FAMILIES.values() if f.components and f.repo is None])
def test_the_closed_form_is_close_to_dry_runs_at_sizes_it_was_not_fitted_to(family):
    found = family_named(family)
    rows = list(table.check(found, [ResolutionClass.P768], [12], [4 / 3], [found.layouts[0], found.layouts[-1]]))
    assert {row["stage"] for row in rows} == {"encode", "denoise", "decode"}
    for row in rows:
        assert abs(row["activation_error"]) <= 0.05, row
        assert abs(row["flops_error"]) <= 0.01, row


#: As the command does it: a process of its own, in which nothing else was made before.
HALF_DECODER = """
import json
from pipeline.clips.clip import ResolutionClass
from pipeline.dryrun import table
from pipeline.families import family_named
family = family_named("wan2.2-5b")
half = next(layout for layout in family.layouts if layout.decode_half)
print(json.dumps(list(table.check(family, [ResolutionClass.P256], [9], [1.0], [half]))))
"""


def test_a_decoder_in_half_precision_is_held_against_its_own_weights():
    done = subprocess.run([sys.executable, "-c", HALF_DECODER], stdout=subprocess.PIPE, check=True, text=True)
    rows = {row["stage"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert "decoder=half" in rows["decode"]["layout"]
    assert all(abs(row["activation_error"]) <= 0.05 for row in rows.values()), rows


def test_the_largest_convolution_is_known_by_what_goes_in_and_comes_out():
    device = DryDevice()
    wide = torch.nn.Conv2d(4, 16, 3, padding=1, device="meta", dtype=torch.float16)
    narrow = torch.nn.Conv3d(4, 4, (1, 1, 1), device="meta")
    with device.work(), torch.no_grad():
        wide(torch.empty(2, 4, 8, 8, device="meta", dtype=torch.float16))
        narrow(torch.empty(1, 4, 1, 8, 8, device="meta"))
    assert device.convolution_bytes == 2 * 2 * (4 + 16) * 8 * 8
    device.reset_peak()
    assert device.convolution_bytes == 0


@pytest.mark.parametrize("there", ["my notes", "{}", '{"family": "svd-xt-tiny", "source": "by hand"}', "[1]"])
def test_a_table_replaces_nothing_but_a_table(tmp_path, monkeypatch, there):
    import pipeline.memory

    monkeypatch.setattr(pipeline.memory, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "footprints").mkdir()
    file, family = tmp_path / "footprints" / "svd-xt-tiny.json", family_named("svd-xt-tiny")
    made = {"family": family.name, "source": f"clipmill footprint {family.name} --write; torch 1", "weights": {}}
    file.write_text(there)
    with pytest.raises(FileExistsError):
        table.write(family, made)
    assert file.read_text() == there
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    file.unlink()
    assert table.write(family, made) == file
    # Another family's is not this one's.
    file.write_text(json.dumps(made | {"family": "wan2.2-5b-tiny"}))
    with pytest.raises(FileExistsError):
        table.write(family, made)
    file.write_text(json.dumps(made))
    table.write(family, made | {"weights": {"encode": 1}})
    assert json.loads(file.read_text())["weights"] == {"encode": 1}
