"""The checks of the Kubernetes manifests find what is wrong: each is tried on such faults."""

import copy
import shutil
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from tests.end_to_end import manifest_faults as faults
from tests.end_to_end.manifest_faults import Check
from tests.end_to_end.manifests import Pod, Resource, copy_manifests, of_kind, render

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (make kubectl fetches it)"
)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> list[Resource]:
    manifests = copy_manifests(tmp_path_factory.mktemp("manifests") / "kubernetes")
    return render(manifests / "overlays/production")


def remove(holder: Any, key: Any) -> None:
    del holder[key]


def put(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def less_memory(pod: Pod) -> None:
    for amount in pod.container["resources"].values():
        amount["memory"] = "1Gi"


def variable(pod: Pod, name: str) -> Resource:
    (found,) = [x for x in pod.container["env"] if x["name"] == name]
    return found  # type: ignore[no-any-return]


def spec(pod: Pod, kind: str) -> Resource:
    return of_kind(pod.resources, kind)[0]["spec"]  # type: ignore[no-any-return]


Mutation: TypeAlias = Callable[[Pod], Any]
MUTATIONS: dict[Check, dict[str, Mutation]] = {
    faults.schemas: {
        "an unknown field": lambda p: put(p.container, "replica", 3),
        "a type": lambda p: put(p.container["ports"][0], "containerPort", "8000x"),
        "a field of another's kind": lambda p: put(spec(p, "HTTPRoute"), "host", "x"),
        "another namespace": lambda p: put(
            of_kind(p.resources, "Service")[0]["metadata"], "namespace", "x"
        ),
    },
    faults.volumes: {
        "a secret's name": lambda p: put(p.spec["volumes"][0]["secret"], "secretName", "x"),
        "a claim's name": lambda p: put(
            p.spec["volumes"][2]["persistentVolumeClaim"], "claimName", "x"
        ),
    },
    faults.variables: {
        "a file's name": lambda p: put(
            variable(p, "UNROLL_STATE_KEY_FILE"), "value", "/run/secrets/unroll-state-key/key"
        ),
        "a setting's name": lambda p: put(variable(p, "UNROLL_GRACE_S"), "name", "UNROLL_GRACE"),
        "a setting's value": lambda p: put(variable(p, "UNROLL_GRACE_S"), "value", "2m"),
        "the order of variables": lambda p: p.container["env"].reverse(),
    },
    faults.references: {
        "the backend's port": lambda p: put(
            spec(p, "HTTPRoute")["rules"][0]["backendRefs"][0], "port", 8000
        ),
        "the target of KEDA": lambda p: put(spec(p, "ScaledObject")["scaleTargetRef"], "name", "x"),
        "no key for Prometheus": lambda p: remove(
            spec(p, "PodMonitor")["podMetricsEndpoints"][0], "authorization"
        ),
    },
    faults.selectors: {
        "selector of the service": lambda p: put(spec(p, "Service")["selector"], "app", "x"),
        "selector of the budget": lambda p: put(
            spec(p, "PodDisruptionBudget")["selector"], "matchLabels", {"app": "x"}
        ),
        "selector of a policy": lambda p: put(
            spec(p, "NetworkPolicy")["podSelector"], "matchLabels", {"app": "x"}
        ),
        "selector of a spread": lambda p: put(
            p.spec["topologySpreadConstraints"][0]["labelSelector"], "matchLabels", {"app": "x"}
        ),
        "another job": lambda p: put(spec(p, "PodMonitor"), "jobLabel", "app"),
        "a policy for everybody": lambda p: put(
            spec(p, "NetworkPolicy")["ingress"][0], "from", [{"podSelector": {}}]
        ),
    },
    faults.ports: {
        "the port of the service": lambda p: put(
            spec(p, "Service")["ports"][0], "targetPort", "web"
        ),
        "the port of a policy": lambda p: put(
            spec(p, "NetworkPolicy")["ingress"][0]["ports"][0], "port", 80
        ),
        "the container's port": lambda p: put(p.container["ports"][0], "containerPort", 8080),
    },
    faults.hosts: {
        "hosts": lambda p: put(variable(p, "UNROLL_ALLOWED_HOSTS"), "value", "unroll"),
        "all hosts": lambda p: put(variable(p, "UNROLL_ALLOWED_HOSTS"), "value", "*"),
        "the public host": lambda p: put(variable(p, "PUBLIC_HOST"), "value", "other.example"),
    },
    faults.shutdown: {
        "the grace period": lambda p: put(p.spec, "terminationGracePeriodSeconds", 130),
        "no grace for requests": lambda p: put(variable(p, "UNROLL_GRACE_S"), "value", "30"),
    },
    faults.probes: {
        "a probe's path": lambda p: put(p.container["readinessProbe"]["httpGet"], "path", "/ready"),
        "probes swapped": lambda p: put(p.container["livenessProbe"]["httpGet"], "path", "/readyz"),
        "an impatient probe": lambda p: put(p.container["livenessProbe"], "failureThreshold", 3),
        "an impatient start": lambda p: put(p.container["startupProbe"], "failureThreshold", 10),
    },
    faults.security: {
        "root": lambda p: put(p.spec["securityContext"], "runAsUser", 0),
        "no seccomp": lambda p: remove(p.spec["securityContext"], "seccompProfile"),
        "a writable root": lambda p: remove(
            p.container["securityContext"], "readOnlyRootFilesystem"
        ),
        "capabilities": lambda p: put(
            p.container["securityContext"], "capabilities", {"add": ["ALL"]}
        ),
        "escalation": lambda p: remove(p.container["securityContext"], "allowPrivilegeEscalation"),
        "links to services": lambda p: put(p.spec, "enableServiceLinks", True),
        "a token": lambda p: put(p.spec, "automountServiceAccountToken", True),
        "a secret for all": lambda p: put(p.spec["volumes"][0]["secret"], "defaultMode", 0o444),
        "any pod": lambda p: remove(
            of_kind(p.resources, "Namespace")[0]["metadata"]["labels"],
            "pod-security.kubernetes.io/enforce",
        ),
    },
    faults.shares: {
        "a limit on processors": lambda p: put(p.container["resources"]["limits"], "cpu", "2"),
        "little memory": less_memory,
        "threads": lambda p: p.container["env"].remove(variable(p, "UNROLL_ENGINE_THREADS")),
        "a small /tmp": lambda p: put(p.spec["volumes"][-1]["emptyDir"], "sizeLimit", "4Mi"),
    },
    faults.scaling: {
        "two masters": lambda p: put(spec(p, "Deployment"), "replicas", 2),
        "a gap in an update": lambda p: put(
            spec(p, "Deployment")["strategy"]["rollingUpdate"], "maxUnavailable", 1
        ),
        "a query": lambda p: put(
            spec(p, "ScaledObject")["triggers"][0]["metadata"], "query", "unroll_queue_token"
        ),
        "a number for KEDA": lambda p: put(
            spec(p, "ScaledObject")["triggers"][0]["metadata"], "threshold", 20000
        ),
    },
}


@pytest.mark.parametrize(
    ("check", "mutate"),
    [pytest.param(check, x[name], id=name) for check, x in MUTATIONS.items() for name in x],
)
def test_a_fault_is_found(production: list[Resource], check: Check, mutate: Mutation) -> None:
    resources = copy.deepcopy(production)
    mutate(Pod(resources))
    assert resources != production
    assert [*check(Pod(resources))] != []


def test_every_check_is_tried() -> None:
    assert {*MUTATIONS} == {*faults.CHECKS}
