"""Whether a Serve config and the Kubernetes manifests around it agree. Pure: documents in, findings out.

Serve ignores keys it does not know without a word, and a renderer whose label no worker group wears waits for ever:
both are found here, before they cost a night.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.families import FAMILIES
from pipeline.memory.host import host_bytes, pod_bytes
from pipeline.units import GIB, format_bytes
from serve.settings import CardClassArgs, FarmArgs

#: The label of Ray nodes (and of Kubernetes nodes) that says which cards they have.
CARD_CLASS_LABEL = "clipmill.io/card-class"
#: The key under which a ConfigMap holds the Serve config.
CONFIG_KEY = "ray_config.yaml"
#: What `serve.app:build` allows beyond `drain_s` before Serve ends the dispatcher.
_DRAIN_MARGIN_S = 5
#: Kubernetes' default.
_TERMINATION_GRACE_S = 30
_DATABASE_ENV = "CLIPMILL_DATABASE_URL"

Document = Mapping[str, Any]


class DeployFinding(BaseModel):
    """One disagreement: where it is, what is wrong, what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}. {self.remedy}"


def serve_configs(documents: Sequence[Document]) -> dict[str, Document]:
    """The Serve configs that lie in ConfigMaps, by the ConfigMap's name. Raises `yaml.YAMLError`."""
    found: dict[str, Document] = {}
    for document in documents:
        text = (document.get("data") or {}).get(CONFIG_KEY) if document.get("kind") == "ConfigMap" else None
        if text is not None:
            config = yaml.safe_load(text)
            found[_name(document)] = config if isinstance(config, dict) else {}
    return found


def check(config: Document, documents: Sequence[Document]) -> list[DeployFinding]:
    """Everything that is wrong with `config` and with the `RayCluster` objects among `documents`."""
    findings = check_config(config)
    clusters = [d for d in documents if d.get("kind") == "RayCluster"]
    if len(clusters) != 1:
        names = ", ".join(_name(c) for c in clusters) or "none"
        remedy = "Give manifests with the one cluster that this config is for."
        findings.append(
            DeployFinding(where="manifests", message=f"one RayCluster is expected, found: {names}", remedy=remedy)
        )
    args = farm_args(config)
    if args is not None:
        for cluster in clusters:
            findings += check_cluster(args, cluster)
    for service in (d for d in documents if d.get("kind") == "Service"):
        for cluster in clusters:
            findings += _check_service(config, service, cluster)
    return findings


def farm_args(config: Document) -> FarmArgs | None:
    """The farm's arguments in a Serve config; None where they are missing or wrong."""
    for application in _ours(config):
        try:
            return FarmArgs.model_validate(application.get("args") or {})
        except ValidationError:
            return None
    return None


# -- the Serve config ---------------------------------------------------------------------------------------------


def check_config(config: Document) -> list[DeployFinding]:
    """Keys that Serve would ignore, values it would refuse, and arguments that are none of ours."""
    from ray.serve.schema import ServeDeploySchema

    findings = list(_unknown_keys(config, ServeDeploySchema, ""))
    try:
        ServeDeploySchema.model_validate(dict(config))
    except ValidationError as error:
        findings += _refused(error, "", "Serve")
    except (AttributeError, TypeError) as error:
        # Serve's own validators trip over a text where a table belongs.
        finding = DeployFinding(
            where="applications", message=f"Serve cannot read it: {error}", remedy="Use tables there."
        )
        findings.append(finding)
    applications = list(_ours(config))
    if not applications:
        remedy = "Add an application with import_path: serve.app:build."
        return [*findings, DeployFinding(where="applications", message="none is clipmill's", remedy=remedy)]
    for index, application in enumerate(config["applications"]):
        if application in applications:
            findings += _check_application(application, f"applications[{index}]")
    return findings


