"""Weights in a folder: whose they are, and what is refused where they are not what they should be; licences."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.catalog.defaults import Defaults
from cluster.catalog.ingest import IncomingRow
from cluster.catalog.manifest import Row
from cluster.dispatch.protocol import Assignment
from cluster.farm import Farm
from cluster.jobs.model import Job, JobState, Outcome
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from pipeline.devices.emulated import HostDevice
from pipeline.families import FAMILIES, Component, Family, family_named
from pipeline.families.licences import acceptances_file, licence_problem, remember_acceptance, remembered_acceptances
from pipeline.weights.weights import (
    MANIFEST,
    WeightsError,
    built_folder,
    chosen_weights,
    index_digest,
    wanted_files,
)
from serve.renderer.active_clip import ActiveClip
from serve.renderer.cards import CardIdentity
from serve.renderer.warm_model import WeightsPlace
from serve.renderer.worker import Worker
from serve.settings import FarmArgs
from tests.building import spec, still_png
from tests.hub import OTHER, REVISION, TINY, Folders, from_hub, load, manifest_for


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=TINY, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def folder(family: Family, tiny_folders: Folders, tmp_path: Path) -> Path:
    """A copy of the family's weights to spoil."""
    return Path(shutil.copytree(tiny_folders[family.name], tmp_path / "copied"))


def networks(family: Family) -> list[Component]:
    return [component for component in family.components if component.stage is not None]


def weights_of(folder: Path, component: Component) -> Path:
    (path,) = (folder / component.name).glob("*.safetensors")
    return path


# --- weights that are not what they should be -----------------------------------------------------


def test_a_file_that_is_cut_off_is_named(family: Family, folder: Path, tmp_path: Path) -> None:
    for component in networks(family):
        path = weights_of(folder, component)
        whole = path.read_bytes()
        for length in (len(whole) - 1, 100, 3, 0):
            path.write_bytes(whole[:length])
            with pytest.raises(WeightsError, match=f"'{component.name}' cannot be read: {path.name}") as refused:
                load(family, tmp_path, folder)
            assert "Fetch it again" in refused.value.remedy
        path.write_bytes(whole)


def test_a_pickle_called_safetensors_is_refused(family: Family, folder: Path, tmp_path: Path) -> None:
    for component in networks(family):
        path = weights_of(folder, component)
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps({"weight": [1.0] * 100}))
        with pytest.raises(WeightsError, match=f"{path.name} is no safetensors file"):
            load(family, tmp_path, folder)
        torch.save({"weight": torch.ones(3)}, path)
        with pytest.raises(WeightsError, match=f"{path.name} is no safetensors file"):
            load(family, tmp_path, folder)
        path.write_bytes(whole)


def test_only_pickles_are_refused(family: Family, folder: Path, tmp_path: Path) -> None:
    for component in networks(family):
        path = weights_of(folder, component)
        pickled = path.with_name("pytorch_model.bin")
        torch.save(load_file(path), pickled)
        whole = path.rename(tmp_path / "kept")
        with pytest.raises(WeightsError, match=rf"'{component.name}' has no .*only pickles \(pytorch_model.bin\)"):
            load(family, tmp_path, folder)
        pickled.unlink()
        whole.rename(path)


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_of_another_shape_is_refused(family: Family, folder: Path, tmp_path: Path) -> None:
    """Neither library may fill the gap with random values, or broadcast."""
    for component in networks(family):
        path = weights_of(folder, component)
        whole = path.read_bytes()
        tensors = load_file(path)
        name = max(tensors, key=lambda key: tensors[key].numel())
        tensors[name] = torch.cat([tensors[name], tensors[name]])
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(WeightsError) as refused:
            load(family, tmp_path, folder)
        assert repr(component.name) in refused.value.what
        assert str(folder / component.name) in refused.value.where
        assert "of another model" in refused.value.remedy
        path.write_bytes(whole)


