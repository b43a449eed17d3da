"""What is said of a feed on the terminal, beside other things of a command."""

from __future__ import annotations

from cluster.catalog.manifest import Manifest
from serve.cli.common import console


def print_taken_for(manifest: Manifest) -> None:
    """Say what a file was taken for that is no manifest of its own, before anything is made of it."""
    if manifest.taken_for:
        console.print(f"  {manifest.taken_for}", markup=False, soft_wrap=True)
