"""Which card a renderer takes: never another's, never by a name that two cards share, never one that CUDA opens not."""

from __future__ import annotations

import os

import pynvml
import pytest

from cluster.dispatch.roster import Roster
from cluster.fleet.cards import Beat, CardState
from pipeline.devices.discovery import survey
from pipeline.devices.readiness import CardUnusableError
from pipeline.memory.admission import margin
from pipeline.memory.footprint import cuda_model
from serve.embedded import gpu_classes
from serve.renderer import cards as cards_module
from serve.renderer.cards import (
    ALLOCATOR_VARIABLES,
    NOSET,
    cards_to_choose_from,
    choose_gpu,
    claim,
    find_gpus,
    gpu_card,
)
from tests.doubles.cuda import FakeCuda
from tests.doubles.nvml import GIB, FakeNvml, FakeProgram, FakeSlice, gb10, h100, rtx_4090, t4


@pytest.fixture(autouse=True)
def environ(monkeypatch):
    """Nothing set, and what the code sets is undone."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", NOSET, *ALLOCATOR_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def install(monkeypatch, *gpus):
    return FakeNvml(gpus).install(monkeypatch)


# -- W1: the order of cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["0", "1"])
def test_an_index_of_ray_s_means_the_card_that_cuda_then_opens(environ, index):
    """Ray and NVML count by the bus, CUDA by speed: of a T4 and a 4090 each called another one the first."""
    nvml = install(environ, t4(), rtx_4090())
    environ.setenv("CUDA_VISIBLE_DEVICES", index)
    identity, device = gpu_card(None, "c16")
    assert identity.card == nvml.gpus[int(index)].uuid
    assert FakeCuda(nvml).card.uuid == identity.card
    assert device.total_bytes == nvml.gpus[int(index)].total_bytes - nvml.gpus[int(index)].reserved_bytes


# -- W2: what this process may use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (None, ["GPU-t4", "GPU-4090", "MIG-a", "MIG-b"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,0", ["GPU-4090", "GPU-t4"]),
        (" 1 , 0 ", ["GPU-4090", "GPU-t4"]),
        ("1,9,0", ["GPU-4090"]),
        ("1,1", ["GPU-4090"]),
        ("GPU-40", ["GPU-4090"]),
        ("GPU-", []),
        ("MIG-b", ["MIG-b"]),
        ("2", ["MIG-a"]),
        ("GPU-h100", ["MIG-a"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(environ, value, seen):
    install(environ, t4(), rtx_4090(), h100(slices=[FakeSlice("MIG-a"), FakeSlice("MIG-b")]))
    found = survey({} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.uuid for gpu in found.gpus] == seen
    hidden = {"GPU-t4", "GPU-4090", "MIG-a", "MIG-b"} - set(seen)
    assert {gpu.uuid for gpu in found.hidden} == hidden


def test_up_takes_no_card_that_others_were_given(environ):
    install(environ, rtx_4090("GPU-mine"), rtx_4090("GPU-theirs"))
    environ.setenv("CUDA_VISIBLE_DEVICES", "GPU-mine")
    assert gpu_classes()["c24"].cards == ("GPU-mine",)
    environ.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_classes() == {}
    with pytest.raises(CardUnusableError, match="hides every card"):
        choose_gpu(None)


def test_where_ray_sets_nothing_its_assignment_counts(environ):
    install(environ, rtx_4090("GPU-0"), rtx_4090("GPU-1"))
    environ.setenv(NOSET, "1")
    assert cards_to_choose_from("c24", ["1"]) == ()
    assert choose_gpu(None, ["1"]).uuid == "GPU-1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_where_ray_does_set_it_an_assignment_changes_nothing(environ):
    install(environ, rtx_4090("GPU-0"), rtx_4090("GPU-1"))
    environ.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose_gpu(None, ["1"]).uuid == "GPU-0"


def test_replicas_that_nothing_was_assigned_to_take_one_card_each(environ, tmp_path):
    install(environ, t4(), rtx_4090("GPU-0"), rtx_4090("GPU-1"))
    locks, taken = [], []
    for _ in range(2):
        card, lock = claim(cards_to_choose_from("c24"), tmp_path)
        locks.append(lock)
        taken.append(card)
    assert taken == ["GPU-0", "GPU-1"]
    install(environ, t4())
    assert cards_to_choose_from("c16") == (), "one card is nobody else's"


# -- B6: slices ---------------------------------------------------------------------------------------------------


def test_two_slices_are_two_cards_with_memory_of_their_own(environ):
    slices = [FakeSlice("MIG-a"), FakeSlice("MIG-b", total_bytes=int(19.5 * GIB), name="NVIDIA H100 MIG 2g.20gb")]
    install(environ, rtx_4090("GPU-other"), h100(slices=slices))
    found = []
    for part in slices:
        environ.setenv("CUDA_VISIBLE_DEVICES", part.uuid)
        identity, device = gpu_card(None, "c8")
        assert (identity.card, identity.kind, device.total_bytes) == (part.uuid, part.name, part.total_bytes)
        # Its usable bytes are its own, whatever its neighbour takes.
        slices[0].programs = [FakeProgram(99, 3 * GIB)]
        alone = part.total_bytes - cuda_model().context_bytes - margin(part.total_bytes)
        assert device.usable_bytes() == alone - (3 * GIB if part is slices[0] else 0)
        _, recording = gpu_card(None, "c8", graphs=True)
        assert device.usable_bytes() - recording.usable_bytes() == cuda_model().graph_bytes
        found.append(identity.card)
        environ.delenv("CUDA_VISIBLE_DEVICES")
    roster = Roster(lambda: 0.0, 5.0)
    for card in found * 3:
        beat = Beat(
            renderer=f"r-{card}", card=card, card_class="c8", kind="x", total_bytes=1, usable_bytes=1, used_bytes=0,
            state=CardState.IDLE,
        )  # fmt: skip
        roster.hear(beat)
        assert f"r-{card}" in roster.renderers
    assert len(roster.renderers) == 2, "neither evicts the other"


def test_a_slice_under_ray_s_index_is_the_slice_and_not_its_card(environ):
    """A device plugin shows the container one slice of a card, whose index is 0."""
    install(environ, h100(slices=[FakeSlice("MIG-a")], programs=[FakeProgram(1, 40 * GIB)]))
    environ.setenv("CUDA_VISIBLE_DEVICES", "0")
    identity, device = gpu_card(None, "c8")
    assert (identity.card, device.total_bytes) == ("MIG-a", int(9.75 * GIB))
    assert device.usable_bytes() < 9.75 * GIB


def test_a_slice_whose_card_may_not_be_looked_at(environ):
    refuses = dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName"), pynvml.NVML_ERROR_NO_PERMISSION)
    install(environ, h100(slices=[FakeSlice("MIG-a")], refuses=refuses))
    assert gpu_card(None, "c8")[0].card == "MIG-a"


# -- B7: one bad card costs one card ------------------------------------------------------------------------------

FUNCTIONS = (
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
)
ERRORS = [
    getattr(pynvml, name)
    for name in dir(pynvml)
    if name.startswith("NVML_ERROR_") and name != "NVML_ERROR_INSUFFICIENT_SIZE"
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [0, 1])
def test_whatever_the_driver_refuses_of_one_card_costs_that_card(environ, function, bad):
    for error in ERRORS:
        gpus = [rtx_4090("GPU-0", slices=[FakeSlice("MIG-a")]), rtx_4090("GPU-1", slices=[FakeSlice("MIG-b")])]
        gpus[bad].refuses = {function: error}
        gpus[bad].slices[0].refuses = {function: error}
        nvml = install(environ, *gpus)
        found = survey({}, nvml)
        assert [gpu.uuid for gpu in found.gpus] == ["MIG-b" if bad == 0 else "MIG-a"]
        (fault,) = found.faults
        assert fault.problem.remedy


def test_one_card_off_the_bus_leaves_the_others(environ):
    nvml = install(environ, rtx_4090("GPU-0"), gb10(), rtx_4090("GPU-2"))
    nvml.lost.add("GPU-0")
    assert [gpu.uuid for gpu in find_gpus()] == ["GPU-2"]
    assert gpu_classes()["c24"].cards == ("GPU-2",)
    # A renderer that is to have it says what is wrong, and takes none of the others.
    environ.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(CardUnusableError, match="fell off the bus"):
        gpu_card(None, "c24")
    # Also by its uuid, which the driver does not tell any more.
    with pytest.raises(CardUnusableError, match="fell off the bus"):
        gpu_card("GPU-0", "c24")


# -- how torch allocates ------------------------------------------------------------------------------------------


def test_segments_grow_unless_somebody_chose_otherwise(environ):
    install(environ, rtx_4090("GPU-0"))
    choose_gpu(None)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ALLOCATOR_VARIABLES:
        for other in ALLOCATOR_VARIABLES:
            environ.delenv(other, raising=False)
        environ.setenv(name, "max_split_size_mb:128")
        choose_gpu(None)
        assert {other: os.environ.get(other) for other in ALLOCATOR_VARIABLES if other in os.environ} == {
            name: "max_split_size_mb:128"
        }


def test_segments_do_not_grow_where_torch_fails_with_them(environ, tmp_path):
    install(environ, h100(slices=[FakeSlice("MIG-a")]))
    choose_gpu(None)
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    install(environ, rtx_4090("GPU-0"))
    environ.delenv("CUDA_VISIBLE_DEVICES")
    release = tmp_path / "osrelease"
    is_wsl = cards_module._is_wsl
    for words, wsl in (("5.15.167.4-microsoft-standard-WSL2\n", True), ("6.1.0-29-amd64\n", False)):
        release.write_text(words)
        environ.setattr(cards_module, "_is_wsl", lambda: is_wsl(release))
        environ.delenv("PYTORCH_ALLOC_CONF", raising=False)
        choose_gpu(None)
        assert ("PYTORCH_ALLOC_CONF" not in os.environ) is wsl
    assert not is_wsl(tmp_path / "nowhere")
