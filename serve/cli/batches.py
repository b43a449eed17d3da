"""`up`, `submit`, `status`, `wait`: a farm that stays, and batches handed to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.access.keys import KeyState
from cluster.catalog.defaults import Defaults, FewStep
from cluster.catalog.ingest import gather
from cluster.catalog.manifest import Manifest
from cluster.farm import Farm
from cluster.fleet.cards import Fleet
from cluster.jobs.model import JobState
from cluster.store.access.keys import KeyStore
from cluster.store.database import refuse_no_store
from pipeline.families import family_named
from pipeline.problems import BadInputError
from serve.cli.common import (
    AcceptLicense,
    Cards,
    Exit,
    Home,
    Json,
    KernelsOption,
    Url,
    accept_licenses,
    connect,
    console,
    exit_on_error,
    fail,
    farm_facts,
    local_farm,
    open_home,
    print_json,
    require_farm,
    say_error,
    settings_for,
)
from serve.cli.failures import FailureNotices
from serve.cli.feeds.told import print_taken_for
from serve.cli.follow import BatchWait, exit_code, print_batch, print_card_faults
from serve.cli.options import (
    AllowPrivateHosts,
    Catalog,
    FewStepFile,
    RowOptions,
    TermOptions,
    allowing,
    few_step_of,
    with_option_groups,
)
from serve.cli.render import HASTY_S, cards_text, farm_args, farm_options
from serve.cli.runnable import check_fits, check_runnable
from serve.cli.session import FarmHost, source_of
from serve.cli.show import batches_table, moment_text, rows_table, unknown_text
from serve.client import FarmClient, LocalClient, View
from serve.embedded import EmbeddedFarm, FarmLock, token_file
from serve.gateway.advice.prompts import PromptAdvice
from serve.loopback import LOOPBACK, is_loopback
from serve.settings import FarmArgs, Settings

#: A batch under a key that is so much older than the submission was handed in before it, in seconds.
_BEFORE_S = 5
#: Addresses that stand for all of a machine's, loopback among them.
_EVERYWHERE = ("0.0.0.0",)  # noqa: S104 - compared with
#: Characters of a batch's id that tell it from all others.
_SHORT_ID = 24


def up(
    config: Annotated[Path | None, typer.Option(help="A ray_config.yaml of your own.")] = None,
    cards: Cards = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the gateway (default: 8500).")] = None,
    address: Annotated[
        str, typer.Option("--host", help="Address that the gateway listens on; beyond loopback it needs a key.")
    ] = LOOPBACK,
    dashboard: Annotated[
        int | None, typer.Option("--dashboard-port", help="Start Ray's dashboard here; `ray job submit` needs it.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the renderers' metrics (default: any free one).")
    ] = None,
    accept_license: AcceptLicense = None,
    few_step: FewStepFile = None,
    kernels: KernelsOption = None,
    allow_private_hosts: AllowPrivateHosts = None,
    home: Home = None,
) -> None:
    """Run a farm on this machine until Ctrl-C: gateway, dispatcher and one renderer per card."""
    with exit_on_error():
        settings = settings_for(home)
        settings.deliveries()
        open_home(settings)
        accept_licenses(settings, accept_license)
        args, configured_port = _configured(settings, config, cards, few_step)
        args = args.model_copy(update={"fetch": allowing(args.fetch, allow_private_hosts)})
        # Here, not by parts of the farm that would be started again and again.
        refuse_no_store(args.database_url)
        if kernels is not None:
            args = args.model_copy(update={"kernels": kernels})
        lock = _locked(settings)
        chosen = port or configured_port
        url = f"http://{LOOPBACK if address in _EVERYWHERE else address}:{chosen}"
        # Before anything starts: dispatcher and gateway would wait for it for minutes, and say so to their logs alone.
        settings = settings.model_copy(update={"database_url": args.database_url, "storage_url": args.storage_url})
        own = local_farm(settings)
        args = _with_keys(args, own, address)
        farm = EmbeddedFarm(args, host=address, port=chosen, dashboard_port=dashboard, metrics_port=metrics_port)
        args.set_umask()
        stop = threading.Event()
        _require_free(address, chosen)
        _obey_signals(stop)
        host = FarmHost(farm)
        host.start()
        with console.status("starting the farm"):
            # Of a daemon that dies meanwhile Ray's own start never hears.
            while not (host.up.wait(0.1) or host.error or stop.is_set() or host.lost()):
                pass
        # Again: Ray has put its own handler of SIGTERM in place, which ends the process with exit code 15.
        _obey_signals(stop)
        try:
            if host.error:
                fault = f"{type(host.error).__name__}: {host.error}"
                fail(Exit.NO_FARM, f"the farm did not start: {fault}. Try `clipmill doctor`.")
            if not host.up.is_set():
                if not host.lost():
                    console.print("stopped before the farm was up")
            else:
                _note_facts(lock, args, url=url, options=farm_options(cards, few_step))
                _print_up(settings, args, farm, url, dashboard)
                _attend(host, stop, FailureNotices(own, farm.name()))
        finally:
            if broke := host.lost():
                # Before it is closed: what is left of Ray may not let this process get any further.
                why = (
                    f"the farm broke: Ray's {broke}, and nothing starts that again. `clipmill logs` has its last words"
                )
                say_error(f"{why}. Start the farm again: what is not finished stays queued.")
            if not host.close(HASTY_S if stop.is_set() else 0, patient=False):
                # Ray's start cannot be interrupted; its daemons end with this process.
                os._exit(Exit.INTERRUPTED if stop.is_set() else Exit.NO_FARM)
            lock.release()
        if broke:
            raise typer.Exit(Exit.NO_FARM)


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _note_facts(lock: FarmLock, args: FarmArgs, **facts: Any) -> None:
    """What commands of this home want to know of the farm that runs on it."""
    lock.note(
        **facts,
        default_model=args.default_model,
        few_step={name: few.model_dump(mode="json") for name, few in args.few_step.items()},
        rules=args.rules().model_dump(mode="json"),
        weights=sorted(args.weights),
    )


def _locked(settings: Settings) -> FarmLock:
    """The home's lock, taken. Exits 3 where another process has it."""
    lock = FarmLock(settings.home)
    if not lock.try_acquire():
        who = lock.holder() or {}
        use = "Use that one."
        if not _is_alive(who.get("pid")):
            # What was noted is an earlier farm's, or that of one in another container.
            use += f" If none does, some process keeps {settings.home / 'farm.lock'} locked: delete that file."
        fail(Exit.NO_FARM, f"a farm runs on {settings.home} already (process {who.get('pid', '?')}). {use}")
    return lock


