"""Fetching weights from a hub that runs here: whole, interrupted, refused; and the command that does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pipeline.weights.hub
from pipeline.families import FAMILIES, Family, family_named
from pipeline.weights.hub import pull, token_for
from pipeline.weights.weights import (
    MANIFEST,
    Here,
    WeightsError,
    cached_folder,
    partial_folder,
    read_manifest,
    wanted_files,
    weights_presence,
    weights_present,
)
from serve.cli import models as models_module
from serve.cli.common import Exit
from serve.cli.main import app
from serve.settings import Settings
from tests.hub import OTHER, REVISION, TINY, Folders, Hub, from_hub, load, manifest_for

#: The largest file of the family that hub tests fetch, the smallest there is.
BIG = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=TINY, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


# --- fetching -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny_folders: Folders) -> Iterator[Hub]:
    with Hub("someone/small", REVISION, tiny_folders["wan2.2-5b-tiny"]).serving() as hub:
        yield hub


SMALL = from_hub(family_named("wan2.2-5b-tiny"))
GATED = replace(SMALL, licence="Community", licence_gate=True, licence_url="https://licence.test/it")


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CLIPMILL_MIRROR_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


def test_a_pulled_model_is_whole_pinned_and_loads_offline(
    family: Family, tiny_folders: Folders, tmp_path: Path
) -> None:
    published = from_hub(family)
    seen: list[tuple[int, int]] = []
    with Hub("someone/small", REVISION, tiny_folders[family.name]).serving() as hub:
        folder = pull(published, tmp_path, endpoint=hub.endpoint, on_bytes=lambda *now: seen.append(now))
        assert folder == cached_folder(published, tmp_path)
        files = {name: content for name, content in hub.files().items() if name.count("/") == 1}
    here = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = here.pop(MANIFEST)
    assert here == {name: files[name] for name in wanted_files(published, files)}
    assert read_manifest(folder) == manifest_for(folder, published)
    assert json.loads(manifest)["files"]
    assert seen[-1] == (sum(map(len, here.values())),) * 2
    presence = weights_presence(published, tmp_path)
    assert presence.here is Here.VERIFIED
    assert not partial_folder(published, tmp_path).exists()
    told: list[str] = []
    assert load(published, tmp_path, on_load=told.append).describe()["revision"] == REVISION
    assert not any("verifying" in text for text in told)


def test_loading_fetches_from_the_mirror_and_tells_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    told: list[str] = []
    model = load(SMALL, tmp_path, offline=False, mirror=hub.endpoint, on_load=told.append)
    assert model.describe()["revision"] == REVISION
    assert any(text.startswith("fetching someone/small: ") and text.endswith(" GiB") for text in told)
    assert any(text.startswith("loading transformer (") and text.endswith(" MiB)") for text in told)


def test_a_connection_that_breaks_goes_on_at_the_byte_it_broke_at(hub: Hub, tmp_path: Path) -> None:
    size = len(hub.files()[BIG])
    hub.cuts[BIG] = [1000, 500]
    folder = pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert (folder / BIG).stat().st_size == size
    assert [wanted for name, wanted, _, _ in hub.served if name == BIG] == [None, "bytes=1000-", "bytes=1500-"]


def test_a_pull_that_failed_goes_on_later_and_fetches_nothing_twice(hub: Hub, tmp_path: Path) -> None:
    hub.cuts[BIG] = [1000, 0]
    with pytest.raises(WeightsError, match=r"could not be fetched: .*goes on where it stopped"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint, retries=0)
    assert not weights_present(SMALL, tmp_path)
    presence = weights_presence(SMALL, tmp_path)
    assert presence.here is Here.PARTIAL
    assert 1000 <= presence.bytes_here < presence.bytes_total
    with pytest.raises(WeightsError, match=r"not on this machine, and it is offline \(only .* of .* GiB\)"):
        load(SMALL, tmp_path)
    whole = {
        p.relative_to(cached_folder(SMALL, tmp_path)).as_posix() for p in cached_folder(SMALL, tmp_path).rglob("*.*")
    }
    hub.served.clear()
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert ("bytes=1000-") in [wanted for name, wanted, _, _ in hub.served if name == BIG]
    assert not whole & {name for name, *_ in hub.served}
    assert weights_presence(SMALL, tmp_path).here is Here.VERIFIED


def test_a_file_that_comes_wrong_is_refused_and_thrown_away(hub: Hub, tmp_path: Path) -> None:
    for name in (BIG, "transformer/config.json"):
        hub.corrupt = {name}
        with pytest.raises(WeightsError, match=rf"{name} is not what the hub says it is: its checksum differs"):
            pull(SMALL, tmp_path, endpoint=hub.endpoint)
        assert not (cached_folder(SMALL, tmp_path) / name).exists()
    hub.corrupt = set()
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert load(SMALL, tmp_path)


def test_pulling_again_mends_what_is_damaged_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    folder = pull(SMALL, tmp_path, endpoint=hub.endpoint)
    path = folder / BIG
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / "vae/config.json").unlink()
    assert weights_presence(SMALL, tmp_path).here is Here.DAMAGED
    hub.served.clear()
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert path.read_bytes() == whole
    assert sorted(name for name, *_ in hub.served) == [BIG, "vae/config.json"]


def test_weights_that_somebody_edited_are_kept_and_those_that_rotted_are_not(hub: Hub, tmp_path: Path) -> None:
    folder = pull(SMALL, tmp_path, endpoint=hub.endpoint)
    aside = folder.parents[1] / "set-aside" / SMALL.revision
    for text in (b"tuned", b"tuned again"):
        (folder / BIG).write_bytes(text)
        told: list[str] = []
        pull(SMALL, tmp_path, endpoint=hub.endpoint, tell=told.append)
        assert any(str(aside / BIG) in line for line in told)
    assert (aside / BIG).read_bytes() == b"tuned"
    assert (aside / f"{BIG}.2").read_bytes() == b"tuned again"
    # A bit that fell over on the disk: size and time are those of the file that was fetched.
    status = (folder / BIG).stat()
    whole = (folder / BIG).read_bytes()
    (folder / BIG).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(folder / BIG, ns=(status.st_atime_ns, status.st_mtime_ns))
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert (folder / BIG).read_bytes() == whole
    assert len(list((aside / BIG).parent.iterdir())) == 2


def test_a_fetch_tidies_up_after_itself_alone(hub: Hub, tmp_path: Path) -> None:
    notes = partial_folder(SMALL, tmp_path) / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]


def test_weights_the_hubs_own_client_left_are_taken_over(hub: Hub, tmp_path: Path) -> None:
    """Its cache links files to blobs; a blob that is damaged is fetched again."""
    folder = cached_folder(SMALL, tmp_path)
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, (name, content) in enumerate(sorted(hub.files().items())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(number)).write_bytes(content if name != BIG else content[:-1] + b"?")
        (folder / name).symlink_to(blobs / str(number))
    assert weights_presence(SMALL, tmp_path).here is Here.PRESENT
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert [name for name, *_ in hub.served] == [BIG]
    assert weights_presence(SMALL, tmp_path).here is Here.VERIFIED


def test_a_mirror_that_lists_names_only_is_asked_file_by_file(hub: Hub, tmp_path: Path) -> None:
    hub.bare = True
    hub.corrupt = {BIG}
    with pytest.raises(WeightsError, match="checksum differs"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint)
    hub.corrupt = set()
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert weights_presence(SMALL, tmp_path).here is Here.VERIFIED


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    page = f"{hub.endpoint}/someone/small"
    with pytest.raises(WeightsError, match="not open to everybody") as refused:
        pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert "CLIPMILL_MIRROR_TOKEN" in refused.value.remedy
    assert page in refused.value.remedy
    monkeypatch.setenv("CLIPMILL_MIRROR_TOKEN", "hf_other")
    with pytest.raises(WeightsError, match="not open to everybody"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint)
    monkeypatch.setenv("CLIPMILL_MIRROR_TOKEN", "hf_secret")
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert {token for *_, token, second in hub.served if not second} == {"Bearer hf_secret"}
    assert {token for *_, token, second in hub.served if second} == {None}


@pytest.mark.parametrize("bare", [False, True])
def test_the_hub_s_token_goes_to_no_mirror(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.bare = bare
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert hub.asked
    assert set(hub.asked) == {None}


@pytest.mark.parametrize(
    ("endpoint", "token"),
    [
        ("https://huggingface.co", "hf_secret"),
        ("https://huggingface.co/", "hf_secret"),
        ("http://huggingface.co", None),
        ("https://huggingface.co.evil.example", None),
        ("https://huggingface.co@evil.example", None),
        ("https://huggingface.co:8443", None),
        ("https://mirror.example/huggingface.co", None),
    ],
)
def test_who_gets_the_hub_s_token(endpoint: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert token_for(endpoint) == token


def test_what_the_hub_refuses_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=rf"no revision {OTHER} of someone/small .*mirror {hub.endpoint}"):
        pull(replace(SMALL, revision=OTHER), tmp_path, endpoint=hub.endpoint)
    with pytest.raises(WeightsError, match=r"hub has no someone/large .*unset CLIPMILL_MIRROR"):
        pull(replace(SMALL, repo="someone/large"), tmp_path, endpoint=hub.endpoint)
    hub.says = OTHER
    with pytest.raises(WeightsError, match=f"gives someone/small at {OTHER}, but 'published' is pinned to {REVISION}"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint)
    hub.says = None
    hub.broken = 503
    with pytest.raises(WeightsError, match=r"could not be fetched: .*503"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint, retries=0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"offline .HF_HUB_OFFLINE"):
        pull(SMALL, tmp_path, endpoint=hub.endpoint)


def test_a_mirror_nobody_listens_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"could not be fetched: ConnectError.*http://127\.0\.0\.1:9\).*Check the net"
    ):
        pull(SMALL, tmp_path, endpoint="http://127.0.0.1:9")


def test_a_disk_that_is_too_small_is_told_before_a_byte_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.weights.hub, "SPARE_BYTES", 2**60)
    with pytest.raises(WeightsError, match=r"need 0\.0 GiB more, and the disk has .* free") as refused:
        pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert "CLIPMILL_HOME" in refused.value.remedy
    assert hub.served == []


def test_two_who_fetch_at_once_fetch_everything_once(hub: Hub, tmp_path: Path) -> None:
    told: list[str] = []
    hub.cuts[BIG] = [1000]
    hub.close_cut.clear()
    waits = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        waits.set()

    first = threading.Thread(target=pull, args=(SMALL, tmp_path), kwargs={"endpoint": hub.endpoint})
    first.start()
    assert hub.was_cut.wait(30)
    second = threading.Thread(target=pull, args=(SMALL, tmp_path), kwargs={"endpoint": hub.endpoint, "tell": tell})
    second.start()
    assert waits.wait(30)
    hub.close_cut.set()
    first.join(30)
    second.join(30)
    assert told[0].startswith("another process fetches published; waiting for it (0.00 GiB")
    assert len(told) == len(set(told)), "told again only when it is further"
    names = [name for name, wanted, *_ in hub.served if wanted is None]
    assert len(names) == len(set(names))


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published small family, listed with the others."""
    families = {**FAMILIES, SMALL.name: SMALL}
    for module in ("pipeline.families.registry", "serve.cli.models", "pipeline.models.loading", "serve.settings"):
        monkeypatch.setattr(f"{module}.FAMILIES", families)


