"""What is wrong with manifests: against Kubernetes' schemas, each other, and the service."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate

from service.drain import _LAST_WORDS_S
from service.http.api_keys import read_api_keys
from service.observe.metrics import _SHARED_BYTES
from service.processes.supervisor import _ANSWER_S, _LAST_S
from service.setting_shares import WORKER_BYTES
from service.setting_sources import KNOWN, load_settings
from service.settings import Settings
from tests.end_to_end.manifests import (
    POD_IP,
    Pod,
    Resource,
    named,
    of_kind,
    size_bytes,
)
from tests.end_to_end.server import ROOT

VERSION = "1.37"
# Kinds of others, whose schemas no package for Python has: version, and fields of spec.
CUSTOM: dict[str, tuple[str, set[str]]] = {
    "HTTPRoute": ("gateway.networking.k8s.io/v1", {"parentRefs", "hostnames", "rules"}),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {
            "scaleTargetRef",
            "minReplicaCount",
            "maxReplicaCount",
            "pollingInterval",
            "advanced",
            "triggers",
        },
    ),
    "PodMonitor": ("monitoring.coreos.com/v1", {"jobLabel", "selector", "podMetricsEndpoints"}),
    "ServingRuntime": (
        "serving.kserve.io/v1alpha1",
        {"annotations", "supportedModelFormats", "protocolVersions", "containers", "volumes"},
    ),
    "InferenceService": ("serving.kserve.io/v1beta1", {"predictor"}),
}
MAX_CONFIG_BYTES = 2**20  # Kubernetes' limit on the data of a ConfigMap or Secret
PATHS = json.loads((ROOT / "openapi.json").read_text())["paths"]


def schema_fault(resource: Resource) -> str | None:
    """What Kubernetes' own schema says, or of what kind a resource of others is."""
    kind = resource["kind"]
    if kind in CUSTOM:
        version, fields = CUSTOM[kind]
        unknown = resource["spec"].keys() - fields
        return f"{kind}: {unknown}" if unknown or resource["apiVersion"] != version else None
    return _core_fault(json.dumps(resource))


