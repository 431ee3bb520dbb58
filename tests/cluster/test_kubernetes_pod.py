"""The pod of overlays/production as far as one machine goes: its user, files, limits and end."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.manifests import (
    POD_IP,
    Pod,
    compose,
    copy_manifests,
    render,
    size_bytes,
)
from tests.end_to_end.server import NO_CERTIFICATES, ROOT, free_port

PROGRAMS = ("kubectl", "unshare", "setpriv", "mount")
missing = [x for x in PROGRAMS if shutil.which(x) is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a pod's user and mounts need root"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}"),
]
APP = "/mnt/app"  # in the place of /opt/app: paths outside /run, /tmp and /mnt cannot be made
MOUNTS = "/mnt/pod"
START_S = 60


@dataclass(frozen=True)
class Running:
    """A pod that runs."""

    pod: Pod
    url: str
    process: subprocess.Popen[bytes]
    key: str  # of a client
    metrics_key: str

    def client(self, host: str = "unroll.unroll.svc", key: str | None = None) -> httpx.Client:
        """A client that asks for this host, with the client's key unless it is given another."""
        headers = {"Host": host, "Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, verify=NO_CERTIFICATES)


def volume(pod: Pod, mount: dict[str, Any]) -> dict[str, Any]:
    (found,) = [x for x in pod.spec["volumes"] if x["name"] == mount["name"]]
    return found  # type: ignore[no-any-return]


def stage(pod: Pod, folder: Path) -> list[str]:
    """Lay the volumes out under `folder`; the mounts that put them in their places."""
    group = pod.spec["securityContext"]["fsGroup"]
    for laid in pod.lay_out(folder):
        for path in laid.rglob("*"):
            os.chown(path, 0, group, follow_symlinks=False)
    commands = []
    for mount in pod.container["volumeMounts"]:
        path, kind = mount["mountPath"], volume(pod, mount)
        source = folder / path.lstrip("/")
        if "emptyDir" in kind:
            size = size_bytes(kind["emptyDir"]["sizeLimit"])
            commands.append(f"mount -t tmpfs -o size={size},mode=1777 tmpfs {path}")
            continue
        if "persistentVolumeClaim" in kind:
            disk = folder / "claim"
            (disk / "lost+found").mkdir(parents=True, mode=0o700)
            source = disk / mount["subPath"]
            for name in ("alice-lstm", "dates-iso"):
                shutil.copytree(ROOT / "models" / name, source / name)
        target = place(path)
        commands += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(source))} {target}"]
        commands.append(f"mount -o remount,bind,ro {target}")
    return commands


def place(path: str) -> str:
    """Where a path of the pod is here."""
    return path if path.startswith(("/run/", "/tmp")) else MOUNTS + path  # noqa: S108


def script(pod: Pod, folder: Path) -> str:
    """A shell script that becomes the container's process."""
    context, path = pod.spec["securityContext"], Path(sys.executable)
    python = f"{APP}/{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else str(path)
    user = f"--reuid {context['runAsUser']} --regid {context['runAsGroup']}"
    rights = f"{user} --groups {context['fsGroup']} --no-new-privs --bounding-set=-all"
    lines = [
        "set -e",
        "mount -t tmpfs tmpfs /run",
        "mount -t tmpfs tmpfs /mnt",
        f"mkdir {APP} && mount --bind {shlex.quote(str(ROOT))} {APP}",
        *readable_python(),
        *sorted(stage(pod, folder), key=lambda x: "tmpfs" in x),  # /tmp may hide what is bound
        "mount -o remount,bind,ro /",
        f"mount -o remount,bind,ro {APP}",
        f"cd {APP}",
        f"exec setpriv {rights} --inh-caps=-all {python} -m service",
    ]
    return "\n".join(lines)


def readable_python() -> list[str]:
    """Mounts that show the interpreter to everybody, where it is in the home of root."""
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/root"):
        return []
    return [
        f"mkdir /mnt/python && mount --bind {prefix} /mnt/python",
        "mount -t tmpfs -o mode=755 tmpfs /root",
        f"mkdir -p {prefix} && mount --bind /mnt/python {prefix}",
    ]


