"""`clipmill manifests check`: do the Serve config and the Kubernetes manifests agree?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.markup import escape

from serve.cli.common import Exit, Json, console, fail, print_json

if TYPE_CHECKING:
    from serve.deploy_check import DeployFinding, Document

app = typer.Typer(help="Kubernetes manifests.", no_args_is_help=True)

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


@app.callback()
def _group() -> None:
    # A callback keeps `check` a subcommand while it is the only one.
    pass


@app.command("check")
def check_manifests(
    manifests: Annotated[
        Path, typer.Option("--manifests", help="A kustomization, a folder of several, or a file of plain YAML.")
    ] = Path("manifests"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Check this Serve config instead of the manifests' ConfigMap.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Refuse keys Serve would ignore, and card classes and worker groups that do not agree."""
    given = None if config is None else _load_config(config)
    results: dict[str, list[DeployFinding]] = {}
    for source in _sources(manifests):
        documents = _documents(source)
        results[str(source)] = _check_one(source, documents, given)
    failed = any(results.values())
    if as_json:
        shown = {name: [finding.model_dump() for finding in findings] for name, findings in results.items()}
        print_json({"ok": not failed, "checked": shown})
    else:
        _print(results)
    raise typer.Exit(Exit.SOME_FAILED if failed else Exit.DONE)


def _check_one(source: Path, documents: list[Document], given: Document | None) -> list[DeployFinding]:
    # Here, so that no other command loads it.
    from serve.deploy_check import check, serve_configs

    if given is not None:
        return check(given, documents)
    try:
        configs = serve_configs(documents)
    except yaml.YAMLError as error:
        fail(Exit.USAGE, f"{source}: the Serve config in its ConfigMap is no YAML: {error}")
    if len(configs) != 1:
        found = ", ".join(configs) or "none"
        fail(
            Exit.USAGE, f"{source} should have one ConfigMap with a Serve config, found: {found}. Name one by --config."
        )
    return check(next(iter(configs.values())), documents)


def _sources(manifests: Path) -> list[Path]:
    """The kustomizations below a folder (bases and overlays, not components), or the one file."""
    if manifests.is_file() or _is_kustomization(manifests):
        return [manifests]
    if not manifests.is_dir():
        fail(Exit.USAGE, f"{manifests} is not there. Name a kustomization or a YAML file by --manifests.")
    found = [folder for folder in sorted(manifests.rglob("*")) if folder.is_dir() and _is_kustomization(folder)]
    return found or [manifests]


def _is_kustomization(folder: Path) -> bool:
    kinds = [_yaml(folder / name)[0].get("kind") for name in _KUSTOMIZATIONS if (folder / name).is_file()]
    return any(kind != "Component" for kind in kinds)


def _documents(source: Path) -> list[Document]:
    if source.is_file():
        return _yaml(source)
    if not _is_kustomization(source):
        files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
        if not files:
            fail(Exit.USAGE, f"{source} has neither a kustomization nor YAML files.")
        return [document for file in files for document in _yaml(file)]
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        fail(
            Exit.USAGE,
            f"{source} is a kustomization, and there is no kubectl here to render it. Install kubectl, or give what "
            f"`kubectl kustomize {source}` prints elsewhere as a file by --manifests.",
        )
    rendered = subprocess.run([kubectl, "kustomize", str(source)], capture_output=True, text=True, check=False)
    if rendered.returncode:
        fail(Exit.USAGE, f"`kubectl kustomize {source}` failed: {rendered.stderr.strip()}")
    return _parse(rendered.stdout, source)


def _load_config(path: Path) -> Document:
    documents = _yaml(path)
    if len(documents) != 1:
        fail(Exit.USAGE, f"{path} should hold one Serve config, it holds {len(documents)} YAML documents.")
    return documents[0]


def _yaml(path: Path) -> list[Document]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(Exit.USAGE, f"{path} cannot be read: {error}")
    return _parse(text, path)


def _parse(text: str, source: Path) -> list[Document]:
    try:
        documents: list[Any] = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        fail(Exit.USAGE, f"{source} is no YAML: {error}")
    if not documents or not all(isinstance(d, dict) for d in documents):
        fail(Exit.USAGE, f"{source} holds no YAML tables.")
    return documents


def _print(results: dict[str, list[DeployFinding]]) -> None:
    for source, findings in results.items():
        if not findings:
            console.print(f"[green]✓[/] {escape(source)}", markup=True)
            continue
        console.print(f"[bold red]✗[/] [bold]{escape(source)}[/]", markup=True)
        for finding in findings:
            console.print(f"  [bold]{escape(finding.where)}[/]", soft_wrap=True, markup=True)
            console.print(f"    {finding.message}", soft_wrap=True)
            console.print(f"    [dim]{escape(finding.remedy)}[/]", soft_wrap=True, markup=True)