def _check_application(application: Document, where: str) -> Iterator[DeployFinding]:
    try:
        args = FarmArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        yield from _refused(error, f"{where}.args.", "clipmill")
        return
    if args.database_url:
        yield DeployFinding(
            where=f"{where}.args.database_url",
            message="the store's address and password would be handed to every renderer",
            remedy=f"Leave it empty, and give the head {_DATABASE_ENV} from a Secret.",
        )
    policy = application.get("autoscaling_policy")
    named = policy.get("policy_function") if isinstance(policy, Mapping) else None
    if args.autoscales and named != "serve.autoscaling:policy":
        yield DeployFinding(
            where=f"{where}.autoscaling_policy",
            message="classes have max_replicas, but without our policy Serve sees no demand and starts no renderer",
            remedy="Set policy_function: serve.autoscaling:policy there.",
        )
    known = {"dispatcher", "gateway", *(f"renderer-{name}" for name in args.card_classes)}
    overrides = application.get("deployments")
    for index, override in enumerate(overrides if isinstance(overrides, list) else []):
        if not isinstance(override, Mapping):
            continue  # Serve's own schema has refused it above.
        at = f"{where}.deployments[{index}]"
        name = override.get("name")
        if name not in known:
            yield DeployFinding(
                where=f"{at}.name", message=f"there is no deployment {name!r}", remedy=_nearest(str(name), known)
            )
        least = 1.5 * args.longest_clip_s if str(name).startswith("renderer-") else args.drain_s + _DRAIN_MARGIN_S
        given = override.get("graceful_shutdown_timeout_s")
        if name != "gateway" and isinstance(given, int | float) and given < least:
            yield DeployFinding(
                where=f"{at}.graceful_shutdown_timeout_s",
                message=f"{given:g} s would cut clips short: at least {least:g} s are needed",
                remedy="Take the line out (the application sets it), or raise it.",
            )


def _unknown_keys(table: Any, model: type[BaseModel], where: str) -> Iterator[DeployFinding]:
    if not isinstance(table, Mapping):
        return
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in table.items():
        at = f"{where}{key}"
        if key not in fields:
            remedy = _nearest(str(key), fields)
            yield DeployFinding(where=at, message=f"Serve knows no key {key!r} here and would ignore it", remedy=remedy)
            continue
        nested = _opaque_model(str(key)) or _model_in(fields[key])
        if nested is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unknown_keys(item, nested, f"{at}[{index}].")
        else:
            yield from _unknown_keys(value, nested, f"{at}.")


def _opaque_model(key: str) -> type[BaseModel] | None:
    """What Serve makes of a table that its schema calls a plain dict."""
    from ray.serve.config import AutoscalingPolicy

    policy: type[BaseModel] = AutoscalingPolicy
    return {"autoscaling_policy": policy, "policy": policy}.get(key)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
    return None


def _refused(error: ValidationError, prefix: str, by: str) -> Iterator[DeployFinding]:
    for fault in error.errors():
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        message = f"{by} refuses it: {fault['msg']}"
        yield DeployFinding(
            where=f"{prefix}{path}".rstrip(".") or "config", message=message, remedy="Correct the value."
        )


def _ours(config: Document) -> Iterator[Document]:
    for application in config.get("applications") or []:
        if isinstance(application, Mapping) and application.get("import_path") == "serve.app:build":
            yield application


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Take it out; there are {', '.join(sorted(known))}."


# -- the cluster --------------------------------------------------------------------------------------------------


def check_cluster(args: FarmArgs, cluster: Document) -> list[DeployFinding]:
    """Whether every card class has its worker group, every group its class, and every pod time to end."""
    spec = cluster.get("spec") or {}
    at = f"RayCluster {_name(cluster)}"
    groups = list(spec.get("workerGroupSpecs") or [])
    findings: list[DeployFinding] = []
    for group in groups:
        findings += _check_group(args, group, at)
    for name, table in args.card_classes.items():
        findings += _check_class(name, table, groups, at, emulate=args.emulate)
    if args.autoscales and spec.get("enableInTreeAutoscaling") is not True:
        remedy = "Set enableInTreeAutoscaling: true, with autoscalerOptions.version: v2."
        message = "card classes have max_replicas, but no autoscaler brings pods for them"
        findings.append(DeployFinding(where=f"{at}.enableInTreeAutoscaling", message=message, remedy=remedy))
    elif args.autoscales and (spec.get("autoscalerOptions") or {}).get("version") != "v2":
        message = "autoscaler v1 knows no label selectors: renderers would wait for ever"
        findings.append(DeployFinding(where=f"{at}.autoscalerOptions", message=message, remedy="Set version: v2."))
    findings += _check_head(args, spec.get("headGroupSpec") or {}, at)
    if args.control_label_selector:
        for group in groups:
            if selects(args.control_label_selector, _labels(group)):
                findings.append(
                    DeployFinding(
                        where=f"{at}, group {group.get('groupName')}, labels",
                        message="control_label_selector selects these pods too, and they have no store credentials",
                        remedy="Select by a label that the head alone has.",
                    )
                )
    return findings


