"""Where compiled kernels are kept between processes."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.private import private_folder

#: What torch's compiler heeds; Triton's own cache lies beneath it.
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_under(home: Path) -> Path:
    """Have what this process compiles kept under `home`, beside the weights; where the environment says so instead.

    To be called before anything is compiled. What lies there is run as code, so only its owner may write to it; it may
    be deleted at any time.
    """
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    folder = home / "kernels"
    private_folder(folder)
    os.environ[_VARIABLE] = str(folder)
    return folder
