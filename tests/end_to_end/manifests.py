"""Kubernetes manifests as `kubectl kustomize` renders them, and pods as the kubelet makes them."""

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from service.http.api_keys import new_key
from tests.end_to_end.server import ROOT

FOLDER = ROOT / "docker/kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir() if path.is_dir())
# Where the manifests want a file of one's own, which git ignores.
STATE_KEY = "components/state-key/state-key"
API_KEYS = "components/api-keys/api-keys"
METRICS_KEY = "components/api-keys/metrics-key"
BUNDLE = "components/models-configmap/dates-iso"
MODEL = ROOT / "models/dates-iso"
POD_IP = "10.1.2.3"

# Written in C where it can be.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Resource: TypeAlias = dict[str, Any]


class RenderError(Exception):
    """What kubectl said."""


def copy_manifests(target: Path, *, is_bundle_real: bool = False) -> Path:
    """The manifests in a new folder, with keys and a bundle made for them.

    The bundle's files are there, but empty of meaning unless it is to be served: to render two
    megabytes takes seconds.
    """
    own = {Path(name).name for name in (STATE_KEY, API_KEYS, METRICS_KEY, BUNDLE)}

    def is_own(folder: str, names: list[str]) -> set[str]:
        return {x for x in names if x in own and Path(folder).parent.name == "components"}

    shutil.copytree(FOLDER, target, ignore=is_own)
    (target / STATE_KEY).write_text("0123456789abcdef" * 4 + "\n")
    secret, alice = new_key("alice", "use")
    metrics, prometheus = new_key("prometheus", "metrics")
    (target / API_KEYS).write_text(f"{alice.line()}\n{prometheus.line()}\n")
    (target / METRICS_KEY).write_text(metrics)
    (target / "alice").write_text(secret)
    shutil.copytree(MODEL, target / BUNDLE)
    if not is_bundle_real:
        for path in (target / BUNDLE).iterdir():
            path.write_bytes(b"\xff")  # no text, as a graph
    return target


def render(folder: Path) -> list[Resource]:
    """The resources of a kustomization. Raises RenderError."""
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RenderError(done.stderr)
    return [x for x in yaml.load_all(done.stdout, LOADER) if x]


def compose(manifests: Path, components: Sequence[str]) -> list[Resource]:
    """The base with these components."""
    folder = manifests / "overlays" / ("with-" + "-".join(components))
    folder.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "unroll",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(folder)


def of_kind(resources: Sequence[Resource], kind: str) -> list[Resource]:
    return [x for x in resources if x["kind"] == kind]


def named(resources: Sequence[Resource], kind: str, name: str) -> Resource | None:
    found = [x for x in of_kind(resources, kind) if x["metadata"]["name"] == name]
    return found[0] if found else None


@dataclass(frozen=True)
class Pod:
    """The pod of a Deployment, with what it refers to."""

    resources: Sequence[Resource]

    @property
    def template(self) -> Resource:
        return next(iter(of_kind(self.resources, "Deployment")))["spec"]["template"]  # type: ignore[no-any-return]

    @property
    def spec(self) -> Resource:
        return self.template["spec"]  # type: ignore[no-any-return]

    @property
    def container(self) -> Resource:
        return self.spec["containers"][0]  # type: ignore[no-any-return]

    def environment(self) -> dict[str, str]:
        """The container's variables; `$(NAME)` stands for a variable that comes before."""
        known: dict[str, str] = {}
        for variable in self.container["env"]:
            known[variable["name"]] = self._value(variable, known)
        return known

    def _value(self, variable: Resource, known: Mapping[str, str]) -> str:
        if "value" in variable:
            return re.sub(
                r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), variable["value"]
            )
        source = variable["valueFrom"]
        if "fieldRef" in source:
            fields = {"status.podIP": POD_IP, "metadata.namespace": "unroll"}
            return fields[source["fieldRef"]["fieldPath"]]
        reference = source["resourceFieldRef"]
        group, resource = reference["resource"].split(".")
        assert (resource, reference["divisor"]) == ("cpu", "1")
        # The kubelet rounds up.
        return str(-(-millicores(self.container["resources"][group][resource]) // 1000))

    def files(self, mount: Resource) -> dict[str, bytes] | None:
        """The files of a mounted Secret or of ConfigMaps; None for another kind of volume."""
        (volume,) = [x for x in self.spec["volumes"] if x["name"] == mount["name"]]
        if "secret" in volume:
            return self.data("Secret", volume["secret"]["secretName"])
        if "projected" in volume:
            names = [x["configMap"]["name"] for x in volume["projected"]["sources"]]
            found = [self.data("ConfigMap", name) for name in names]
            return {name: data for files in found for name, data in files.items()}
        return None

    def data(self, kind: str, name: str) -> dict[str, bytes]:
        resource = named(self.resources, kind, name)
        if resource is None:
            raise LookupError(f"there is no {kind} {name}")
        encoded = resource.get("data", {}) if kind == "Secret" else resource.get("binaryData", {})
        files = {name: base64.b64decode(x) for name, x in encoded.items()}
        if kind == "ConfigMap":
            files |= {name: x.encode() for name, x in resource.get("data", {}).items()}
        return files

    def lay_out(self, root: Path) -> Iterator[Path]:
        """Write the volumes that have files under `root`, as the kubelet does; their folders."""
        for mount in self.container["volumeMounts"]:
            files = self.files(mount)
            if files is not None:
                folder = root / mount["mountPath"].lstrip("/")
                write_as_kubelet(folder, files)
                yield folder


def write_as_kubelet(folder: Path, files: Mapping[str, bytes]) -> None:
    """Files of a Secret or ConfigMap: links to `..data`, a link to a folder with a time as name.

    All change at once when `..data` does.
    """
    version = folder / "..2026_01_02_03_04_05.1234567890"
    version.mkdir(parents=True)
    (folder / "..data").symlink_to(version.name)
    for name, data in files.items():
        (version / name).write_bytes(data)
        (version / name).chmod(0o440)
        (folder / name).symlink_to(f"..data/{name}")


def millicores(text: str) -> int:
    """`500m` and `2` as thousandths of a processor."""
    return int(text[:-1]) if text.endswith("m") else int(float(text) * 1000)


def size_bytes(text: str) -> int:
    """`64Mi` in bytes."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(text[:-2]) * units[text[-2:]] if text[-2:] in units else int(text)
