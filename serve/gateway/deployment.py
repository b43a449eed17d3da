"""The gateway deployment: an ASGI application on one replica or many, all on the same store.

On a cluster Serve's proxies stand before its replicas (`Gateway`). An embedded farm has one gateway on one machine,
which listens itself (`ListeningGateway`): a request through a proxy costs several times what its answer does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from cluster.farm import Farm
from cluster.remote.manifests import RemoteManifests
from cluster.remote.stills import RemoteStills
from cluster.results.marked import MarkedObjects
from cluster.storage import Storage
from cluster.store import BatchStore, Database
from cluster.store.access.keys import KeyStore
from cluster.store.gauges import Figures
from pipeline.marks.marker import WatchedMarker
from pipeline.models.tokens import PromptLengths
from serve.gateway.access.callers import CallerLookup
from serve.gateway.access.gate import AccessTerms
from serve.gateway.api import create_api, protect
from serve.gateway.metrics import store_registry
from serve.loopback import is_loopback, proxy_on_loopback, replica_on_loopback
from serve.settings import STORE_PATIENCE_S, FarmArgs, ListenArgs

log = logging.getLogger("clipmill.gateway")


class GatewayParts:
    """What a gateway answers from: store, storage, keys; nothing is kept, so any replica answers for any other."""

    def __init__(self, args: dict[str, Any], dispatcher: DeploymentHandle) -> None:
        self._args = FarmArgs.model_validate(args)
        self._args.set_umask()
        replica_on_loopback()
        settings = self._args.settings()
        database = Database.shared(settings.database_url)
        database.migrate(patience_s=STORE_PATIENCE_S)
        self._farm = Farm(
            BatchStore(database),
            Storage(settings.storage_url),
            accepted=settings.accepted,
            cut_texts=PromptLengths(settings.home, {k: Path(v) for k, v in self._args.weights.items()}).cut,
            deliveries=settings.deliveries_or_plain(),
        )
        if self._args.marks == "auto":
            self._farm = replace(self._farm, marked=MarkedObjects(self._farm.storage, WatchedMarker(settings.marks)))
        self._registry = store_registry(Figures(database, self._args.fleet()))
        self._dispatcher = dispatcher
        listen = self.listen = self._args.listen
        required = self._args.keys == "required" or not (is_loopback(listen.host) if listen else proxy_on_loopback())
        if required and not KeyStore(database).any():
            # Not raised: Serve would give the deployment up, and the first key would not bring it back.
            log.error(
                "this gateway listens beyond loopback and its farm has no keys: it answers nothing but /healthz until "
                "there is one. Make it with `clipmill keys create --scope admin --database URL`; see docs/keys.md"
            )
        self._access = AccessTerms(lookup=CallerLookup(database), required=required)

    def asgi_app(self) -> Any:
        """The application, guarded."""

        async def nudge() -> None:
            await self._dispatcher.nudge.remote()

        api = create_api(
            self._farm,
            default_model=self._args.default_model,
            nudge=nudge,
            registry=self._registry,
            few_step=self._args.few_step,
            rules=self._args.rules(),
            keep_days=self._args.keep_outputs_days,
            remote=RemoteStills(self._args.fetch, storage=self._farm.storage),
            remote_manifests=RemoteManifests(self._args.fetch),
            access=self._access,
        )
        return protect(api, allowed_hosts=self._args.allowed_hosts)


@ray_serve.ingress()
class Gateway:
    """The HTTP API behind Serve's proxies."""

    def __init__(self, args: dict[str, Any], dispatcher: DeploymentHandle) -> None:
        self._parts = GatewayParts(args, dispatcher)

    def __serve_build_asgi_app__(self) -> Any:
        return self._parts.asgi_app()


#: Seconds for which a new replica waits until the port of the one before it is free.
_PORT_PATIENCE_S = 30.0
#: Seconds for which a connection may stay open between two requests, as Serve's proxies have it.
_KEEP_ALIVE_S = 90


class ListeningGateway:
    """The HTTP API at an address and a port of its own, without a proxy; one replica, that is, as the port is one."""

    async def __init__(self, args: dict[str, Any], dispatcher: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        parts = await asyncio.to_thread(GatewayParts, args, dispatcher)
        listen = parts.listen
        assert listen is not None
        listening = await asyncio.to_thread(_bound, listen)
        config = uvicorn.Config(
            parts.asgi_app(),
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="critical",
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._serving.done():
                raise RuntimeError(f"the gateway does not listen at {listen.host}:{listen.port}")
            await asyncio.sleep(0.01)

    async def check_health(self) -> None:
        """Raise when nothing listens any more: Serve then replaces this replica."""
        if self._serving.done():
            raise RuntimeError("the gateway has stopped listening")

    async def __del__(self) -> None:
        self._server.should_exit = True
        await self._serving


def _bound(listen: ListenArgs) -> socket.socket:
    """A socket bound to an address; waits for a replica before this one to let go of it. Raises `OSError`."""
    end = time.monotonic() + _PORT_PATIENCE_S
    while True:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((listen.host, listen.port))
        except OSError:
            bound.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return bound
