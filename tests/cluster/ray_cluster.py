"""A Ray cluster on nodes of a test, with the environment of `make .venv/cluster/.done`.

Ray itself would end by `ray stop`, which ends every Ray of the machine. Here each node ends with
its processes (see `namespaces`).
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.load import ROOT, ask
from tests.cluster.namespaces import Node, skip_reason

ENVIRONMENT = ROOT / ".venv/cluster/bin"
PORT, DASHBOARD_PORT = 6379, 8265
TOKEN = "0123456789abcdef" * 4
_OBJECTS_BYTES = 100_000_000  # Serve keeps no objects
_START_S = 120.0
# What Ray reads from the environment where it starts, on every node.
_VARIABLES = {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{ENVIRONMENT}:{os.environ['PATH']}",
    "OMP_WAIT_POLICY": "passive",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_SESSION_ID_HEADER_KEY": "x-unroll-model",
    "RAY_memory_monitor_refresh_ms": "0",  # the machine's memory is not the cluster's alone
    # How soon a node that says nothing counts as dead; the defaults take about a minute.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster: its head, the other nodes, and a node without Ray for clients."""

    head: Node
    workers: tuple[Node, ...]
    client: Node
    folder: Path  # Ray's logs, and the files of a deployment
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def dashboard(self) -> str:
        """The URL of the head's dashboard, which `serve deploy` talks to."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def command(self, *words: str | Path, timeout_s: float = 120.0) -> str:
        """Run a command of Ray's environment on the head, and return what it printed."""
        done = self.head.run(words, env=self.variables, timeout_s=timeout_s, check=False)
        if done.returncode:
            raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def deploy(self, configuration: Mapping[str, Any]) -> None:
        """`serve deploy`: returns once Ray has the configuration, not once it has done it."""
        path = self.folder / "serve.json"  # a YAML file, too
        path.write_text(json.dumps(configuration))
        self.command("serve", "deploy", "--address", self.dashboard, path)

    def status(self) -> dict[str, Any]:
        """What the dashboard says about Serve."""
        url = f"{self.dashboard}/api/serve/applications/"
        status, text = ask(self.client, url, headers={"Authorization": f"Bearer {TOKEN}"})
        if status != 200:
            raise RuntimeError(f"the dashboard answered {status}: {text[:200]}")
        found: dict[str, Any] = json.loads(text)
        return found

    def replicas(self, state: str = "RUNNING") -> list[dict[str, Any]]:
        """The replicas in a state, each with `replica_id`, `node_ip`, `pid`."""
        return [each for each in _replicas(self.status()) if each["state"] == state]

    def is_settled(self, replicas: int) -> bool:
        """Whether the last configuration is what runs, with that many replicas."""
        status = self.status()
        if len(status["applications"]) != 1:
            return False  # one of them ends
        states = [each["state"] for each in _replicas(status)]
        (application,) = status["applications"].values()
        if application["status"] == "DEPLOY_FAILED":
            raise RuntimeError(application["message"])
        return application["status"] == "RUNNING" and states == ["RUNNING"] * replicas

    def logs(self) -> str:
        """The last lines of Serve's logs, for a test that fails."""
        paths = sorted((self.folder / "ray").glob("session_*/logs/serve/*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in paths)


def _replicas(status: dict[str, Any]) -> list[dict[str, Any]]:
    deployments = [x["deployments"] for x in status["applications"].values()]
    return [replica for x in deployments if x for replica in x["unroll"]["replicas"]]


def missing() -> str | None:
    """Why there can be no Ray cluster here, for `pytest.mark.skipif`; None if there can be."""
    if not (ENVIRONMENT / "serve").exists():
        return "Ray is not installed; run `make .venv/cluster/.done`"
    return skip_reason()


@contextmanager
def ray_cluster(
    nodes: Sequence[Node], *, cpus: int = 1, variables: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster on all nodes but the last, which is for clients; `cpus` are those of each node."""
    head, *workers, client = nodes
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets below it
    here = {**_VARIABLES, **_haproxy_files(folder / "proxy"), **(variables or {})}
    cluster = Cluster(head, tuple(workers), client, folder, here)
    common = (
        f"--num-cpus={cpus}",
        f"--object-store-memory={_OBJECTS_BYTES}",
        "--disable-usage-stats",
        "--block",
    )
    try:
        with (folder / "nodes.log").open("w") as log:
            start = ("ray", "start", *common)
            places = (f"--dashboard-host={head.address}", f"--temp-dir={folder}/ray")
            head.start(
                [*start, "--head", f"--node-ip-address={head.address}", f"--port={PORT}", *places],
                env=cluster.variables,
                output=log,
            )
            probe = ["bash", "-c", f"echo > /dev/tcp/{head.address}/{DASHBOARD_PORT}"]
            wait_until(lambda: not head.run(probe, timeout_s=9, check=False).returncode, _START_S)
            for node in workers:
                node.start(
                    [
                        *start,
                        f"--node-ip-address={node.address}",
                        f"--address={head.address}:{PORT}",
                    ],
                    env=cluster.variables,
                    output=log,
                )
            yield cluster
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _haproxy_files(folder: Path) -> dict[str, str]:
    """Where HAProxy keeps its files, in a folder for each node; by default below /tmp."""
    places = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock"}
    places |= {"METRICS_SOCKET_PATH": "metrics.sock", "SERVER_STATE_FILE": "state"}
    variables = {name: f"{folder}/{file}" for name, file in places.items()}
    variables["SERVER_STATE_BASE"] = str(folder)
    return {f"RAY_SERVE_HAPROXY_{name}": value for name, value in variables.items()}


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.5) -> None:
    """Raise TimeoutError unless it comes true in time."""
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {within_s:g} s")
        time.sleep(every_s)
