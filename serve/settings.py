"""Settings of a person's machine (`CLIPMILL_*`) and of a farm (`applications[].args` in ray_config.yaml)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cluster.catalog.defaults import FewStep, check_few_step
from cluster.fleet.cards import NOMINAL_BYTES, Fleet, promised_bytes, promised_of_card
from cluster.fleet.quotas import OwnerShare
from cluster.maintenance.keep import Keep
from cluster.remote.policy import FetchPolicy
from cluster.scheduling.interactive import InteractiveTerms
from pipeline.devices.emulation_scale import emulated_bytes
from pipeline.families import FAMILIES
from pipeline.families.licences import remembered_acceptances
from pipeline.kernels.kernels import KernelChoice
from pipeline.memory.footprint import context_share
from pipeline.problems import BadInputError
from pipeline.units import GIB

if TYPE_CHECKING:
    # Half of what these settings take to be imported, which renderers have no use for.
    from cluster.explain.reasons import Rules
    from cluster.results.deliveries import DeliveryTerms
    from pipeline.delivery.profiles import DeliveryProfiles

log = logging.getLogger("clipmill.settings")

#: The file of a home in which delivery profiles of one's own are.
PROFILES_FILE = "profiles.yaml"
#: The file of a home in which its brand is, for deliveries where none is named.
BRAND_FILE = "brand.yaml"
#: Share of an emulated card's memory that a clip may use; the rest stands for drivers and contexts.
EMULATED_USABLE_SHARE = 0.95
#: How long dispatcher and gateway wait for a database that starts beside them: Serve gives a deployment up after three
#: failed constructors, and deploying the same config again does not revive it.
STORE_PATIENCE_S = 300.0

#: Environment variable of renderers: the folder for temporary files of an embedded farm, swept with it.
SCRATCH_VARIABLE = "CLIPMILL_SCRATCH"
#: Environment variable by which Ray knows the niceness of its workers, 15 where it is not set.
WORKER_NICENESS_VARIABLE = "RAY_worker_niceness"


class Settings(BaseSettings):
    """Settings of a machine, each from the environment: `CLIPMILL_` and the field's name in capitals."""

    # An empty CLIPMILL_HOME would be the folder one happens to stand in.
    model_config = SettingsConfigDict(env_prefix="CLIPMILL_", env_ignore_empty=True, extra="ignore")

    #: State and weights of the embedded farm.
    home: Path = Path("~/.clipmill")
    #: SQLAlchemy URL; default: SQLite in the home folder.
    database_url: str = ""
    #: fsspec URL; default: a folder in the home folder.
    storage_url: str = ""
    #: Never ask a hub for weights.
    offline: bool = False
    #: Address that answers as the hub does, and is asked instead of it.
    mirror: str = ""
    #: Families whose licence was read and accepted; in the environment with commas between them.
    accept_licenses: Annotated[tuple[str, ...], NoDecode] = ()
    #: The farm a client speaks to; default: the one running on this machine.
    url: str = ""
    #: Folder of the certificate that files of clips are signed with; default: `marks` in the home folder.
    marks: Path = Path()

    @field_validator("accept_licenses", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self.home = self.home.expanduser().absolute()
        self.database_url = self.database_url or f"sqlite:///{self.home / 'clipmill.db'}"
        self.storage_url = self.storage_url or str(self.home / "storage")
        self.marks = self.home / "marks" if self.marks == Path() else self.marks.expanduser().absolute()
        return self

    def accepted(self) -> frozenset[str]:
        """Families whose licence is accepted: by these settings, or on the command line of this home earlier."""
        return frozenset(self.accept_licenses) | remembered_acceptances(FAMILIES.values(), self.home)

    def deliveries(self) -> DeliveryTerms:
        """What rows of this home may be delivered for, and its brand. Raises `BadInputError`."""
        from cluster.results.deliveries import DeliveryTerms
        from pipeline.delivery.brands import read_brand

        brand = self.home / BRAND_FILE
        return DeliveryTerms(profiles=self.delivery_profiles(), brand=read_brand(brand) if brand.exists() else None)

    def deliveries_or_plain(self) -> DeliveryTerms:
        """What `deliveries` says, or the built-in profiles where its files are at fault.

        For what has to work anyway, such as a farm that starts and a list of batches; whoever hands in, or asks for
        files, is told by `deliveries`.
        """
        try:
            return self.deliveries()
        except BadInputError as error:
            log.error("deliveries go by the built-in profiles alone: %s", error)
            from cluster.results.deliveries import PLAIN_TERMS

            return PLAIN_TERMS

    def delivery_profiles(self, file: Path | None = None) -> DeliveryProfiles:
        """What rows may be delivered for: what comes with clipmill, and `file`, else the home's own, over it.

        Raises `BadInputError` where the file cannot be read.
        """
        from pipeline.delivery.profiles import read_profiles

        own = self.home / PROFILES_FILE
        return read_profiles(file or (own if own.exists() else None))


class CardClassArgs(BaseModel):
    """One card class of the farm: its replicas, and where Serve places them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Renderers, one per GPU; with `max_replicas`, the least that are kept when there is no work.
    replicas: Annotated[int, Field(ge=0)] = 1
    #: Not None: the class grows with its backlog up to this many, and goes down when it has no work.
    max_replicas: Annotated[int | None, Field(ge=1)] = None
    #: Ray label selector of the nodes, such as {"clipmill.io/card-class": "c24"}.
    label_selector: dict[str, str] = Field(default_factory=dict)
    #: GPUs a renderer asks Ray for: 1 on a cluster, 0 on emulated cards.
    num_gpus: float = 1
    num_cpus: float = 1
    #: Custom Ray resources a renderer asks for.
    resources: dict[str, float] = Field(default_factory=dict)
    #: What programs can have of the smallest card of the class, in GiB, as `torch.cuda.mem_get_info` tells it: 14.56 on
    #: a T4, 22.03 on an L4 or A10G, 44.4 on an L40S, whose ECC takes a part. None: nearly all that the class is named
    #: for.
    memory_gib: Annotated[float | None, Field(gt=0)] = None
    #: What denoisers compute with on this class; None: what the farm's `kernels` says.
    kernels: KernelChoice | None = None
    #: The cards of this class by id, where one machine has several classes; a renderer takes a free one.
    cards: tuple[str, ...] = ()


class ListenArgs(BaseModel):
    """An address and a port of this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


class FarmArgs(BaseModel):
    """The arguments of `serve.app:build`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_classes: dict[str, CardClassArgs]
    #: Cards of memory-limited CPU tensors, for machines without a GPU.
    emulate: bool = False
    home: str = ""
    database_url: str = ""
    storage_url: str = ""
    offline: bool = False
    #: Address that answers as the hub does, and is asked for weights instead of it.
    mirror: str = ""
    #: Families whose licence was read and accepted; rows of other families with such a licence are refused.
    accept_licenses: tuple[str, ...] = ()
    #: Family of rows that name none. Never `camera` by default: a farm does not swap a diffusion job for it.
    default_model: str = "i2vgen-xl"
    #: A local folder of weights per family.
    weights: dict[str, str] = Field(default_factory=dict)
    #: What tier `fast` means, by family.
    few_step: dict[str, FewStep] = Field(default_factory=dict)
    #: Whether a gateway answers HTTP; an embedded `render` needs none.
    gateway: bool = True
    #: Where the gateway listens itself, as that of an embedded farm does; None: Serve's proxies stand before it.
    listen: ListenArgs | None = None
    #: Names of hosts that the gateway answers to, besides addresses and `localhost`: `farm.example.org`,
    #: `*.example.org`, or `*` where something before it checks names.
    allowed_hosts: tuple[str, ...] = ()
    #: Whether the gateway asks for keys: `auto`: on loopback once a key was made, everywhere else always; `required`:
    #: always, where something on this machine forwards to it from elsewhere.
    keys: Literal["auto", "required"] = "auto"
    #: What the farm may ask: the gateway for pictures that requests name by URL, the dispatcher for webhooks. Public
    #: hosts, unless it says more.
    fetch: FetchPolicy = FetchPolicy()
    #: The farm's address as others write it, `https://farm.example.org`: URLs in webhooks begin so. Empty: they are
    #: paths.
    public_url: Annotated[str, Field(pattern=r"^(https?://[^\s?#]+)?$", max_length=500)] = ""
    #: Whether files that the gateway hands out are marked as made by a machine (docs/marks.md); `off`: not at all.
    marks: Literal["auto", "off"] = "auto"
    #: Whether finished clips are measured against still and prompt, and what is found is noted (docs/fidelity.md);
    #: `off`: not at all.
    fidelity: Literal["note", "off"] = "note"
    #: Rights that nobody but its owner gets to what the farm writes, in octal: `077`, or `027` where a group reads
    #: the storage too.
    umask: Annotated[str, Field(pattern="^[0-7]{3}$")] = "077"
    #: Ray label selector of the node for dispatcher and gateway: they hold the store's credentials, renderers do not.
    control_label_selector: dict[str, str] = Field(default_factory=dict)
    #: With autoscaling: seconds in which a class's backlog should be worked off.
    backlog_target_s: Annotated[float, Field(gt=0)] = 300
    #: With autoscaling: seconds a class stays up without any work; the last card stays as long again, for Serve goes
    #: to zero from one only.
    idle_s: Annotated[float, Field(ge=0)] = 60
    #: Longest clip in seconds; Serve's graceful shutdown waits 1.5 times as long.
    longest_clip_s: float = 1800
    #: A clip is saved after so many steps or seconds, whichever comes first. A checkpoint has 0.5 MB (I2VGen-XL, 512p)
    #: to 85 MB (Wan2.2-5B); it is copied and hashed between two steps, and written beside them.
    checkpoint_steps: Annotated[int, Field(ge=1)] = 10
    checkpoint_s: Annotated[float, Field(gt=0)] = 30
    #: What denoisers compute with: `eager`, `compiled` for each size, or `auto`, the faster (docs/kernels.md).
    kernels: KernelChoice = KernelChoice.EAGER
    #: Compiled steps of small clips are recorded as CUDA graphs where they wait for launches (docs/kernels.md).
    cuda_graphs: bool = False
    #: Seconds that a clip waits on its card for memory that other programs have taken, before it goes back.
    hold_s: Annotated[float, Field(ge=0)] = 30
    #: Seconds without a step, a load or a decode done after which a clip hangs: longer than the longest of them. It is
    #: taken from its renderer, and a renderer whose thread does not let go of one by then ends its process.
    stall_s: Annotated[float, Field(gt=0)] = 1800
    #: Days for which things are kept, by `cluster.maintenance.keep.Keep`; None: for ever.
    keep_outputs_days: Annotated[float | None, Field(ge=0)] = None
    keep_let_go_days: Annotated[float | None, Field(ge=0)] = None
    keep_failed_days: Annotated[float | None, Field(ge=0)] = None
    keep_checkpoints_days: Annotated[float | None, Field(ge=0)] = None
    keep_cache_days: Annotated[float | None, Field(ge=0)] = None
    #: Hours between two sweeps of what is not kept and of objects that nothing names.
    sweep_hours: Annotated[float, Field(gt=0)] = 6
    #: What an owner may take of the farm; one that is not named has the weight 1 and no limit.
    owners: dict[str, OwnerShare] = Field(default_factory=dict)
    #: Plan the tail of a batch, and move clips between cards where that ends it earlier.
    plan_tails: bool = True
    #: Share of the cards' time, over an hour in which other clips wait, that interactive clips may have before others:
    #: 0: none goes before others, 1: all may. And how many clips of one owner may do so at a time.
    interactive_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    interactive_per_owner: Annotated[int, Field(ge=0)] = 4
    #: Seconds that running clips may take to finish when the farm closes.
    drain_s: float = 20

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        unknown = set(self.card_classes) - set(NOMINAL_BYTES)
        if unknown:
            raise ValueError(f"unknown card class {', '.join(sorted(unknown))}; there are {', '.join(NOMINAL_BYTES)}")
        if not self.card_classes:
            raise ValueError("card_classes is empty: name at least one, such as c24")
        return self

    @model_validator(mode="after")
    def _few_steps(self) -> Self:
        for name, few in self.few_step.items():
            check_few_step(name, few)
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for name, table in self.card_classes.items():
            if table.max_replicas is not None and table.max_replicas < table.replicas:
                raise ValueError(f"{name}: max_replicas {table.max_replicas} is below replicas {table.replicas}")
        return self

    def set_umask(self) -> None:
        """From here on, what this process writes is no more open than `umask` says."""
        os.umask(int(self.umask, 8))

    def without_store(self) -> dict[str, Any]:
        """The arguments as renderers get them: not the store's address, which has its password."""
        return self.model_dump(mode="json") | {"database_url": ""}

    @property
    def adapters(self) -> dict[str, str]:
        """Paths of the adapters that clips may name, by SHA-256."""
        return {few.sha256: few.adapter for few in self.few_step.values()}

    @property
    def autoscales(self) -> bool:
        """Whether any class grows and shrinks with the backlog."""
        return any(table.max_replicas is not None for table in self.card_classes.values())

    def settings(self) -> Settings:
        """The machine's settings with what the farm's arguments say on top."""
        given: dict[str, Any] = {}
        # Only where it says something: a False would override CLIPMILL_OFFLINE on the renderer's own machine.
        if self.offline:
            given["offline"] = True
        if self.mirror:
            given["mirror"] = self.mirror
        if self.accept_licenses:
            given["accept_licenses"] = self.accept_licenses
        if self.home:
            given["home"] = Path(self.home)
        if self.database_url:
            given["database_url"] = self.database_url
        if self.storage_url:
            given["storage_url"] = self.storage_url
        return Settings(**given)

    def keep(self) -> Keep:
        """How long things are kept; what nothing names is left for a day, or for twice the longest clip."""
        return Keep(
            outputs_days=self.keep_outputs_days,
            let_go_days=self.keep_let_go_days,
            failed_days=self.keep_failed_days,
            checkpoints_days=self.keep_checkpoints_days,
            cache_days=self.keep_cache_days,
            grace_s=max(Keep.grace_s, 2 * self.longest_clip_s),
        )

    def kernels_of(self, card_class: str) -> KernelChoice:
        """What denoisers compute with on cards of the class."""
        return self.card_classes[card_class].kernels or self.kernels

    def fleet(self) -> Fleet:
        """The classes of cards this farm can have, whether any is up now or not, with bytes a clip can count on."""
        return Fleet(usable_bytes={name: self.usable_bytes(name) for name in self.card_classes})

    def rules(self) -> Rules:
        """The rules that the farm places jobs by: its fleet, shares of owners, whether tails are planned."""
        from cluster.explain.reasons import Rules

        return Rules(fleet=self.fleet(), owners=self.owners, plans=self.plan_tails, interactive=self.interactive())

    def interactive(self) -> InteractiveTerms:
        """What interactive clips may take of the farm."""
        return InteractiveTerms(share=self.interactive_share, per_owner=self.interactive_per_owner)

    def usable_bytes(self, card_class: str) -> int:
        """Bytes a clip can count on on every card of the class."""
        if self.emulate:
            return int(emulated_bytes(NOMINAL_BYTES[card_class]) * EMULATED_USABLE_SHARE)
        memory_gib = self.card_classes[card_class].memory_gib if card_class in self.card_classes else None
        promised = promised_bytes(NOMINAL_BYTES[card_class])
        if memory_gib is not None:
            promised = min(promised, promised_of_card(int(memory_gib * GIB)))
        return max(0, promised - (context_share(graphs=self.cuda_graphs) - context_share(graphs=False)))
