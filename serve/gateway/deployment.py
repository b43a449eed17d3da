"""The gateway deployment: an ASGI application on one replica or many, all on the same store."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from serve.loopback import proxy_on_loopback, replica_on_loopback
from serve.settings import STORE_PATIENCE_S, FarmArgs

log = logging.getLogger("clipmill.gateway")


@ray_serve.ingress()
class Gateway:
    """The HTTP API as a Serve deployment; it keeps nothing, so any replica answers for any other."""

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
        required = self._args.keys == "required" or not proxy_on_loopback()
        if required and not KeyStore(database).any():
            # Not raised: Serve would give the deployment up, and the first key would not bring it back.
            log.error(
                "this gateway listens beyond loopback and its farm has no keys: it answers nothing but /healthz until "
                "there is one. Make it with `clipmill keys create --scope admin --database URL`; see docs/keys.md"
            )
        self._access = AccessTerms(lookup=CallerLookup(database), required=required)

    def __serve_build_asgi_app__(self) -> Any:
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
