"""Who may start on a card: the margin, what is promised, the driver's word, and clips that wait. Nothing sleeps."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, replace

import pynvml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cluster.dispatch.protocol import Assignment, Event, StepDone
from cluster.jobs.model import Outcome
from cluster.jobs.outcomes import Ended
from cluster.storage import Storage
from pipeline.devices.emulated import EmulatedDevice
from pipeline.devices.emulation_scale import emulation_scale
from pipeline.devices.nvml import Nvml, UnknownMemoryError
from pipeline.memory.admission import Admission, NeedsBiggerCard, Observation, Reservation, margin
from pipeline.memory.footprint import cuda_model, cuda_share, leanest
from pipeline.units import GIB
from serve.dispatcher.wire import event_from_wire, event_to_wire
from serve.renderer.active_clip import ActiveClip
from serve.renderer.admission import MemoryWait
from serve.renderer.cards import CardIdentity, gpu_card
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import CARD_LOCK, Worker
from tests.building import Clock, spec, still_png

MIB = 2**20
PATIENCE_S = 30
GOOD = Observation(predicted_bytes=100, measured_bytes=100)
OVER = Observation(predicted_bytes=100, measured_bytes=101)
OOM = Observation(predicted_bytes=100, measured_bytes=90, out_of_memory=True)


# ---------------------------------------------------------------------------------------------- the margin


@pytest.mark.parametrize(
    ("total_gib", "full_mib", "least_mib"), [(8, 512, 291.84), (24, 1228.8, 619.52), (80, 4096, 1766.4)]
)
def test_the_margin_goes_down_in_steps_and_comes_back(total_gib, full_mib, least_mib):
    total = total_gib * GIB
    full = margin(total)
    assert full / MIB == pytest.approx(full_mib, abs=1)
    assert margin(total, [GOOD] * 4) == full
    assert margin(total, [GOOD] * 5) == pytest.approx(0.75 * full, abs=1)
    assert margin(total, [GOOD] * 9) == margin(total, [GOOD] * 5)
    assert margin(total, [GOOD] * 10) == pytest.approx(max(0.5 * full, least_mib * MIB), abs=MIB)
    for many in (20, 100):
        assert margin(total, [GOOD] * many) / MIB == pytest.approx(least_mib, abs=1)
    for bad in (OVER, OOM):
        assert margin(total, [*[GOOD] * 20, bad]) == full
        assert margin(total, [*[GOOD] * 20, bad, *[GOOD] * 4]) == full
        assert margin(total, [bad, *[GOOD] * 5]) == pytest.approx(0.75 * full, abs=1)


@given(st.integers(GIB, 200 * GIB), st.lists(st.sampled_from([GOOD, OVER, OOM]), max_size=30))
def test_the_margin_never_leaves_its_bounds(total, observations):
    found = margin(total, observations)
    estimate = cuda_model().workspace_bytes + cuda_model().fragmentation * total
    assert min(margin(total), estimate) - 1 <= found <= margin(total) == max(512 * MIB, total // 20)
    assert margin(total, [*observations, GOOD]) <= found
    assert margin(total, [*observations, OOM]) == margin(total)


@pytest.mark.parametrize("total_gib", [7.6, 14.56, 22.03, 23.64, 44.4, 79.1, 139.8])
def test_however_good_clips_are_the_margin_holds_what_it_is_for(total_gib):
    """By the project's own estimate of workspaces and rests, on a card that clips fill."""
    total = int(total_gib * GIB)
    least = margin(total, [GOOD] * 20)
    filled = total - cuda_model().context_bytes - least
    assert least >= cuda_share(filled) - cuda_model().context_bytes


@given(
    st.integers(8 * GIB, 200 * GIB),
    st.lists(st.builds(lambda beyond: replace(GOOD, beyond_bytes=beyond), st.integers(0, 12 * GIB)), max_size=30),
)
def test_the_margin_covers_what_the_last_clips_took_of_it(total, observations):
    found, full = margin(total, observations), margin(total)
    last = [each.beyond_bytes for each in observations[-20:]]
    assert found >= min(full, max(last, default=0))
    if last and last[-1] > full:
        assert found == full, "it did not stay within the margin"