def _with_keys(args: FarmArgs, own: Farm, address: str) -> FarmArgs:
    """The arguments of a farm on this address: beyond loopback it asks for keys. Exits 2 where there is none yet."""
    if is_loopback(address):
        return args
    keys, now = KeyStore(own.batch_store.database).listed(), own.batch_store.now()
    if not any(key.state(now) is KeyState.ACTIVE for key in keys):
        fail(
            Exit.USAGE,
            f"on {address} others reach this farm, and it has no key that is valid. Make one first: "
            "`clipmill keys create --scope admin`; `clipmill up` without --host stays on loopback.",
        )
    return args.model_copy(update={"keys": "required"})


def _print_up(settings: Settings, args: FarmArgs, farm: EmbeddedFarm, url: str, dashboard: int | None) -> None:
    console.print(
        f"[bold green]✓[/] the farm is up at [bold]{url}[/] · Ctrl-C ends it · logs in {farm.logs()}", markup=True
    )
    none = "" if not args.emulate else ": nothing but small models and `camera` runs on them"
    console.print(f"  cards: {cards_text(args)}{none}", markup=False, soft_wrap=True)
    console.print(f"  model of rows that name none: {args.default_model}", markup=False, soft_wrap=True)
    try:
        notes = check_runnable({args.default_model: 0}, settings, args.weights)
    except BadInputError as error:
        notes = [f"{error}"]
    for note in notes:
        console.print(f"  note: {note}", style="yellow", markup=False, soft_wrap=True)
    if dashboard is not None:
        address = f"http://127.0.0.1:{dashboard}"
        token = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file(settings.home)}"
        words = f"  jobs: {token} ray job submit --address {address} --working-dir . -- …"
        console.print(words, markup=False, soft_wrap=True)