def _check_class(
    name: str, table: CardClassArgs, groups: list[Document], at: str, *, emulate: bool
) -> Iterator[DeployFinding]:
    own = [group for group in groups if _labels(group).get(CARD_CLASS_LABEL) == name]
    where = f"card_classes.{name}"
    if len(own) != 1:
        found = ", ".join(str(group.get("groupName")) for group in own) or "none"
        yield DeployFinding(
            where=where,
            message=f"one worker group labelled {CARD_CLASS_LABEL}: {name} is expected in {at}, found: {found}",
            remedy="Keep one group per class, with the label in the group's own `labels`.",
        )
        return
    group = own[0]
    if not table.label_selector:
        yield DeployFinding(
            where=f"{where}.label_selector",
            message="it is empty, so its renderers may land on cards of any class",
            remedy=f"Set {CARD_CLASS_LABEL}: {name}.",
        )
        return
    matching = [str(g.get("groupName")) for g in groups if selects(table.label_selector, _labels(g))]
    if matching != [str(group.get("groupName"))]:
        yield DeployFinding(
            where=f"{where}.label_selector",
            message=f"it selects {', '.join(matching) or 'no group'} instead of {group.get('groupName')} alone",
            remedy=f"Set {CARD_CLASS_LABEL}: {name}, and give the group those labels.",
        )
    yield from _check_size(name, table, group, at, emulate=emulate)


def _check_size(name: str, table: CardClassArgs, group: Document, at: str, *, emulate: bool) -> Iterator[DeployFinding]:
    where = f"{at}, group {group.get('groupName')}"
    per_pod = _renderers_per_pod(table, group)
    if per_pod is None:
        return
    if per_pod < 1:
        asked = f"{table.num_gpus:g} GPU and {table.num_cpus:g} CPU"
        yield DeployFinding(
            where=where,
            message=f"a pod is too small for a renderer of {name}, which asks for {asked}",
            remedy="Raise the pod's limits for nvidia.com/gpu and cpu.",
        )
        return
    yield from _check_memory(group, per_pod, where, emulate=emulate)
    most = table.replicas if table.max_replicas is None else table.max_replicas
    pods = math.ceil(most / per_pod)
    if group.get("maxReplicas") != pods:
        yield DeployFinding(
            where=f"{where}, maxReplicas",
            message=f"{group.get('maxReplicas')} pods of {per_pod} renderers do not agree with {most} of card_classes"
            f".{name}",
            remedy=f"Set maxReplicas: {pods}, or change max_replicas of the class.",
        )
    kept = math.ceil(table.replicas / per_pod)
    if group.get("minReplicas", 0) > kept:
        yield DeployFinding(
            where=f"{where}, minReplicas",
            message=f"{group.get('minReplicas')} pods stay up where the class keeps only {table.replicas} renderers",
            remedy=f"Set minReplicas: {kept}, or raise replicas of the class.",
        )


def _check_memory(group: Document, renderers: int, where: str, *, emulate: bool) -> Iterator[DeployFinding]:
    """Whether a pod holds what its renderers keep on the host, whichever family they load."""
    containers = _pod(group).get("containers") or [{}]
    given = ((containers[0].get("resources") or {}).get("limits") or {}).get("memory")
    # Emulated cards are for small networks, whose processes hold no CUDA and hardly any weights.
    if given is None or emulate:
        return
    largest = max(FAMILIES.values(), key=host_bytes)
    needed = pod_bytes([largest], renderers)
    if _memory_bytes(given) < needed:
        yield DeployFinding(
            where=f"{where}, limits.memory",
            message=f"{given} are less than the {format_bytes(needed)} that {renderers} renderer(s) of {largest.name} "
            "take: Ray would end them while weights are off the card",
            remedy=f"Raise requests and limits to {math.ceil(needed / GIB)}Gi or more.",
        )


def _check_group(args: FarmArgs, group: Document, at: str) -> Iterator[DeployFinding]:
    where = f"{at}, group {group.get('groupName')}"
    name = _labels(group).get(CARD_CLASS_LABEL)
    if name is None:
        near = difflib.get_close_matches(CARD_CLASS_LABEL, list(_labels(group)), n=1)
        yield DeployFinding(
            where=f"{where}, labels",
            message=f"{CARD_CLASS_LABEL} is missing" + (f" ({near[0]} is something else)" if near else ""),
            remedy="Put it into the group's own `labels`, not into rayStartParams or the pod's metadata.",
        )
    elif name not in args.card_classes:
        yield DeployFinding(
            where=f"{where}, labels",
            message=f"no renderer is deployed for {CARD_CLASS_LABEL}: {name}, so these pods would never be used",
            remedy=f"Add card_classes.{name} to {CONFIG_KEY}, or take the group out.",
        )
    yield from _check_grace(args, group, where)
    for container in _pod(group).get("containers") or []:
        if any(env.get("name") == _DATABASE_ENV for env in container.get("env") or []) or container.get("envFrom"):
            yield DeployFinding(
                where=f"{where}, container {container.get('name')}",
                message="pods with a card hold no store credentials, and this one gets them (or a whole Secret)",
                remedy=f"Name the variables one by one, without {_DATABASE_ENV}.",
            )