def test_many_weights_the_network_has_no_place_for_are_another_model(
    family: Family, folder: Path, tmp_path: Path
) -> None:
    for component in networks(family):
        path = weights_of(folder, component)
        whole = path.read_bytes()
        tensors = load_file(path)
        more = {f"other_{key}": value.clone() for key, value in tensors.items()}
        save_file(tensors | more, path, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=f"'{component.name}' has .* weights too many, such as other_"):
            load(family, tmp_path, folder)
        path.write_bytes(whole)


def test_a_few_weights_too_many_are_not(family: Family, folder: Path, tmp_path: Path) -> None:
    """Published files carry buffers that later releases of the libraries compute themselves."""
    component = networks(family)[-1]
    path = weights_of(folder, component)
    save_file(load_file(path) | {"position_ids": torch.arange(3)}, path, metadata={"format": "pt"})
    load(family, tmp_path, folder)


def test_a_damaged_setting_is_named(family: Family, folder: Path, tmp_path: Path) -> None:
    for component in family.components:
        path = next(
            folder / component.name / name for name in component.files if (folder / component.name / name).is_file()
        )
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match=f"'{component.name}' cannot be read"):
            load(family, tmp_path, folder)
        path.write_bytes(whole)


def shard(folder: Path, component: Component, variant: str) -> Path:
    """Split the one file of a component in two by the layout of diffusers; returns the index."""
    path = weights_of(folder, component)
    tensors = load_file(path)
    path.unlink()
    stem = path.name.split(".")[0]
    tag = f".{variant}" if f".{variant}." in path.name else ""
    names = sorted(tensors)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    files = {number: f"{stem}{tag}-0000{number}-of-00002.safetensors" for number in halves}
    for number, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, path.with_name(files[number]), metadata={"format": "pt"})
    index = path.with_name(f"{stem}.safetensors.index{tag}.json")
    size = sum(tensor.nbytes for tensor in tensors.values())
    places = {key: files[number] for number, keys in halves.items() for key in keys}
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return index