@contextmanager
def running(pod: Pod, manifests: Path, folder: Path) -> Iterator[Running]:
    port = free_port()
    environment = {
        name: place(value) if value.startswith("/") else value
        for name, value in pod.environment().items()
    }
    # As the image sets them, but for the port: others may use 8000 on this machine.
    environment |= {"UNROLL_HOST": "0.0.0.0", "UNROLL_PORT": str(port)}  # noqa: S104
    environment |= {"ORT_DISABLE_TELEMETRY": "1", "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script(pod, folder)],
        env=environment,
    )
    url = f"http://127.0.0.1:{port}"
    key, metrics_key = (manifests / "alice").read_text(), "components/api-keys/metrics-key"
    started = Running(pod, url, process, key, (manifests / metrics_key).read_text())
    try:
        wait_until_ready(started)
        yield started
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def wait_until_ready(started: Running) -> None:
    """Ask as the kubelet does: /readyz, by the pod's address, without a key."""
    path = started.pod.container["readinessProbe"]["httpGet"]["path"]
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=started.url, headers={"Host": f"{POD_IP}:8000"}) as client:
        while time.monotonic() < deadline:
            assert started.process.poll() is None, "the service did not start"
            try:
                if client.get(path).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise TimeoutError


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifests") / "kubernetes"
    return copy_manifests(folder, is_bundle_real=True)


@pytest.fixture(scope="module")
def started(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pod = Pod(render(manifests / "overlays/production"))
    with running(pod, manifests, tmp_path_factory.mktemp("pod")) as each:
        yield each


def test_the_process_has_no_rights_and_only_the_processors_that_it_requested(
    started: Running,
) -> None:
    pid = started.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    assert fields["Uid"].split() == fields["Gid"].split() == ["10001"] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    roots = re.findall(r"^\S+ \S+ \S+ \S+ / (\S+)", mounts_of(pid), re.MULTILINE)
    assert roots
    assert all("ro" in x.split(",") for x in roots)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == int(started.pod.environment()["UNROLL_WORKERS"])


def mounts_of(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()


def test_only_known_hosts_and_keys_are_answered(started: Running) -> None:
    request = {"model": "dates-iso", "source": "4 July 1776"}
    for host in ("unroll", "unroll.unroll.svc.cluster.local", "unroll.example"):
        with started.client(host) as client:
            assert client.post("/translate", json=request).status_code == httpx.codes.OK, host
    with started.client("evil.example") as client:
        assert client.post("/translate", json=request).status_code == 421
    with started.client(key="unroll-guessed") as client:
        assert client.post("/translate", json=request).status_code == 401
    # Prometheus.
    with started.client(f"{POD_IP}:8000", started.metrics_key) as client:
        numbers = client.get("/metrics")
    assert numbers.status_code == httpx.codes.OK
    assert "\nunroll_queue_tokens{" in numbers.text


def test_a_pod_that_is_replaced_under_load_loses_nothing(manifests: Path, tmp_path: Path) -> None:
    pod = Pod(render(manifests / "overlays/production"))
    with running(pod, manifests, tmp_path) as each:
        load = Load(each)
        load.start()
        time.sleep(1)
        # The kubelet runs preStop; until nodes and gateways have heard, they send what they get.
        time.sleep(pod.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        before = load.answered
        load.is_over.set()
        each.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert each.process.wait(pod.spec["terminationGracePeriodSeconds"]) == 0
        took_s = time.monotonic() - begun
        load.join()
    assert load.failures == []
    # Some were still on their way when the signal came, and the pod has not waited for nothing.
    assert before >= 20
    assert load.answered > before
    assert took_s < 60


class Load:
    """Clients that send one request after another, plain and streamed, on new connections."""

    def __init__(self, started: Running) -> None:
        self.is_over = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self._started = started
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(8)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(START_S)

    def _run(self, place: int) -> None:
        while not self.is_over.is_set():
            try:
                with self._started.client() as client:
                    fault = self._ask(client, is_streamed=place % 2 == 0)
            except httpx.HTTPError as error:
                fault = repr(error)
            if fault:
                self.failures.append(fault)
            else:
                self.answered += 1

    @staticmethod
    def _ask(client: httpx.Client, *, is_streamed: bool) -> str | None:
        request = {
            "model": "alice-lstm",
            "prompt": "Alice ",
            "max_tokens": 600,
            "stream": is_streamed,
        }
        answer = client.post("/generate", json=request)
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code}: {answer.text}"
        is_whole = re.search('"finish_reason":"(length|stop)"', answer.text) is not None
        return None if is_whole else f"cut off: {answer.text[-200:]}"


def test_models_are_served_out_of_configmaps(manifests: Path, tmp_path: Path) -> None:
    pod = Pod(compose(manifests, ["models-configmap", "api-keys"]))
    with running(pod, manifests, tmp_path) as each, each.client() as client:
        request = {"model": "dates-iso", "source": "4 July 1776"}
        answer = client.post("/translate", json=request).raise_for_status()
        assert answer.json()["results"][0]["hypotheses"][0]["text"] == "1776-07-04"