def _check_head(args: FarmArgs, head: Document, at: str) -> Iterator[DeployFinding]:
    yield from _check_grace(args, head, f"{at}, head")
    selector = args.control_label_selector
    if not selector or not selects(selector, _labels(head)):
        yield DeployFinding(
            where="control_label_selector",
            message=f"it does not select the head (labels {dict(_labels(head))}), so dispatcher and gateway may run "
            "where the store's credentials are not",
            remedy="Give headGroupSpec.labels and control_label_selector the same label.",
        )


def _check_grace(args: FarmArgs, group: Document, where: str) -> Iterator[DeployFinding]:
    given = _pod(group).get("terminationGracePeriodSeconds", _TERMINATION_GRACE_S)
    least = args.drain_s + _DRAIN_MARGIN_S
    if given < least:
        yield DeployFinding(
            where=f"{where}, terminationGracePeriodSeconds",
            message=f"{given:g} s are shorter than the {least:g} s that draining takes",
            remedy=f"Set it to {math.ceil(least)} or more, or lower drain_s.",
        )


def _check_service(config: Document, service: Document, cluster: Document) -> Iterator[DeployFinding]:
    selector = (service.get("spec") or {}).get("selector") or {}
    if selector.get("ray.io/cluster") != _name(cluster):
        return
    http = config.get("http_options") or {}
    port = http.get("port", 8000)
    if http.get("host") in ("127.0.0.1", "localhost"):
        yield DeployFinding(
            where="http_options.host",
            message=f"Service {_name(service)} cannot reach a proxy that listens on the pod's own loopback",
            remedy="Set host: 0.0.0.0; the NetworkPolicy says who gets in.",
        )
    head = (cluster.get("spec") or {}).get("headGroupSpec") or {}
    named = {
        p.get("name"): p.get("containerPort") for c in _pod(head).get("containers") or [] for p in c.get("ports") or []
    }
    for entry in service["spec"].get("ports") or []:
        target = entry.get("targetPort", entry.get("port"))
        if named.get(target, target) != port:
            yield DeployFinding(
                where=f"Service {_name(service)}, targetPort {target}",
                message=f"Serve's proxy listens on {port}",
                remedy="Let the Service, the head's container port and http_options.port name the same port.",
            )


_LIST = re.compile(r"(!?)in\(([^()]*)\)")


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether Ray's label selector (`c24`, `!c24`, `in(c24,c48)`, `!in(c24)`) selects a node with these labels."""
    for key, wanted in selector.items():
        if listed := _LIST.fullmatch(wanted.strip()):
            values = {value.strip() for value in listed[2].split(",")}
            negated = bool(listed[1])
        else:
            negated = wanted.startswith("!")
            values = {wanted.removeprefix("!")}
        if (labels.get(key) in values) == negated:
            return False
    return True


def _renderers_per_pod(table: CardClassArgs, group: Document) -> int | None:
    """Renderers of the class that Ray puts into one pod of the group; None where nothing limits them."""
    containers = _pod(group).get("containers") or [{}]
    limits = (containers[0].get("resources") or {}).get("limits") or {}
    cpus = (group.get("rayStartParams") or {}).get("num-cpus", limits.get("cpu"))
    rooms = []
    if table.num_gpus:
        rooms.append(int(_quantity(limits.get("nvidia.com/gpu", 0)) / table.num_gpus))
    if table.num_cpus and cpus is not None:
        # KubeRay rounds a fraction of a CPU up to a whole one.
        rooms.append(int(math.ceil(_quantity(cpus)) / table.num_cpus))
    return min(rooms) if rooms else None


def _quantity(value: object) -> float:
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _memory_bytes(value: object) -> float:
    """Bytes of a quantity such as `24Gi`, `500M` or `1000`. Raises `ValueError` for what is none."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)\s*([kKMGTP]?)(i?)", str(value))
    if found is None:
        raise ValueError(f"{value!r} is no quantity of memory")
    number, prefix, binary = found.groups()
    return float(number) * (1024 if binary else 1000) ** " KMGTP".index(prefix.upper() or " ")


def _name(document: Document) -> str:
    return str((document.get("metadata") or {}).get("name", "?"))


def _labels(group: Document) -> Mapping[str, str]:
    return group.get("labels") or {}


def _pod(group: Document) -> Mapping[str, Any]:
    return (group.get("template") or {}).get("spec") or {}