# ---------------------------------------------------------------------------------------------- what is promised


class PromisesOfACard(RuleBasedStateMachine):
    """Clips come, are cancelled, become ghosts and end, while other programs come and go beside them."""

    promised_clips = Bundle("promised_clips")

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission()
        self.usable = 1000
        self.promised: dict[Reservation, int] = {}

    @rule(usable=st.integers(0, 2000))
    def others_come_and_go(self, usable: int) -> None:
        self.usable = usable

    @rule(target=promised_clips, needed=st.integers(0, 1500))
    def start(self, needed: int) -> Reservation | None:
        before = sum(self.promised.values())
        answer = self.admission.reserve(needed, self.usable)
        if isinstance(answer, NeedsBiggerCard):
            assert before + needed > self.usable, "refused what fits"
            assert (answer.predicted_bytes, answer.usable_bytes, answer.reserved_bytes) == (needed, self.usable, before)
            return None
        self.promised[answer] = needed
        assert sum(self.promised.values()) <= self.usable, "promised more than there is"
        return answer

    @rule(clip=promised_clips)
    def cancel(self, clip: Reservation | None) -> None:
        """Its thread still works: nothing is given back."""

    @rule(clip=consumes(promised_clips), twice=st.booleans())
    def end(self, clip: Reservation | None, twice: bool) -> None:
        if clip is not None:
            with clip:
                if twice:
                    clip.release()
            del self.promised[clip]

    @invariant()
    def it_keeps_count(self) -> None:
        assert self.admission.reserved_bytes == sum(self.promised.values())


TestPromisesOfACard = PromisesOfACard.TestCase


def test_of_threads_at_once_only_as_many_start_as_fit():
    admission = Admission()
    answers: list[object] = []
    turn = threading.Barrier(8)

    def ask() -> None:
        turn.wait()
        answers.append(admission.reserve(30, 100))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [isinstance(answer, Reservation) for answer in answers].count(True) == 3
    assert admission.reserved_bytes == 90


def test_a_refusal_in_words():
    refusal = NeedsBiggerCard(predicted_bytes=6 * GIB, usable_bytes=3 * GIB, smallest_class="c8")
    assert str(refusal) == "needs 6.0 GiB, 3.0 GiB usable; the smallest card class that holds it is c8"
    told = str(replace(refusal, stage="decode"))
    assert told.startswith("needs 6.0 GiB, 3.0 GiB usable; decoding takes most, in its leanest layout; the smallest")
    refusal = replace(refusal, foreign_bytes=4 * GIB, reserved_bytes=100 * MIB, smallest_class=None)
    assert str(refusal) == (
        "needs 6.0 GiB, 3.0 GiB usable (4.0 GiB taken by other programs, 100 MiB promised to clips in flight); "
        "no card class holds it"
    )


# ---------------------------------------------------------------------------------------------- the driver


@dataclass
class Program:
    pid: int
    usedGpuMemory: int | None  # noqa: N815


