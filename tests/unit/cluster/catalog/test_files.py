"""Stills beside a manifest: read whole, from inside its folder, or refused with a way on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.catalog.files import MAX_IMAGE_BYTES
from cluster.catalog.manifest import Manifest, Row, read_image_bytes
from pipeline.problems import BadInputError


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A manifest's folder with one picture, and a secret beside the folder."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "catalog"
    (folder / "pics").mkdir(parents=True)
    (folder / "pics" / "Shoe-1.png").write_bytes(b"shoe")
    return folder


def still(folder: Path, image: str) -> bytes:
    row = Row(number=1, id="a", image=image, prompt="p")
    return read_image_bytes(Manifest(root=folder.resolve(), rows=[row]), row)


def test_stills_inside_the_folder(catalog: Path) -> None:
    (catalog / "link.png").symlink_to("pics/Shoe-1.png")
    inside = ("pics/Shoe-1.png", "pics/../pics/./Shoe-1.png", "link.png", str(catalog / "pics" / "Shoe-1.png"))
    assert [still(catalog, image) for image in inside] == [b"shoe"] * 4


def test_no_path_leaves_the_folder(catalog: Path) -> None:
    (catalog / "link.png").symlink_to("../secret.png")
    (catalog / "up").symlink_to("..")
    absolute = str(catalog.parent / "secret.png")
    there = ["../secret.png", "pics/../../secret.png", absolute, "link.png", "up/secret.png", "/etc/passwd"]
    for image in [*there, "../not-there.png", "/not/there.png", f"../{catalog.name}x/a.png"]:
        with pytest.raises(BadInputError, match="leaves the manifest's folder") as caught:
            still(catalog, image)
        assert caught.value.problem.field == "image"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("pics/shoe-1.PNG", "Is 'pics/Shoe-1.png' meant?"),
        ("pics/Shoe-1.jpeg", "Is 'pics/Shoe-1.png' meant?"),
        ("pics/Sho-1.png", "Is 'pics/Shoe-1.png' meant?"),
        (r"pics\Shoe-1.png", "Is 'pics/Shoe-1.png' meant?"),
        ("pics/zzz.webp", "there is no file 'pics/zzz.webp'"),
        ("pix/Shoe-1.png", "The folder 'pix' is not there either"),
        ("pics/Shoe-1.png/x", "there is no file"),
        ("pics", "is a folder"),
        ("", "is a folder"),
        ("fifo.png", "is not a regular file"),
        ("loop.png", "cannot be read"),
        ("x" * 300 + ".png", "cannot be read"),
        ("a\0.png", "cannot be read"),
        ("https://shop.example/a.png", "pictures by https:// are not fetched here"),
        ("s3://bucket/a.png", "pictures by s3:// are not fetched here"),
        ("gs://bucket/a.png", "pictures by gs:// are not fetched here"),
        ("file:///etc/passwd", "pictures by file:// are not fetched; https, http, s3 and gs are"),
    ],
)
def test_stills_that_cannot_be_read(catalog: Path, image: str, message: str) -> None:
    os.mkfifo(catalog / "fifo.png")
    (catalog / "loop.png").symlink_to("loop.png")
    with pytest.raises(BadInputError) as caught:
        still(catalog, image)
    assert caught.value.problem.field == "image"
    assert message in str(caught.value)


def test_a_still_too_large_is_not_read(catalog: Path) -> None:
    with (catalog / "big.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # sparse
    with pytest.raises(BadInputError, match="larger than 200 MB"):
        still(catalog, "big.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_still_without_permission(catalog: Path) -> None:
    (catalog / "pics" / "Shoe-1.png").chmod(0)
    with pytest.raises(BadInputError, match="may not be read"):
        still(catalog, "pics/Shoe-1.png")
