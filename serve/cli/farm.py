"""`up`, `submit`, `status`, `wait`: a farm that stays, and batches handed to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.ingest import gather
from cluster.jobs import JobState
from cluster.manifest import ManifestError, read_manifest
from pipeline.families import family_named
from serve.cli.common import (
    AcceptLicense,
    Cards,
    Exit,
    Home,
    Json,
    Url,
    accept_licenses,
    connect,
    console,
    fail,
    farm_facts,
    print_json,
    require_farm,
    settings_for,
    telling_errors,
)
from serve.cli.options import (
    TERMS,
    FewStepFile,
    MaxCost,
    MaxFailures,
    MaxGpuHours,
    RowOptions,
    few_step_of,
    with_row_options,
)
from serve.cli.render import HASTY_S, farm_args
from serve.cli.results import ResultsWriter
from serve.cli.session import first_rows, source_of
from serve.cli.show import batches_table, held_text, notes_text, problems_table
from serve.local import EmbeddedFarm, FarmLock
from serve.ports import FarmPort, LocalPort, View
from serve.said import TermFields
from serve.settings import FarmArgs, Settings

_FINAL = ("completed", "failed", "cancelled")

BatchId = Annotated[str | None, typer.Argument(help="Batch id, or its beginning (default: the newest).")]


def up(
    config: Annotated[Path | None, typer.Option(help="A ray_config.yaml of your own.")] = None,
    cards: Cards = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the gateway (default: 8500).")] = None,
    dashboard: Annotated[
        int | None, typer.Option("--dashboard-port", help="Start Ray's dashboard here; `ray job submit` needs it.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the renderers' metrics (default: any free one).")
    ] = None,
    accept_license: AcceptLicense = None,
    few_step: FewStepFile = None,
    home: Home = None,
) -> None:
    """Run a farm on this machine until Ctrl-C: gateway, dispatcher and one renderer per card."""
    with telling_errors():
        settings = settings_for(home)
        accept_licenses(settings, accept_license)
        args, configured_port = _configured(settings, config, cards, few_step)
        lock = FarmLock(settings.home)
        if not lock.try_acquire():
            who = lock.holder() or {}
            fail(Exit.NO_FARM, f"a farm runs on {settings.home} already (process {who.get('pid', '?')}). Use that one.")
        chosen = port or configured_port
        url = f"http://127.0.0.1:{chosen}"
        farm = EmbeddedFarm(args, port=chosen, dashboard_port=dashboard, metrics_port=metrics_port)
        stop = threading.Event()
        _require_free(chosen)
        _obey_signals(stop)
        try:
            with console.status("starting the farm"):
                farm.start()
            # Again: Ray has put its own handler of SIGTERM in place, which ends the process with exit code 15.
            _obey_signals(stop)
            few_steps = {name: few.model_dump(mode="json") for name, few in args.few_step.items()}
            rules = args.rules().model_dump(mode="json")
            lock.note(url=url, default_model=args.default_model, few_step=few_steps, rules=rules)
            if dashboard is not None:
                address = f"http://127.0.0.1:{dashboard}"
                console.print(f"  jobs: RAY_AUTH_MODE=token ray job submit --address {address} --working-dir . -- …")
            console.print(f"[bold green]✓[/] the farm is up at [bold]{url}[/] · Ctrl-C ends it · logs in {farm.logs()}")
            while not (broke := farm.lost()) and not stop.wait(1.0):
                pass
            if not broke:
                console.print("closing: what is not finished stays queued")
        except Exception as error:
            fail(Exit.NO_FARM, f"the farm did not start: {type(error).__name__}: {error}. Try `clipmill doctor`.")
        finally:
            farm.close(HASTY_S if stop.is_set() else 0)
            lock.release()
        if broke:
            why = f"the farm broke: Ray's {broke} was killed (out of memory? `dmesg` says)"
            fail(Exit.NO_FARM, f"{why}. Start it again: what is not finished stays queued.")


def _require_free(port: int) -> None:
    """Exit 3 where somebody listens on the port already. Serve would share it, and requests would go to either."""
    with socket.socket() as probe:
        # A port just given up is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            fail(Exit.NO_FARM, f"port {port} cannot be had ({error.strerror}). Choose another with --port.")


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


@with_row_options
def submit(
    catalog: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet file, or a folder of images.")],
    model: Annotated[str | None, typer.Option(help="Model of rows that name none (default: the farm's).")] = None,
    rows: RowOptions = RowOptions(),  # noqa: B008 - frozen
    key: Annotated[
        str | None,
        typer.Option(help="The same key again hands in nothing (default: the submission id, within a Ray job)."),
    ] = None,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold", "--needs-approval", help="Nothing starts until `clipmill approve`.", rich_help_panel=TERMS
        ),
    ] = False,
    proof: Annotated[
        int, typer.Option(min=0, help="With --hold: the first rows start at once, as a proof.", rich_help_panel=TERMS)
    ] = 0,
    paused: Annotated[
        bool, typer.Option("--paused", help="Nothing starts until `clipmill resume`.", rich_help_panel=TERMS)
    ] = False,
    max_failures: MaxFailures = None,
    max_gpu_hours: MaxGpuHours = None,
    max_cost: MaxCost = None,
    comment: Annotated[str, typer.Option(help="For people.", rich_help_panel=TERMS)] = "",
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until every row has ended.")] = False,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Hand a catalog to a running farm and return; the farm renders it whether anybody waits or not."""
    with telling_errors():
        settings = settings_for(home)
        if model is not None:
            model = family_named(model).name
        # Another machine's farm does not tell which model it takes by default.
        known = model or (None if url or settings.url else farm_facts(settings).get("default_model"))
        manifest = first_rows(read_manifest(catalog, prompt=rows.prompt, model=known), rows.limit)
        if not manifest.rows:
            raise ManifestError(catalog, "it has no rows", "Add a line per image below the header.")
        require_farm(settings, url)
        port = connect(settings, url)
        overrides: View = rows.defaults().model_dump(mode="json", exclude_defaults=True)
        if model:
            overrides["model"] = model
        batch = port.submit(
            gather(manifest, port.put_still),
            overrides,
            name=catalog.name,
            source=source_of(catalog),
            key=key or ray_submission_id(),
            terms=TermFields(
                paused=paused,
                needs_approval=hold or proof > 0,
                proof=proof,
                max_failures=max_failures,
                max_gpu_hours=max_gpu_hours,
                max_cost=max_cost,
                comment=comment,
            ).model_dump(exclude_defaults=True),
        )
        if wait_for_end:
            batch = _wait(settings, url, port, batch["id"], quiet=as_json)
        tell(port, batch, as_json)
    raise typer.Exit(_exit_code(batch, ended=wait_for_end))


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
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show batches, or one batch with its rows that failed."""
    with telling_errors():
        settings = settings_for(home)
        port = connect(settings, url)
        if batch:
            tell(port, port.batch(port.find(batch)), as_json)
            return
        batches = port.batches()
        if as_json:
            print_json({"batches": batches})
        elif batches:
            console.print(batches_table(batches))
        else:
            console.print("no batches yet: hand one in with `clipmill render CATALOG --out DIR`")


def wait(
    batch: BatchId = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write clips and contact sheet here.")] = None,
    url: Url = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Wait until every row of a batch has ended."""
    with telling_errors():
        settings = settings_for(home)
        port = connect(settings, url)
        found = port.batch(port.find(batch) if batch else newest(port))
        if found["status"] not in _FINAL:
            require_farm(settings, url)
            found = _wait(settings, url, port, found["id"], quiet=as_json)
        if out is not None:
            if not isinstance(port, LocalPort):
                fail(Exit.USAGE, "--out needs the farm's own storage: run it on the farm's machine, without --url")
            writer = ResultsWriter(port.farm, out, {})
            writer.update(found["id"])
            writer.sheet(port.farm.batch(found["id"]), "")
        tell(port, found, as_json)
    raise typer.Exit(_exit_code(found, ended=True))