def run(*words: str, home: Path, **env: str) -> Any:
    return CliRunner().invoke(app, ["models", *words], env={"CLIPMILL_HOME": str(home), **env})


@pytest.mark.usefixtures("listed")
def test_the_list_says_what_is_here(hub: Hub, tmp_path: Path) -> None:
    def view(name: str) -> dict[str, Any]:
        found = run("--json", home=tmp_path)
        assert found.exit_code == Exit.DONE, found.output
        return next(model for model in json.loads(found.stdout)["models"] if model["name"] == name)

    assert view("published")["weights"] == "no"
    hub.cuts[BIG] = [1000, 0]
    with pytest.raises(WeightsError):
        pull(SMALL, tmp_path, endpoint=hub.endpoint, retries=0)
    assert view("published")["weights"] == "in part"
    assert 0 < view("published")["bytes_here"] < view("published")["bytes_total"]
    assert run("pull", "published", home=tmp_path, CLIPMILL_MIRROR=hub.endpoint).exit_code == Exit.DONE
    assert view("published")["weights"] == "verified"
    (cached_folder(SMALL, tmp_path) / BIG).write_bytes(b"")
    assert view("published")["weights"] == "damaged"
    assert BIG in view("published")["problem"]
    assert view("camera")["weights"] == "nothing to fetch"
    assert view("i2vgen-xl")["samplers"][0] == "ddim"
    table = run(home=tmp_path)
    assert table.exit_code == Exit.DONE
    assert all(name in table.stderr for name in FAMILIES)