@cache  # most resources are in every overlay, and each look at the schemas takes 20 ms
def _core_fault(resource: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(resource), VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(error.message)
    return None


def schemas(pod: Pod) -> Iterator[str]:
    for resource in pod.resources:
        fault = schema_fault(resource)
        if fault is not None:
            yield fault
        elif resource["kind"] != "Namespace" and resource["metadata"].get("namespace") != "unroll":
            yield f"{resource['kind']}: another namespace"


def volumes(pod: Pod) -> Iterator[str]:
    """Everything that is mounted is there."""
    account = pod.spec["serviceAccountName"]
    if named(pod.resources, "ServiceAccount", account) is None:
        yield f"no account {account}"
    held = {x["name"]: x for x in pod.spec["volumes"]}
    mounted = [x["name"] for x in pod.container["volumeMounts"]]
    if sorted(mounted) != sorted(held):
        yield f"mounts {mounted}, volumes {[*held]}"
    for volume in held.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and named(pod.resources, "PersistentVolumeClaim", claim) is None:
            yield f"no claim {claim}"
    for mount in pod.container["volumeMounts"]:
        try:
            pod.files(mount)
        except LookupError as error:
            yield str(error)
    for kind in ("ConfigMap", "Secret"):
        for resource in of_kind(pod.resources, kind):
            name = resource["metadata"]["name"]
            if not 0 < sum(map(len, pod.data(kind, name).values())) <= MAX_CONFIG_BYTES:
                yield f"{name}: empty or too large"


def references(pod: Pod) -> Iterator[str]:
    """What others name is there."""
    for route in of_kind(pod.resources, "HTTPRoute"):
        for backend in (x for rule in route["spec"]["rules"] for x in rule["backendRefs"]):
            service = named(pod.resources, "Service", backend["name"])
            if service is None or backend["port"] != service["spec"]["ports"][0]["port"]:
                yield f"no service {backend}"
    for scaled in of_kind(pod.resources, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]["name"]
        if named(pod.resources, "Deployment", target) is None:
            yield f"no deployment {target}"
    for monitor in of_kind(pod.resources, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield from authorization(pod, endpoint)


def authorization(pod: Pod, endpoint: Resource) -> Iterator[str]:
    """Prometheus has a key if one is asked for."""
    has_keys = "UNROLL_API_KEYS_FILE" in pod.environment()
    if has_keys != ("authorization" in endpoint):
        yield "Prometheus has a key where none is asked for, or none where one is"
    elif has_keys:
        key = endpoint["authorization"]["credentials"]
        if key["key"] not in pod.data("Secret", key["name"]):
            yield f"no key {key}"


def selectors(pod: Pod) -> Iterator[str]:
    """Whoever selects pods selects these."""
    labels = pod.template["metadata"]["labels"]
    (deployment,) = of_kind(pod.resources, "Deployment")
    found = [("Deployment", deployment["spec"]["selector"]["matchLabels"])]
    found += [("Service", x["spec"]["selector"]) for x in of_kind(pod.resources, "Service")]
    for kind, field in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        found += [(kind, x["spec"][field]["matchLabels"]) for x in of_kind(pod.resources, kind)]
    found += [
        ("topologySpreadConstraints", x["labelSelector"]["matchLabels"])
        for x in pod.spec["topologySpreadConstraints"]
    ]
    for kind, wanted in found:
        if not wanted or not wanted.items() <= labels.items():
            yield f"{kind}: {wanted} does not select {labels}"
    for monitor in of_kind(pod.resources, "PodMonitor"):
        if labels.get(monitor["spec"]["jobLabel"]) != "unroll":  # as docker/prometheus expects
            yield "PodMonitor: another job"
    for policy in of_kind(pod.resources, "NetworkPolicy"):
        for source in (x for rule in policy["spec"]["ingress"] for x in rule["from"]):
            selected = source.get("podSelector") or source.get("namespaceSelector")
            if not selected or len(selected["matchLabels"]) != 1:
                yield f"NetworkPolicy: {source} lets in others than it says"


def ports(pod: Pod) -> Iterator[str]:
    """Every port is the container's, by name or number."""
    (port,) = pod.container["ports"]
    listens = int(pod.environment().get("UNROLL_PORT", port_of_image()))
    if port["containerPort"] != listens:
        yield f"the service listens on {listens}"
    asked: list[Any] = [x["httpGet"]["port"] for x in probes_of(pod).values()]
    for service in of_kind(pod.resources, "Service"):
        asked += [x["targetPort"] for x in service["spec"]["ports"]]
    for monitor in of_kind(pod.resources, "PodMonitor"):
        asked += [x["port"] for x in monitor["spec"]["podMetricsEndpoints"]]
    for policy in of_kind(pod.resources, "NetworkPolicy"):
        if policy["spec"].get("egress"):
            yield "the service calls nobody"
        asked += [x["port"] for rule in policy["spec"]["ingress"] for x in rule["ports"]]
    for wrong in [x for x in asked if x not in {port["name"], port["containerPort"]}]:
        yield f"port {wrong}"


def port_of_image() -> int:
    (line,) = [x for x in (ROOT / "Dockerfile").read_text().splitlines() if x.startswith("EXPOSE ")]
    return int(line.split()[1])


def settings_of(pod: Pod, folder: Path) -> Settings:
    """The settings that the service reads in the pod, whose files are laid out in `folder`."""
    folders = [*pod.lay_out(folder)]
    environment = {"UNROLL_HOST": "0.0.0.0", **pod.environment()}  # noqa: S104 as in the image
    for name, value in environment.items():
        # Only what the pod mounts is there.
        if any((folder / value.lstrip("/")).is_relative_to(x) for x in folders if value[:1] == "/"):
            environment[name] = str(folder / value.lstrip("/"))
    return load_settings([], environment)


def variables(pod: Pod) -> Iterator[str]:
    environment = pod.environment()
    for name, value in environment.items():
        if name.startswith("UNROLL_") and name not in KNOWN:
            yield f"{name} is no setting"
        if "$(" in value:
            yield f"{name} names a variable that does not come before it"
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = settings_of(pod, Path(folder))
            if settings.api_keys_file is not None:
                read_api_keys(settings.api_keys_file)
        except Exception as error:  # noqa: BLE001 it is reported
            yield f"{type(error).__name__}: {error}"
            return
        if settings.models_dir != Path("models") and not any(
            x["mountPath"].startswith(str(settings.models_dir))
            or str(settings.models_dir).endswith(x["mountPath"])
            for x in pod.container["volumeMounts"]
        ):
            yield f"nothing is mounted at {settings.models_dir}"


def plain_settings(pod: Pod) -> Settings:
    """The settings without those that files hold."""
    environment = pod.environment()
    return load_settings([], {k: v for k, v in environment.items() if not k.endswith("_FILE")})


def hosts(pod: Pod) -> Iterator[str]:
    """The service answers to the names under which it is asked, and not to all."""
    answered = plain_settings(pod).hosts
    asked = ["unroll", "unroll.unroll", "unroll.unroll.svc", "localhost", POD_IP]
    asked += [
        x for route in of_kind(pod.resources, "HTTPRoute") for x in route["spec"]["hostnames"]
    ]
    if answered is None:
        yield "every name is answered"
    else:
        yield from (f"{name} is not answered" for name in asked if name not in answered)


def shutdown(pod: Pod) -> Iterator[str]:
    """The grace period holds what the drain may take, and every request may end."""
    settings = plain_settings(pod)
    wait_s = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = settings.lame_duck_s + settings.grace_s + max(2 * _LAST_WORDS_S, _LAST_S)
    if pod.spec["terminationGracePeriodSeconds"] < wait_s + drain_s:
        yield f"it ends within {wait_s + drain_s} s"
    if settings.grace_s < settings.request_timeout_s:
        yield "requests are cut off"


def probes_of(pod: Pod) -> dict[str, Resource]:
    kinds = ("startupProbe", "readinessProbe", "livenessProbe")
    return {kind: pod.container[kind] for kind in kinds}


def probes(pod: Pod) -> Iterator[str]:
    settings = plain_settings(pod)
    expected = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    patience_s = {}
    for kind, probe in probes_of(pod).items():
        path = probe["httpGet"]["path"]
        patience_s[kind] = probe["periodSeconds"] * probe["failureThreshold"]
        if path != expected[kind] or path not in PATHS:
            yield f"{kind}: {path}"
        if "host" in probe["httpGet"]:
            yield f"{kind}: a host, which the Pod Security Standards forbid"
    # The server heals itself first: a hanging engine, a process that does not answer.
    if patience_s["livenessProbe"] < settings.watchdog_s + _ANSWER_S:
        yield "livenessProbe: a restart would end what the server can save"
    # As long as a start with a bundle that hangs takes to be given up.
    if patience_s["startupProbe"] < 3 * settings.open_timeout_s + 20:
        yield "startupProbe: a slow start would never end"
    for monitor in of_kind(pod.resources, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["path"] not in PATHS:
                yield f"PodMonitor: {endpoint['path']}"


def security(pod: Pod) -> Iterator[str]:
    """The Pod Security Standard `restricted`, and what goes beyond it."""
    (namespace,) = of_kind(pod.resources, "Namespace")
    if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace takes any pod"
    context = pod.spec["securityContext"]
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp"
    user = f"USER {context.get('runAsUser')}:{context.get('runAsGroup')}\n"
    if not context.get("runAsNonRoot") or user not in (ROOT / "Dockerfile").read_text():
        yield "another user than the image's"
    if pod.spec["automountServiceAccountToken"] or pod.spec["enableServiceLinks"]:
        yield "a token, or links to services"
    yield from (x for x in ("hostNetwork", "hostPID", "hostIPC") if x in pod.spec)
    yield from container_security(pod.container)
    yield from volume_security(pod)


def volume_security(pod: Pod) -> Iterator[str]:
    for volume in pod.spec["volumes"]:
        (kind,) = volume.keys() - {"name"}
        if kind not in {"emptyDir", "secret", "projected", "persistentVolumeClaim", "image"}:
            yield f"a volume of kind {kind}"
        if kind == "secret" and volume["secret"]["defaultMode"] != 0o440:
            yield f"{volume['name']}: others can read it"
    for mount in pod.container["volumeMounts"]:
        if mount["mountPath"] != "/tmp" and not mount.get("readOnly"):  # noqa: S108
            yield f"{mount['name']}: writable"


def container_security(container: Resource) -> Iterator[str]:
    context = container["securityContext"]
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities"
    if not context.get("readOnlyRootFilesystem"):
        yield "a writable root"


def shares(pod: Pod) -> Iterator[str]:
    """Processors and memory, against what processes and threads need."""
    settings = plain_settings(pod)
    resources = pod.container["resources"]
    if "cpu" in resources["limits"]:
        yield "a limit on processors"
    if resources["limits"]["memory"] != resources["requests"]["memory"]:
        yield "memory that may not be there"
    memory = size_bytes(resources["limits"]["memory"])
    workers = settings.workers or 0
    if not workers or settings.engine_threads != workers:
        yield "processes or threads do not follow from the request"
    (room,) = [x["emptyDir"] for x in pod.spec["volumes"] if x["name"] == "tmp"]
    needed = size_bytes(room["sizeLimit"])
    if workers * WORKER_BYTES + needed > memory:
        yield "too little memory"
    if needed < 2 * workers * _SHARED_BYTES:
        yield "too little room in /tmp"


def scaling(pod: Pod) -> Iterator[str]:
    (deployment,) = of_kind(pod.resources, "Deployment")
    scaled = of_kind(pod.resources, "ScaledObject")
    if ("replicas" in deployment["spec"]) == bool(scaled):
        yield "the number of replicas has two masters, or none"
    update = deployment["spec"]["strategy"]["rollingUpdate"]
    if update["maxUnavailable"] != 0 or update["maxSurge"] < 1:
        yield "an update takes pods away before new ones serve"
    for budget in of_kind(pod.resources, "PodDisruptionBudget"):
        if budget["spec"]["maxUnavailable"] < 1:
            yield "no node could be drained"
    for each in scaled:
        trigger = each["spec"]["triggers"][0]["metadata"]
        if 'unroll_queue_tokens{job="unroll",namespace="unroll"}' not in trigger["query"]:
            yield f"query {trigger['query']}"
        if not all(isinstance(x, str) for x in trigger.values()):
            yield "KEDA takes texts only"


Check: TypeAlias = Callable[[Pod], Iterator[str]]
# In this order: each trusts what those before it have checked.
CHECKS: tuple[Check, ...] = (
    schemas,
    volumes,
    variables,
    references,
    selectors,
    ports,
    hosts,
    shutdown,
    probes,
    security,
    shares,
    scaling,
)


def faults_of(resources: Sequence[Resource]) -> list[str]:
    """What the first check finds that finds something."""
    pod = Pod(resources)
    return next((found for check in CHECKS if (found := [*check(pod)])), [])