def newest(port: FarmPort) -> str:
    batches = port.batches()
    if not batches:
        fail(Exit.USAGE, "there are no batches")
    return str(batches[0]["id"])


def _wait(settings: Settings, url: str | None, port: FarmPort, batch_id: str, *, quiet: bool) -> View:
    said, held = -1, ""
    while True:
        batch = port.batch(batch_id)
        if batch["status"] in _FINAL:
            return batch
        if batch["status"] == "stopped":
            fail(Exit.SOME_FAILED, f"nobody renders this batch: run its `clipmill render {batch['source']}` again")
        counts = batch["counts"]
        ended = sum(counts[state] for state in _FINAL)
        if not quiet and ended != said:
            console.print(f"{ended} of {counts['total']} rows done, {counts['running']} running")
            said = ended
        if not quiet and held != (held := held_text(batch)) and held:
            console.print(held, soft_wrap=True)
        if not (url or settings.url) and not farm_facts(settings):
            require_farm(settings, url)
        time.sleep(0.5)


def tell(port: FarmPort, batch: View, as_json: bool) -> None:
    jobs = port.jobs(batch["id"])
    if as_json:
        print_json({"batch": batch, "jobs": jobs})
        return
    console.print(batches_table([batch]))
    if held := held_text(batch):
        console.print(f"  {held}", soft_wrap=True)
    for note in notes_text(jobs):
        console.print(f"  note: {note}", style="dim", markup=False, soft_wrap=True)
    if failed := [job for job in jobs if job["state"] == JobState.FAILED]:
        console.print(problems_table(failed))


def _exit_code(batch: View, *, ended: bool) -> Exit:
    if not ended:
        return Exit.DONE
    return Exit.DONE if batch["status"] == "completed" else Exit.SOME_FAILED