def test_shards_load_as_one_file_does_and_none_may_be_missing(
    family: Family, folder: Path, tiny_folders: Folders, tmp_path: Path
) -> None:
    whole = load(family, tmp_path, tiny_folders[family.name])
    for component in networks(family):
        index = shard(folder, component, family.variant)
    sharded = load(family, tmp_path, folder)
    for component in networks(family):
        one, other = (getattr(m.parts, component.name).state_dict() for m in (whole, sharded))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)

    second = next(index.parent.glob("*-00002-of-*.safetensors"))
    kept = second.rename(tmp_path / "kept")
    with pytest.raises(WeightsError, match=rf"'{component.name}' lacks 1 of 2 shards, such as {second.name}"):
        load(family, tmp_path, folder)
    kept.rename(second)
    index.write_text(index.read_text()[:50])
    with pytest.raises(WeightsError, match=rf"{index.name} is no index of shards"):
        load(family, tmp_path, folder)
    index.write_text(json.dumps({"weight_map": {"weight": "../../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match="lacks 1 of 1 shards"):
        load(family, tmp_path, folder)


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        (["m.safetensors", "m.fp16.safetensors", "m.bin"], "fp16", ["m.fp16.safetensors"]),
        (["m.safetensors", "m.fp16.safetensors"], "", ["m.safetensors"]),
        (["m.safetensors", "m.bf16.safetensors"], "fp16", ["m.safetensors"]),
        (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.fp16.safetensors"], "",
         ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]),
        (["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors", "m.safetensors"], "fp16",
         ["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"]),
        (["m.bin"], "fp16", []),
    ],
)  # fmt: skip
def test_which_weights_are_meant(names: list[str], variant: str, chosen: list[str]) -> None:
    assert chosen_weights(names, variant) == chosen


def test_nothing_is_fetched_but_the_components() -> None:
    family = family_named("i2vgen-xl")
    names = [
        "README.md", "model_index.json", "text_encoder/config.json", "text_encoder/pytorch_model.fp16.bin",
        "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors", "tokenizer/merges.txt",
        "tokenizer/tokenizer.py", "unet/deep/config.json", "unet/../../escape.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors", "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert wanted_files(family, names) == [
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ]


# --- which weights they are -----------------------------------------------------------------------


def test_a_folder_without_manifest_is_noted_as_unverified(family: Family, folder: Path, tmp_path: Path) -> None:
    told = load(family, tmp_path, folder).describe()
    assert told["revision"] == "local folder copied, unverified"
    assert told["index_sha256"] == index_digest(family, folder)


def test_the_index_tells_weights_apart_by_settings_names_and_shapes(family: Family, folder: Path) -> None:
    before = index_digest(family, folder)
    path = weights_of(folder, networks(family)[0])
    tensors = load_file(path)
    save_file(tensors | {"more": torch.ones(1)}, path, metadata={"format": "pt"})
    assert index_digest(family, folder) != before
    save_file(tensors, path, metadata={"format": "pt"})
    assert index_digest(family, folder) == before
    config = folder / networks(family)[0].name / "config.json"
    config.write_text(config.read_text() + "\n")
    assert index_digest(family, folder) != before


def test_a_folder_of_another_revision_is_refused(family: Family, folder: Path, tmp_path: Path) -> None:
    published = from_hub(family)
    manifest_for(folder, replace(published, revision=OTHER)).write(folder)
    with pytest.raises(WeightsError, match=f"someone/small at {OTHER}, but 'published' is .*small at {REVISION}"):
        load(published, tmp_path, folder)
    manifest_for(folder, replace(published, repo="another/model")).write(folder)
    with pytest.raises(WeightsError, match=r"another/model at .* but 'published' is pinned to someone/small"):
        load(published, tmp_path, folder)
    (folder / MANIFEST).unlink()
    manifest_for(folder, published).write(folder)
    told = load(published, tmp_path, folder).describe()
    assert told["revision"] == REVISION
    assert "index_sha256" not in told
    (folder / MANIFEST).write_text("{")
    with pytest.raises(WeightsError, match="manifest cannot be read"):
        load(published, tmp_path, folder)


def test_content_is_compared_once_and_again_after_every_change(family: Family, folder: Path, tmp_path: Path) -> None:
    published = from_hub(family)
    manifest_for(folder, published).write(folder)
    told: list[str] = []

    def verified() -> bool:
        told.clear()
        load(published, tmp_path, folder, on_load=told.append)
        return any("verifying" in text for text in told)

    assert verified()
    assert not verified()
    path = weights_of(folder, networks(family)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match=rf"{path.name} is not the one that was fetched: SHA-256") as refused:
        verified()
    assert "models pull published" in refused.value.remedy
    path.write_bytes(whole)
    assert verified()
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=rf"{path.name} "):
        verified()