class Driver:
    """The functions of `pynvml` that are used, over one card that the test fills."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2  # noqa: N815

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.total, self.reserved = 24 * GIB, GIB // 2
        self.old = self.hides_programs = self.lost = False
        self.started = 0

    def nvmlInit(self):
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.started += 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.started

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        if self.lost or handle != self.started:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        used = sum(program.usedGpuMemory or 0 for program in self.programs)
        if version is None:
            found = pynvml.c_nvmlMemory_t()
            found.total, found.used = self.total, used + self.reserved
        else:
            if self.old:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            found = pynvml.c_nvmlMemory_v2_t()
            found.total, found.reserved, found.used = self.total, self.reserved, used
        found.free = self.total - self.reserved - used
        return found

    def nvmlShutdown(self):
        """The library counts who uses it."""

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.started

    def nvmlDeviceGetUUID(self, handle):
        return "GPU-1"

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA GeForce RTX 4090"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if self.hides_programs:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return self.programs


@pytest.fixture
def driver():
    return Driver()


def test_the_driver_tells_whose_memory_it_is(driver):
    nvml = Nvml(driver, pid=7)
    found = nvml.memory("GPU-1")
    assert (found.total_bytes, found.used_bytes, found.own_bytes) == (23.5 * GIB, 0, None)
    driver.programs = [Program(7, 3 * GIB), Program(8, 5 * GIB)]
    found = nvml.memory("GPU-1")
    assert (found.used_bytes, found.own_bytes) == (8 * GIB, 3 * GIB)
    assert driver.started == 1, "it is started once"


def test_old_drivers_and_containers_tell_less(driver):
    nvml = Nvml(driver, pid=7)
    driver.old = True
    driver.programs = [Program(4000, 3 * GIB)]
    found = nvml.memory("GPU-1")
    # What can be had besides is the same, whatever is called used.
    assert (found.total_bytes - found.used_bytes, found.own_bytes) == (20.5 * GIB, None)
    for programs in ([Program(7, None)], [Program(7, 0)]):
        driver.programs = programs
        assert nvml.memory("GPU-1").own_bytes is None
    driver.programs, driver.hides_programs = [Program(7, GIB)], True
    assert nvml.memory("GPU-1").own_bytes is None


def test_a_driver_that_fails_is_told_and_asked_anew(driver):
    nvml = Nvml(driver, pid=7)
    with pytest.raises(UnknownMemoryError, match="GPU-2"):
        nvml.memory("GPU-2")
    nvml.memory("GPU-1")
    driver.lost = True
    for _ in range(2):
        with pytest.raises(UnknownMemoryError, match="GPU-1"):
            nvml.memory("GPU-1")
    driver.lost = False
    assert nvml.memory("GPU-1").used_bytes == 0


def test_the_driver_s_own_structures_are_known_here():
    """The stand-in fills the library's real structures: their fields are what the code reads."""
    assert {name for name, *_ in pynvml.c_nvmlMemory_v2_t._fields_} >= {"total", "reserved", "free"}
    assert ctypes.sizeof(pynvml.c_nvmlMemory_v2_t) == pynvml.nvmlMemory_v2 & 0xFFFFFF


