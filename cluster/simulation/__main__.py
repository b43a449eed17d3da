"""Entry point of `python -m cluster.simulation`."""

import sys

from cluster.simulation.simulator import main

if __name__ == "__main__":
    sys.exit(main())