@pytest.mark.usefixtures("listed")
def test_pull_and_verify_tell_what_they_did(hub: Hub, tmp_path: Path) -> None:
    mirror = {"CLIPMILL_MIRROR": hub.endpoint}
    pulled = run("pull", "published", "camera", home=tmp_path, **mirror)
    assert pulled.exit_code == Exit.DONE
    assert "published: 1 MiB, checksums agree" in pulled.stderr
    assert "camera: nothing to fetch" in pulled.stderr
    assert "Random weights" in pulled.stderr  # what is to be said of the licence
    assert run("verify", home=tmp_path).exit_code == Exit.DONE
    path = cached_folder(SMALL, tmp_path) / BIG
    whole = path.read_bytes()
    times = path.stat().st_mtime_ns
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(times, times))
    bad = run("verify", "published", home=tmp_path)
    assert bad.exit_code == Exit.SOME_FAILED
    assert BIG in bad.stderr
    assert run("pull", "published", home=tmp_path, **mirror).exit_code == Exit.DONE
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("listed")
def test_exit_codes_of_pull(tmp_path: Path) -> None:
    nowhere = run("pull", "published", home=tmp_path, CLIPMILL_MIRROR="http://127.0.0.1:9")
    assert nowhere.exit_code == Exit.SOME_FAILED
    assert "Check the network" in nowhere.stderr
    assert "Traceback" not in nowhere.output
    unknown = run("pull", "publisched", home=tmp_path)
    assert unknown.exit_code == Exit.USAGE
    assert "Choose one of" in unknown.stderr
    offline = run("pull", "published", home=tmp_path, CLIPMILL_OFFLINE="1")
    assert offline.exit_code == Exit.USAGE
    assert "CLIPMILL_OFFLINE is set" in offline.stderr