def _attend(host: FarmHost, stop: threading.Event, notices: FailureNotices) -> None:
    """Return when the farm broke or somebody ends it; say meanwhile which rows fail."""
    while not host.lost() and not stop.wait(1.0):
        for line in notices.news():
            console.print(line, markup=False, soft_wrap=True)
    if not host.lost():
        console.print("closing: what is not finished stays queued")


def _require_free(address: str, port: int) -> None:
    """Exit 3 where somebody listens on the port already. Serve would share it, and requests would go to either."""
    with socket.socket() as probe:
        # A port just given up is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            fail(Exit.NO_FARM, f"{address}:{port} cannot be had ({error.strerror}). Choose another with --port.")


def _obey_signals(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _configured(
    settings: Settings, config: Path | None, cards: str | None, few_step: Path | None = None
) -> tuple[FarmArgs, int]:
    path = config or packaged_config()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        table = dict(document["applications"][0]["args"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        fail(Exit.USAGE, f"{path} is no Serve config with our table under applications[0].args: {error}")
    here = farm_args(settings, "", cards, None)
    # A config of one's own is followed to the letter; the packaged one takes the cards this machine has.
    if config is None or cards is not None:
        table["card_classes"] = {k: v.model_dump() for k, v in here.card_classes.items()}
        table["emulate"] = here.emulate
    if few_step is not None:
        table["few_step"] = few_step_of(settings, few_step)
    table |= {"home": str(settings.home), "offline": settings.offline, "gateway": True}
    table["mirror"] = table.get("mirror") or settings.mirror
    table["accept_licenses"] = [*table.get("accept_licenses", ()), *settings.accept_licenses]
    table["database_url"] = table.get("database_url") or settings.database_url
    table["storage_url"] = table.get("storage_url") or settings.storage_url
    return FarmArgs.model_validate(table), int((document.get("http_options") or {}).get("port", 8500))


def packaged_config() -> Path:
    """`ray_config.yaml` as installed, else the checkout's."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "ray_config.yaml"
    return installed if installed.exists() else here.parent / "ray_config.yaml"


@with_option_groups()
def submit(
    catalog: Catalog,
    model: Annotated[str | None, typer.Option(help="Model of rows that name none (default: the farm's).")] = None,
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    key: Annotated[
        str | None,
        typer.Option(help="The same key again hands in nothing (default: the submission id, within a Ray job)."),
    ] = None,
    terms: TermOptions = TermOptions(),  # noqa: B008 - frozen
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until every row has ended.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Hand a catalog to a running farm and return; the farm renders it whether anybody waits or not."""
    with exit_on_error():
        settings = settings_for(home)
        # A file of the home that is at fault is told before anything is handed in.
        settings.deliveries()
        if model is not None:
            model = family_named(model).name
        # Another machine's farm does not tell which model it takes by default.
        known = model or (None if url or settings.url else farm_facts(settings).get("default_model"))
        manifest = rows.read(catalog, known, settings.home)
        if not as_json:
            print_taken_for(manifest)
        require_farm(settings, url)
        if not (url or settings.url):
            _tell_what_cannot_run(manifest, rows, known, settings)
        if known and not as_json:
            _tell_of_prompts(manifest, known)
        client = connect(settings, url)
        # Another machine's farm has a storage that this command does not see.
        remote = rows.remote(client.farm.storage if isinstance(client, LocalClient) else None)
        began = time.time()
        overrides: View = rows.defaults().model_dump(mode="json", exclude_defaults=True)
        if model:
            overrides["model"] = model
        batch = client.submit(
            gather(manifest, client.put_still, remote),
            overrides,
            name=catalog.name,
            source=source_of(catalog),
            key=key or ray_submission_id(),
            terms=terms.terms(),
        )
        if not as_json and key and batch["created_at"] < began - _BEFORE_S:
            console.print(f"handed in before, {moment_text(batch['created_at'])}, under the same key: nothing is new")
        if wait_for_end:
            batch = BatchWait(settings, url, client, None, quiet=as_json).until_end(batch["id"])
        for note in () if as_json else unknown_text(manifest):
            console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
        print_batch(client, batch, as_json)
        if not (as_json or wait_for_end):
            short = str(batch["id"])[:_SHORT_ID]
            console.print(
                f"  next: `clipmill watch {short}` · `clipmill wait {short} --out DIR` · `clipmill why {short}`",
                style="dim",
                soft_wrap=True,
            )
    raise typer.Exit(exit_code(batch, ended=wait_for_end))


def _tell_what_cannot_run(manifest: Manifest, rows: RowOptions, model: str | None, settings: Settings) -> None:
    """Notes on rows for the farm of this machine; raises `BadInputError` where it can render none of them."""
    facts = farm_facts(settings)
    fleet = Fleet.model_validate((facts.get("rules") or {}).get("fleet") or {"usable_bytes": {}})
    if model and fleet.usable_bytes and manifest.good:
        few_step = {name: FewStep.model_validate(few) for name, few in (facts.get("few_step") or {}).items()}
        defaults = Defaults(model=model, **rows.defaults().model_dump(), few_step=few_step)
        for note in check_fits(manifest.good, defaults, fleet):
            console.print(f"  note: {note}", style="yellow", markup=False, soft_wrap=True)
    models = Counter(name for row in manifest.good if (name := row.model or model))
    for note in check_runnable(models, settings, facts.get("weights", ())):
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)


def _tell_of_prompts(manifest: Manifest, model: str) -> None:
    """Findings on the prompts of rows that are handed in, before their pictures go up; none holds them up."""
    advice = PromptAdvice(model)
    for row in manifest.good:
        advice.add(row)
    for note in advice.notes():
        console.print(f"  note: {note}", style="yellow", markup=False, soft_wrap=True)


def ray_submission_id() -> str | None:
    """The id given to `ray job submit`, when this process is such a job's; Ray hands it over in the environment."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        found = config["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return f"ray-job-{found}"


def status(
    batch: Annotated[str | None, typer.Argument(help="Batch id, or its beginning (default: list the newest).")] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Every row of the batch, not only those that failed.")] = False,
    state: Annotated[
        list[JobState] | None, typer.Option("--state", help="Only rows in this state; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many batches, the newest ones.")] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="List runs too that a later run of the same catalog replaced.")
    ] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show batches, or one batch with its rows that failed."""
    with exit_on_error():
        settings = settings_for(home)
        client = connect(settings, url)
        if batch:
            found = client.batch(client.find(batch))
            if rows or state:
                _print_rows(client, found, state or [], as_json)
            else:
                print_batch(client, found, as_json)
            return
        if rows or state:
            fail(Exit.USAGE, "--rows and --state are of one batch: name it, as `clipmill status` lists them")
        batches = client.batches(limit, everything=everything)
        if as_json:
            print_json({"batches": batches})
        elif batches:
            console.print(batches_table(batches))
            if len(batches) == limit:
                console.print(f"the newest {limit}; --limit N shows more", style="dim")
        else:
            console.print("no batches yet: hand one in with `clipmill render CATALOG --out DIR`")
        if not as_json:
            print_card_faults(client.cards())


def _print_rows(client: FarmClient, batch: View, states: list[JobState], as_json: bool) -> None:
    jobs = client.jobs(batch["id"])
    if states:
        jobs = [job for job in jobs if job["state"] in states]
    if as_json:
        print_json({"batch": batch, "jobs": jobs})
        return
    console.print(batches_table([batch]))
    console.print(rows_table(jobs) if jobs else "no row is in this state")
