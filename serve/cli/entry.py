"""The `clipmill` script. It imports the rest itself, so that Ctrl-C within the first second shows no traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exits 130 where Ctrl-C came before it could answer."""
    try:
        from serve.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