def test_ctrl_c_leaves_what_was_fetched_and_says_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    """A real process, interrupted while the hub keeps it waiting in the middle of a file."""
    hub.cuts[BIG] = [1000]
    hub.close_cut.clear()
    program = (
        "import dataclasses, sys; from pipeline.families import registry; import serve.cli.models as m\n"
        "small = dataclasses.replace(registry.FAMILIES['wan2.2-5b-tiny'], name='published', repo='someone/small',"
        f" revision='{REVISION}')\n"
        "registry.FAMILIES = {'published': small}\n"
        "from serve.cli.main import app; app(['models', 'pull', 'published'])"
    )
    env = {**os.environ, "CLIPMILL_HOME": str(tmp_path), "CLIPMILL_MIRROR": hub.endpoint}
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=env) as process:
        assert hub.was_cut.wait(60)
        part = partial_folder(SMALL, tmp_path) / f"{BIG}.part"
        deadline = threading.Event()
        while not (part.exists() and part.stat().st_size == 1000):
            assert not deadline.wait(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED
    assert "Stopped." in said
    assert "Go on with: clipmill models pull published" in said
    assert "Traceback" not in said
    hub.close_cut.set()
    pull(SMALL, tmp_path, endpoint=hub.endpoint)
    assert "bytes=1000-" in [wanted for name, wanted, *_ in hub.served if name == BIG]


def test_progress_without_a_terminal_is_lines_with_total_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    now = iter([0.0, 1.0, 6.0, 7.0, 10.0, 10.0])
    with models_module.bytes_progress(Console(stderr=True, width=200), "fetching x", clock=lambda: next(now)) as show:
        for done in (100, 200, 1100, 1200, 2100, 2100):
            show(done * 2**20, 2100 * 2**20)
    assert capsys.readouterr().err.splitlines() == [
        "fetching x: 100 MiB of 2.1 GiB",
        "fetching x: 1.1 GiB of 2.1 GiB, 167 MiB/s",
        "fetching x: 2.1 GiB of 2.1 GiB, 200 MiB/s",
    ]


def test_the_command_line_remembers_an_acceptance(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families = {"published": GATED}
    for module in ("pipeline.families.registry", "serve.cli.models", "pipeline.models.loading", "serve.settings"):
        monkeypatch.setattr(f"{module}.FAMILIES", families)
    mirror = {"CLIPMILL_MIRROR": hub.endpoint}
    refused = run("pull", "published", home=tmp_path, **mirror)
    assert refused.exit_code == Exit.USAGE
    assert "--accept-license published" in refused.stderr
    assert hub.served == []
    assert "has to be accepted with --accept-license published" in run(home=tmp_path).stderr
    assert (
        run("pull", "published", home=tmp_path / "b", CLIPMILL_ACCEPT_LICENSES="x,published", **mirror).exit_code == 0
    )
    assert run("pull", "published", "--accept-license", "published", home=tmp_path, **mirror).exit_code == Exit.DONE
    assert run("pull", "published", home=tmp_path, **mirror).exit_code == Exit.DONE
    assert "its licence was accepted: https://licence.test/it" in run(home=tmp_path).stderr
    assert Settings(home=tmp_path).accepted() == {"published"}