def test_a_card_that_is_not_open_yet_knows_who_else_is_on_it(driver, monkeypatch):
    """Placement must not send it what does not fit beside them, and torch is not there to ask."""
    for name in dir(driver):
        if name.startswith("nvml") and callable(getattr(driver, name)):
            monkeypatch.setattr(pynvml, name, getattr(driver, name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    identity, card = gpu_card(None, "c24")
    assert (identity.card, identity.kind) == ("GPU-1", "NVIDIA GeForce RTX 4090")
    alone = int(23.5 * GIB) - cuda_model().context_bytes - margin(int(23.5 * GIB))
    assert (card.total_bytes, card.foreign_bytes, card.usable_bytes()) == (23.5 * GIB, 0, alone)
    driver.programs = [Program(8, 5 * GIB)]
    assert (card.foreign_bytes, card.usable_bytes()) == (5 * GIB, alone - 5 * GIB)
    driver.programs = []
    assert card.usable_bytes() == alone


# ---------------------------------------------------------------------------------------------- clips that wait

CLIP = spec("wan2.2-5b-tiny", width=64, height=64, frames=5, steps=2, guidance=5.0, sampler="unipc")
NEEDED = leanest(CLIP)[1].peak_bytes
TOTAL = NEEDED * 5 // 4
IDENTITY = CardIdentity(card="emulated-c8-0", card_class="c8", kind="emulated")


class Said(list[Event]):
    """What a clip reported; `when` reacts in the thread that says it."""

    def __init__(self) -> None:
        super().__init__()
        self.when = lambda _event: None

    def __call__(self, event: Event) -> None:
        self.append(event)
        self.when(event)


class Farm:
    """A worker on an emulated card; `then` are what happens in its pauses, one after the other, one second each."""

    def __init__(self, home, storage) -> None:
        self.card = EmulatedDevice(TOTAL)
        self.clock = Clock(0)
        self.then: list = []
        self.heard: list[str] = []
        self.worker = Worker(
            IDENTITY,
            self.card,
            storage,
            WeightsPlace(home=home, folders={}, offline=True),
            clock=self.clock,
            memory_wait=MemoryWait(patience_s=10, poll_s=1, pause=self.pause),
        )
        self._still = storage.put_still(still_png())

    def pause(self, _clip: ActiveClip, seconds: float) -> None:
        self.heard.append(self.worker.waiting_for)
        self.clock.now += seconds
        if self.then:
            self.then.pop(0)()

    def clip(self, attempt: str = "attempt_1", **changes) -> ActiveClip:
        assignment = Assignment(
            attempt_id=attempt,
            job_id="video_1",
            renderer="r",
            card_class="c8",
            owner="local",
            still=self._still,
            spec=CLIP.model_copy(update=changes),
            content_key="ke" * 32,
            row={"number": 1},
        )
        return ActiveClip(assignment, Said())

    def takes(self, count: int):
        def take() -> None:
            self.card.foreign_bytes = count

        return take


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def farm(home, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    farm = Farm(home, Storage(tmp_path / "storage"))
    yield farm
    farm.worker.close()
    torch.set_num_threads(before)
    assert not CARD_LOCK.locked()
    assert farm.worker.admission.account.reserved_bytes == 0
    assert farm.worker.waiting_for == ""


def test_a_clip_waits_until_others_give_memory_back(farm):
    farm.card.foreign_bytes = TOTAL // 2
    made = farm.clip()
    farm.then = [farm.takes(TOTAL // 3), farm.takes(0)]
    ended = farm.worker.run(made)
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    assert farm.clock.now == 2
    assert len(farm.heard) == 2
    assert all("taken by other programs" in heard for heard in farm.heard)
    assert farm.heard[0] != farm.heard[1], "what it says follows the card"
    assert made.emit[0] == StepDone(step=0, steps=2), "nothing was loaded before"


def test_patience_ends_in_numbers(farm):
    farm.card.foreign_bytes = TOTAL // 2
    ended = farm.worker.run(farm.clip())
    usable = TOTAL - TOTAL // 20 - TOTAL // 2
    assert ended.outcome is Outcome.TOO_BIG
    assert (ended.predicted_bytes, ended.usable_bytes, ended.foreign_bytes) == (NEEDED, usable, TOTAL // 2)
    # The small network's clip fits the smallest emulated card: there it is a matter of who else is on it.
    assert 6 * GIB * emulation_scale() * 0.95 > NEEDED
    assert ended.smallest_class == "c6"
    assert f"{NEEDED / MIB:.0f} MiB, {usable / MIB:.0f} MiB usable" in ended.detail
    assert f"{TOTAL // 2 / MIB:.0f} MiB taken by other programs" in ended.detail
    assert farm.clock.now == 10
    assert event_from_wire(event_to_wire(ended)) == ended, "the numbers cross to the dispatcher"


def test_what_comes_while_it_waits_does_not_make_it_wait_longer(farm):
    farm.card.foreign_bytes = TOTAL // 2
    farm.then = [farm.takes(TOTAL // 3), farm.takes(TOTAL // 2)] * 10
    assert farm.worker.run(farm.clip()).outcome is Outcome.TOO_BIG
    assert farm.clock.now == 10


def test_what_would_not_fit_an_empty_card_is_refused_at_once(farm):
    farm.card.foreign_bytes = TOTAL // 2
    ended = farm.worker.run(farm.clip(width=512, height=512, frames=121))
    assert ended.outcome is Outcome.TOO_BIG
    assert ended.predicted_bytes > TOTAL
    assert farm.heard == []


@pytest.mark.parametrize("end", [ActiveClip.stop, ActiveClip.preempt])
def test_told_to_stop_while_it_waits_it_stops(farm, end):
    farm.card.foreign_bytes = TOTAL // 2
    made = farm.clip()
    farm.then = [lambda: end(made)]
    assert farm.worker.run(made).outcome is Outcome.STOPPED
    assert farm.clock.now == 1
    assert made.emit == []


@pytest.mark.parametrize("end", [ActiveClip.stop, ActiveClip.preempt])
def test_a_pause_ends_when_the_clip_is_told_to_stop(farm, end):
    made = farm.clip()
    end(made)
    made.pause(1e9)


def test_a_clip_in_flight_is_waited_for_however_long_it_takes(farm):
    """A promise of this process ends by itself, unlike another program."""
    beside = farm.worker.admission.account.reserve(TOTAL // 2, TOTAL)
    assert isinstance(beside, Reservation)
    farm.then = [*[lambda: None] * 50, beside.release]
    assert farm.worker.run(farm.clip()).outcome is Outcome.COMPLETED
    assert farm.clock.now == 51
    assert "promised to clips in flight" in farm.heard[0]


def test_nothing_starts_beside_the_ghost_of_a_cancelled_clip(farm):
    first, second = farm.clip("attempt_1"), farm.clip("attempt_2", seed=1)
    working, go_on = threading.Event(), threading.Event()
    ended: list[Ended] = []
    promised: list[tuple[int, bool]] = []

    def stay(event: Event) -> None:
        if event == StepDone(step=1, steps=2):
            working.set()
            assert go_on.wait(PATIENCE_S)

    def look(event: Event) -> None:
        if event == StepDone(step=0, steps=2):
            promised.append((farm.worker.admission.account.reserved_bytes, threads[0].is_alive()))

    first.emit.when, second.emit.when = stay, look
    threads = [
        threading.Thread(target=lambda clip=clip: ended.append(farm.worker.run(clip))) for clip in (first, second)
    ]
    threads[0].start()
    assert working.wait(PATIENCE_S)
    alone = farm.worker.admission.account.reserved_bytes
    assert NEEDED <= alone <= TOTAL
    first.stop()
    threads[1].start()
    # Cancelled, and still at work: what it was promised is its own.
    assert farm.worker.admission.account.reserved_bytes == alone
    assert CARD_LOCK.locked()
    assert second.emit == []
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(e.outcome for e in ended) == [Outcome.COMPLETED, Outcome.STOPPED]
    assert [count for count, _ in promised] == [alone], "the second's promise alone"


def test_what_clips_took_is_told_to_the_card(farm, monkeypatch):
    seen: list[Observation] = []
    monkeypatch.setattr(farm.card, "observe", seen.append)
    ended = farm.worker.run(farm.clip())
    assert seen == [Observation(predicted_bytes=ended.predicted_bytes, measured_bytes=ended.measured_bytes)]
    assert seen[0].kept(margin(TOTAL))


def test_memory_taken_after_the_start_is_out_of_memory_and_told_to_the_card(farm, monkeypatch):
    seen: list[Observation] = []
    monkeypatch.setattr(farm.card, "observe", seen.append)
    made = farm.clip()
    made.emit.when = lambda event: setattr(farm.card, "foreign_bytes", TOTAL if isinstance(event, StepDone) else 0)
    ended = farm.worker.run(made)
    assert ended.outcome is Outcome.OOM
    assert [observation.out_of_memory for observation in seen] == [True]
    made.emit.when = lambda _event: None
    farm.card.foreign_bytes = 0
    assert farm.worker.run(farm.clip("attempt_2")).outcome is Outcome.COMPLETED
