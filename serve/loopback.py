"""Ray on this machine only: every port of an embedded farm is bound to loopback, and nothing runs that is for clusters.

`ray start` has options for some of it; `ray.init` has none, and turns a loopback address that it is given into the
machine's own. So the places where Ray 2.60 chooses addresses are told here; a test of a running farm lists its ports.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from typing import Any

#: The address that an embedded farm's node has.
LOOPBACK = "127.0.0.1"


def ray_on_loopback(*, agent: bool) -> None:
    """Before `ray.init`: its node and all its daemons and workers listen on loopback.

    With `agent` False the node's agent has no port: it serves no metrics and takes no jobs.
    """
    from ray._private import utils
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    given = RayParams.__init__

    @functools.wraps(given)
    def on_loopback(params: Any, *args: Any, **kwargs: Any) -> None:
        # Without a port of its own every agent on a machine wants 52365, and all but the first take no jobs.
        ours = {"node_ip_address": LOOPBACK, "dashboard_agent_listen_port": 0}
        # One node that stays, and a terminal that is the person's: nobody scales it, nobody reads its logs out. Either
        # is a process of Python that competes with the first clip for two cores.
        ours |= {"no_monitor": True, "include_log_monitor": False}
        given(params, *args, **kwargs | ours)

    RayParams.__init__ = on_loopback
    # Else Ray's own processes turn this farm's loopback address into the machine's, where nothing listens: the agent
    # that takes jobs would wait there for ever.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if not agent:
        # No port at all for the autoscaler's figures, which there is nobody to read; Ray goes on without.
        os.environ["AUTOSCALER_METRIC_PORT"] = "-1"
        os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112 - Ray's own spelling
        # As in an installation without the dashboard.
        utils.get_dashboard_dependency_error = lambda: ImportError("nobody asked for a dashboard")
        # A second of a processor, for a process that answers nobody.
        Node.start_api_server = lambda _self, **_: None


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches what listens on `host`; None is every address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "0.0.0.0").strip("[]")).is_loopback  # noqa: S104 - nothing is bound to it
    except ValueError:
        return False


def proxy_on_loopback() -> bool:
    """In a replica: whether Serve's proxy, before every gateway, listens on loopback only; False where nobody knows."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return client is not None and is_loopback(client.http_config.host)


def replica_on_loopback() -> None:
    """In a replica's constructor: its port for other replicas is bound to loopback, where its node is there too.

    Serve opens that port, on all addresses, once the constructor has returned. On a cluster nothing changes.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    given = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> Any:
        return given(server, address.replace("[::]", LOOPBACK))

    replica.add_port_to_grpc_server = on_loopback
