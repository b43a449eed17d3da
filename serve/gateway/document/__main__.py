"""Write docs/api.md: `python -m serve.gateway.document --write`, or `--check` that it says what the API does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cluster.farm import Farm
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from serve.gateway.api import create_api
from serve.gateway.document.markdown import api_markdown

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api.md"


async def _nobody() -> None:
    """Nobody is nudged: no request is made."""


def page_text() -> str:
    """What docs/api.md should say."""
    with tempfile.TemporaryDirectory(prefix="clipmill-api-") as folder:
        # Nothing is asked of the store, so it stays without tables.
        database = Database(f"sqlite:///{folder}/store.db")
        farm = Farm(BatchStore(database), Storage(Path(folder) / "storage"))
        text = api_markdown(create_api(farm, default_model="camera", nudge=_nobody).openapi())
        database.close()
    return text


def main(arguments: list[str]) -> int:
    """Write the page, check it, or print it."""
    text = page_text()
    if "--write" in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if "--check" in arguments:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{PAGE} is not what the API says: python -m serve.gateway.document --write\n")
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
