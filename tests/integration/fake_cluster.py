"""A Ray cluster of several raylets on this machine, driven by lines on standard input.

Run as a process of its own: Ray reads its settings when it is imported, and a test may kill whole nodes of it.
Commands: `add CLASS`, `kill CLASS`, `nodes`, `stop`; each is answered by one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

LABEL = "clipmill.io/card-class"


def main(args: dict[str, Any]) -> None:
    """Start a head without cards, deploy the farm, obey."""
    temp = tempfile.mkdtemp(prefix=f"clipmill-{os.getpid()}-", dir="/tmp")
    session = str(Path(temp) / "ray")
    Path(session).mkdir()
    os.environ.update(
        {
            "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": temp,
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_RECORD_INTERVAL_S": "0.5",
        }
    )
    import ray
    from ray import serve as ray_serve
    from ray.cluster_utils import Cluster
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    store_bytes = 80 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": store_bytes,
            "temp_dir": session,
            "include_dashboard": False,
        },
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes: dict[str, Any] = {}

    def add(card_class: str) -> None:
        nodes[card_class] = cluster.add_node(
            num_cpus=1, object_store_memory=store_bytes, labels={LABEL: card_class}, temp_dir=session
        )

    ray_serve.start(http_options={"location": "NoServer"})
    config = {
        "applications": [
            {
                "name": "clipmill",
                "import_path": "serve.app:build",
                "route_prefix": None,
                "args": args,
                "autoscaling_policy": {"policy_function": "serve.autoscaling:policy"},
            }
        ]
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    answer({"ready": True})
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "add":
            add(rest[0])
            answer({"added": rest[0]})
        elif word == "kill":
            cluster.remove_node(nodes.pop(rest[0]), allow_graceful=False)
            answer({"killed": rest[0]})
        elif word == "status":
            apps = ray_serve.status().applications
            answer({name: {d: dict(v.replica_states) for d, v in a.deployments.items()} for name, a in apps.items()})
        else:
            break
    with contextlib.suppress(Exception):
        ray.shutdown()
        cluster.shutdown()
    with contextlib.suppress(OSError):
        import shutil

        shutil.rmtree(Path(temp))


def answer(value: Any) -> None:
    """One JSON line."""
    print(json.dumps(value, default=str), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