def test_a_file_the_manifest_does_not_name_is_not_loaded(family: Family, folder: Path, tmp_path: Path) -> None:
    published = from_hub(family)
    manifest_for(folder, published).write(folder)
    path = weights_of(folder, networks(family)[0])
    smuggled = path.with_name(path.name.replace(".safetensors", "-00001-of-00001.safetensors"))
    save_file(load_file(path), smuggled, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{smuggled.name} is not among those"):
        load(published, tmp_path, folder)


def test_built_weights_of_another_revision_are_not_mixed(family: Family, tmp_path: Path) -> None:
    older = built_folder(replace(family, revision="random-0"), tmp_path)
    older.mkdir(parents=True)
    (older / "anything").write_text("old")
    assert load(family, tmp_path).describe()["revision"] == family.revision
    assert [path.name for path in older.iterdir()] == ["anything"]


# --- licences -------------------------------------------------------------------------------------

SMALL = from_hub(family_named("wan2.2-5b-tiny"))
GATED = replace(SMALL, licence="Community", licence_gate=True, licence_url="https://licence.test/it")


def test_a_licence_gate_opens_for_those_who_accept_that_licence(tmp_path: Path) -> None:
    problem = licence_problem(GATED, frozenset())
    assert problem is not None
    assert "--accept-license published" in problem.remedy
    assert "https://licence.test/it" in problem.remedy
    assert licence_problem(GATED, {"published"}) is None
    assert licence_problem(GATED, {"another"}) is not None
    assert licence_problem(SMALL, frozenset()) is None

    assert remembered_acceptances([GATED, SMALL], tmp_path) == frozenset()
    remember_acceptance(GATED, tmp_path)
    kept = json.loads(acceptances_file(tmp_path).read_text())["published"]
    assert kept["licence"] == "Community"
    assert kept["url"] == "https://licence.test/it"
    assert kept["accepted_at"] > 0
    assert remembered_acceptances([GATED], tmp_path) == {"published"}
    # Accepted was that licence, and not whatever comes after it.
    assert remembered_acceptances([replace(GATED, licence="Community 2")], tmp_path) == frozenset()
    acceptances_file(tmp_path).write_text("[")
    assert remembered_acceptances([GATED], tmp_path) == frozenset()


def test_weights_under_a_licence_nobody_accepted_are_not_loaded(
    tiny_folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folders["wan2.2-5b-tiny"]
    with pytest.raises(WeightsError, match=r"licence of published .* not been accepted") as refused:
        load(GATED, tmp_path, folder)
    assert "--accept-license published" in refused.value.remedy
    assert load(GATED, tmp_path, folder, accepted=frozenset({"published"}))
    monkeypatch.setattr("pipeline.models.loading.FAMILIES", {"published": GATED})
    remember_acceptance(GATED, tmp_path)
    assert load(GATED, tmp_path, folder)


def test_a_farm_takes_acceptances_and_mirror_from_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"card_classes": {"c8": {}}, "home": str(tmp_path), "accept_licenses": ["a"], "mirror": "https://m.test"}
    monkeypatch.setenv("CLIPMILL_ACCEPT_LICENSES", " b , c,")
    assert FarmArgs.model_validate(table).settings().accepted() == {"a"}
    assert FarmArgs.model_validate(table).settings().mirror == "https://m.test"
    del table["accept_licenses"]
    assert FarmArgs.model_validate(table).settings().accept_licenses == ("b", "c")


def test_the_farm_refuses_rows_under_a_licence_nobody_accepted(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = replace(GATED, repo=None)
    monkeypatch.setattr("pipeline.families.registry.FAMILIES", {**FAMILIES, gated.name: gated})
    accepted: set[str] = set()
    farm = Farm(BatchStore(sqlite_database), Storage(tmp_path / "storage"), accepted=lambda: accepted)
    still = farm.put_still(still_png())
    row = Row(number=1, id="a", image="a.png", prompt="pan left")

    def submit() -> Job:
        incoming = IncomingRow(position=1, name="a", row=row, still=still, number=1)
        batch = farm.submit([incoming], Defaults(model=gated.name), name="catalog")
        (job,) = farm.jobs(batch.id)
        return job

    refused = submit()
    assert refused.state is JobState.FAILED
    (problem,) = refused.problems
    assert problem == licence_problem(gated, ())
    # Accepted while the farm runs.
    accepted.add(gated.name)
    assert submit().state is JobState.QUEUED


def test_a_change_of_family_frees_the_first_one_fully(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "storage")
    still = storage.put_still(still_png())
    card = HostDevice()
    place = WeightsPlace(home=tmp_path, folders={}, offline=True)
    worker = Worker(CardIdentity(card="gpu0", card_class="c8", kind="test"), card, storage, place)

    def render(family: str, attempt: str) -> int:
        assignment = Assignment(
            attempt_id=attempt,
            job_id="video_1",
            renderer="r",
            card_class="c8",
            owner="local",
            still=still,
            spec=spec(family, width=64, height=64, frames=2),
            content_key="ke" * 32,
            row={"number": 1},
        )
        ended = worker.run(ActiveClip(assignment, lambda _event: None))
        assert ended.outcome is Outcome.COMPLETED, ended
        return card.used_bytes()

    loaded = render("i2vgen-xl-tiny", "attempt_1")
    # The host is the card here: prompts and stills already read stay in it, kept for the next clip.
    kept = worker.model.cache.used_bytes
    assert loaded > 1000 * kept
    assert render("camera", "attempt_2") <= kept
    # With the prompt and the still known, the encoders stay off the card.
    assert kept < render("i2vgen-xl-tiny", "attempt_3") < loaded
    worker.close()
    assert card.used_bytes() <= kept
