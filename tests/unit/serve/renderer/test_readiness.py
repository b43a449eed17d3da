"""A card that cannot be used: what the renderer, its beat and `doctor` say of it, for every situation there is."""

from __future__ import annotations

import io
import json
import subprocess
from contextlib import redirect_stdout
from types import SimpleNamespace

import pynvml
import pytest
import torch

from cluster.fleet.cards import CardState
from cluster.jobs.model import Outcome
from cluster.storage import Storage
from pipeline.devices import probe
from pipeline.devices.probe import has_kernels
from serve.cli import doctor
from serve.renderer.cards import ALLOCATOR_VARIABLES, CardIdentity, UnusableDevice, open_gpu
from serve.renderer.heartbeat import Heartbeat
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker
from serve.settings import Settings
from tests.building import spec, still_png
from tests.doubles import words
from tests.doubles.cuda import FakeCuda, cpu_only
from tests.doubles.nvml import FakeNvml, FakeSlice, gb10, h100, rtx_4090, t4
from tests.unit.serve.renderer.test_worker import active_clip


def broken_cuda(error):
    def arrange(_nvml, cuda, _monkeypatch):
        cuda.dead = error

    return arrange


def old_driver(nvml, _cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    nvml.driver, nvml.cuda = "550.54.15", 12040


def old_card(_nvml, _cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_100", "compute_120"])


def hides_all(_nvml, _cuda, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def loses(uuid):
    return lambda nvml, _cuda, _monkeypatch: nvml.lost.add(uuid)


def without_cuda(_nvml, _cuda, monkeypatch):
    cpu_only(monkeypatch)


def opens_another(_nvml, _cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _i=0: SimpleNamespace(uuid="other"))


def nothing(*_):
    pass


def no_permission():
    return t4(refuses={"nvmlDeviceGetHandleByIndex": pynvml.NVML_ERROR_NO_PERMISSION})


ERROR = words.accelerator_error
#: What is there, what is wrong, words of the sentence, words of the remedy, whether it may pass by itself.
SITUATIONS = {
    "no driver": (
        FakeNvml(fails=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), nothing, "there is no NVIDIA driver", "--gpus all", True,
    ),
    "no kernel module": (
        FakeNvml(fails=pynvml.NVML_ERROR_DRIVER_NOT_LOADED), nothing, "kernel module is not loaded", "modprobe", True,
    ),
    "driver updated": (
        FakeNvml(fails=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), nothing, "updated while it was loaded", "Restart",
        True,
    ),
    "no permission": (FakeNvml([no_permission()]), nothing, "may not look at card 0", "device files", True),
    "off the bus": (FakeNvml([t4()]), loses("GPU-t4"), "fell off the bus (Xid 79)", "dmesg", True),
    "unified memory": (FakeNvml([gb10()]), nothing, "does not tell how much memory NVIDIA GB10", "another card", True),
    "hidden": (FakeNvml([t4()]), hides_all, "CUDA_VISIBLE_DEVICES='' hides every card", "nvidia-smi -L", True),
    "no slices": (FakeNvml([h100(slices=[])]), nothing, "in MIG mode and has no slice", "mig -cgi", True),
    "driver too old, by its version": (
        FakeNvml([t4()]), old_driver, "driver 550.54.15 knows CUDA up to 12.4", "580 or newer", False,
    ),
    "driver too old, by torch": (
        FakeNvml([t4()]), broken_cuda(words.DRIVER_TOO_OLD), "driver 580.95.05 is too old", "580 or newer", False,
    ),
    "fabric manager": (
        FakeNvml([h100()]), broken_cuda(words.FABRIC_MANAGER), "fabric manager", "nvidia-fabricmanager", True,
    ),
    "busy": (FakeNvml([t4()]), broken_cuda(ERROR(*words.BUSY)), "Tesla T4 GPU-t4 is busy", "-c DEFAULT", True),
    "no kernels, by torch": (
        FakeNvml([t4()]), broken_cuda(ERROR(*words.NO_KERNEL_IMAGE)), "no kernels for Tesla T4", "another card", False,
    ),
    "no kernels, by the list": (
        FakeNvml([t4()]), old_card, "capability 7.5; it has sm_90, sm_100, compute_120", "another card", False,
    ),
    "torch for CPUs": (FakeNvml([t4()]), without_cuda, "built without CUDA", "clipmill[render]", False),
    "no device": (FakeNvml([t4()]), broken_cuda(ERROR(*words.NO_DEVICE)), "CUDA does not see Tesla T4", "-L", False),
    "no memory for a context": (
        FakeNvml([t4()]), broken_cuda(words.OUT_OF_MEMORY["runtime"]), "not even a CUDA context fits", "nvidia-smi",
        True,
    ),
    "refuses growing segments": (
        FakeNvml([t4()]), broken_cuda(RuntimeError("CUDA driver error: operation not supported")),
        "refuses how torch allocates", "expandable_segments:False", False,
    ),
    "memory fault": (FakeNvml([t4()]), broken_cuda(ERROR(214, words.DEAD[214])), "memory fault", "-d ECC", False),
    "another card": (FakeNvml([t4()]), opens_another, "CUDA opened GPU-other instead of GPU-t4", "leave both", False),
    "unknown": (
        FakeNvml([t4()]), broken_cuda(RuntimeError("CUDA error: never heard of. More\nof it")), "never heard of",
        "doctor", True,
    ),
}  # fmt: skip


@pytest.fixture(params=SITUATIONS)
def situation(request, monkeypatch):
    nvml, arrange, *told = SITUATIONS[request.param]
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *ALLOCATOR_VARIABLES):
        # Set first, so that what is set by the code is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    nvml.install(monkeypatch)
    cuda = FakeCuda(nvml).install(monkeypatch)
    arrange(nvml, cuda, monkeypatch)
    yield told
    nvml.lost.clear()


def test_the_renderer_takes_no_clip_that_needs_the_card_and_its_beat_says_why(situation, tmp_path):
    message, remedy, passes = situation
    identity, device = open_gpu(None, "c16", unnamed="c16-abc")
    assert isinstance(device, UnusableDevice)
    assert device.fault.passes is passes
    worker = Worker(identity, device, Storage(str(tmp_path)), WeightsPlace(home=tmp_path, folders={}, offline=True))
    heartbeat = Heartbeat.__new__(Heartbeat)
    heartbeat._uid, heartbeat._worker, heartbeat._clips, heartbeat.broken = "r", worker, {}, False
    beat = heartbeat._beat()
    assert message in beat["fault"]
    assert remedy in beat["fault"]
    assert beat.get("fault_passes", False) is passes
    assert (beat["state"], beat["usable_bytes"]) == (CardState.IDLE, 0)
    # Sent there all the same, a clip that needs the card goes back at no cost of its own.
    ended = worker.run(active_clip("ab" * 32, made=spec("i2vgen-xl")))
    assert ended.outcome is Outcome.LOST
    assert message in ended.detail


def test_a_clip_that_needs_no_gpu_is_rendered_beside_a_card_that_cannot_be_used(situation, tmp_path):
    storage = Storage(str(tmp_path))
    identity, device = open_gpu(None, "c16", unnamed="c16-abc")
    worker = Worker(identity, device, storage, WeightsPlace(home=tmp_path, folders={}, offline=True))
    ended = worker.run(active_clip(storage.put_still(still_png()), frames=2))
    assert (ended.outcome, ended.detail) == (Outcome.COMPLETED, "")
    assert storage.get_bytes(ended.objects.video)
    worker.close()


def test_doctor_says_the_same(situation, monkeypatch):
    message, remedy, _ = situation

    def run(command, **_):
        said = io.StringIO()
        with redirect_stdout(said):
            probe.main(*command[3:])
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr(doctor.subprocess, "run", run)
    check = doctor._gpu(Settings())
    assert message in check.found
    assert remedy in check.remedy
    assert check.state == "warning"


def test_a_card_that_works_is_opened_and_kept(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvml = FakeNvml([rtx_4090()]).install(monkeypatch)
    FakeCuda(nvml).install(monkeypatch)
    identity, device = open_gpu(None, "c24")
    assert identity == CardIdentity(
        card="GPU-4090", card_class="c24", kind="NVIDIA GeForce RTX 4090", capability=(8, 9)
    )
    assert device.usable_bytes() > 20 * 2**30
    assert len(nvml.gpus[0].programs) == 1, "it has a context"


def test_a_slice_is_not_compared_with_the_uuid_of_its_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    nvml = FakeNvml([h100(slices=[FakeSlice("MIG-a")])]).install(monkeypatch)
    FakeCuda(nvml).install(monkeypatch)
    opens_another(nvml, None, monkeypatch)
    assert not isinstance(open_gpu(None, "c8")[1], UnusableDevice)


def test_the_trial_in_a_process_of_its_own_reads_this_machine_s_torch(monkeypatch):
    """Really started: here torch is built without CUDA, and says so."""
    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    FakeNvml([t4()]).install(monkeypatch)
    problem = doctor.trial(doctor.survey_gpus().gpus[0])
    assert "built without CUDA" in problem.message


def test_a_trial_that_hangs_or_dies_is_told(monkeypatch):
    FakeNvml([t4()]).install(monkeypatch)
    gpu = doctor.survey_gpus().gpus[0]

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "did not answer within 120 s" in doctor.trial(gpu).message
    died = subprocess.CompletedProcess([], -11, "", "Fatal Python error: Segmentation fault\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: died)
    assert "Segmentation fault" in doctor.trial(gpu).message


@pytest.mark.parametrize(
    ("capability", "listed", "runs"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),
        ((7, 5), ["sm_80", "sm_90"], False),
        ((8, 0), ["sm_86"], False),
        ((12, 1), ["sm_120"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], False),
    ],
)
def test_which_binaries_run_on_which_card(capability, listed, runs):
    assert has_kernels(capability, listed) is runs


def test_cards_json_has_faults(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from serve.cli.main import app

    nvml = FakeNvml([t4(), rtx_4090()]).install(monkeypatch)
    nvml.lost.add("GPU-t4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    done = CliRunner().invoke(app, ["cards", "--json", "--home", str(tmp_path)])
    told = json.loads(done.stdout)
    assert [(gpu["uuid"], gpu["card_class"]) for gpu in told["gpus"]] == [("GPU-4090", "c24")]
    assert "fell off the bus" in told["faults"][0]["problem"]["message"]
