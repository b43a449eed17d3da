"""An embedded farm in a process of its own, driven by lines on standard input.

Ray reads its settings when it is imported, so every farm needs a process. Commands: `preempt JOB`,
`pid CLASS RENDERER`, `stop`; each is answered by one JSON line.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from serve.embedded import APP_NAME, EmbeddedFarm
from serve.settings import FarmArgs


def main(args: dict[str, Any]) -> None:
    """Start the farm, obey, close it."""
    logging.basicConfig(level=logging.WARNING)
    farm = EmbeddedFarm(FarmArgs.model_validate(args))
    try:
        farm.start()
        from ray import serve as ray_serve

        dispatcher = ray_serve.get_deployment_handle("dispatcher", app_name=APP_NAME)
        answer({"ready": True})
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "preempt":
                answer({"told": dispatcher.preempt.remote(rest[0]).result(timeout_s=30)})
            elif word == "pid":
                renderers = ray_serve.get_deployment_handle(f"renderer-{rest[0]}", app_name=APP_NAME)
                answer({"pid": renderers.pid.remote(want=rest[1]).result(timeout_s=30)})
            else:
                break
    finally:
        farm.close(0)


def answer(value: Any) -> None:
    """One JSON line."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
