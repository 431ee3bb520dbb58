"""Ray Serve on two nodes, with the shipped docker/ray/serve.yaml."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import ray_cluster
from tests.cluster.load import Case, Outcome, known
from tests.cluster.namespaces import Node, nodes
from tests.cluster.ray_cluster import ROOT, Cluster, wait_until
from tests.end_to_end.server import serve

_SHIPPED = ROOT / "docker/ray/serve.yaml"
_STATE_KEY = "a key that all replicas share"
_SETTLED_S = 120.0

needs_ray = pytest.mark.skipif(ray_cluster.missing() is not None, reason=str(ray_cluster.missing()))


def shipped(models: Path) -> dict[str, Any]:
    """The shipped configuration, with the models and the numbers of a test."""
    configuration: dict[str, Any] = yaml.safe_load(_SHIPPED.read_text())
    application = configuration["applications"][0]
    variables = application["runtime_env"]["env_vars"]
    for name in ("UNROLL_STATE_KEY_FILE", "UNROLL_API_KEYS_FILE"):
        del variables[name]
    variables |= {"UNROLL_MODELS_DIR": str(models), "UNROLL_STATE_KEY": _STATE_KEY}
    deployment = application["deployments"][0]
    deployment["autoscaling_config"] |= {"max_replicas": 2}
    return configuration


def requests() -> list[tuple[str, dict[str, object]]]:
    """Paths and bodies; a stream is long enough to be under way when something happens."""
    alice, dates = "alice-lstm", "dates-iso"
    texts = ["Alice was beginning to get very tired", "of sitting by her sister", "", "oh dear!"]
    prompts = ["Alice ", "The ", "There was "]
    writes = {"model": alice, "seed": 7}
    found: list[tuple[str, dict[str, object]]] = []
    found += [("/score", {"model": alice, "text": text}) for text in texts]
    found += [("/translate", {"model": dates, "source": f"march {x}, 2021"}) for x in (3, 14)]
    for prompt in prompts:
        found.append(("/generate", {**writes, "prompt": prompt, "max_tokens": 60}))
        stream = {"prompt": prompt, "max_tokens": 600, "stream": True}
        found.append(("/generate", {**writes, **stream}))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "models"
    for name in ("alice-lstm", "dates-iso"):
        shutil.copytree(ROOT / "models" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def cases(models: Path) -> list[Case]:
    """The requests, with what the bare service answers."""
    found = []
    with serve(models, state_key=_STATE_KEY) as server, server.client() as client:
        for path, body in requests():
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            found.append(Case(path, json.dumps(body), known(answer.text), {}))
    return found


@pytest.fixture(scope="module")
def cluster(models: Path) -> Iterator[Cluster]:
    with nodes(3) as made, ray_cluster.ray_cluster(made) as running:
        running.deploy(shipped(models))
        try:
            wait_until(lambda: running.is_settled(2), _SETTLED_S)
        except TimeoutError:
            sys.stderr.write(running.logs())
            raise
        yield running


@contextmanager
def load(
    cluster: Cluster, cases: Sequence[Case], urls: Sequence[str], clients: int
) -> Iterator[list[Outcome]]:
    """Send the requests until the block ends; the list is filled then."""
    plan = {"urls": urls, "cases": [asdict(x) for x in cases], "clients": clients, "seconds": 300}
    log = cluster.folder / "load.json"
    outcomes: list[Outcome] = []
    with log.open("w") as output:
        process = cluster.client.start(
            [sys.executable, "-m", "tests.cluster.load"],
            env={"PYTHONPATH": str(ROOT)},
            output=output,
            input=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()
        try:
            yield outcomes
        finally:
            process.stdin.close()
            process.wait(90)
    outcomes += [Outcome(**each) for each in json.loads(log.read_text())]


def url(node: Node) -> str:
    return f"http://{node.address}:8000"


def lost(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if not each.is_right]


@needs_ray
def test_every_answer_is_the_bare_services_by_the_proxy_of_any_node(
    cluster: Cluster, cases: list[Case]
) -> None:
    with load(cluster, cases, [url(cluster.head), url(cluster.workers[0])], 4) as outcomes:
        time.sleep(8)
    assert {outcome.case for outcome in outcomes} == {*range(len(cases))}
    assert lost(outcomes) == []


@needs_ray
def test_a_rolling_update_under_load_loses_nothing(
    cluster: Cluster, cases: list[Case], models: Path
) -> None:
    before = {each["replica_id"] for each in cluster.replicas()}
    changed = shipped(models)
    changed["applications"][0]["runtime_env"]["env_vars"]["UNROLL_MAX_N"] = "15"
    with load(cluster, cases, [url(cluster.head), url(cluster.workers[0])], 6) as outcomes:
        time.sleep(2)
        cluster.deploy(changed)
        wait_until(lambda: cluster.is_settled(2), _SETTLED_S)
        time.sleep(2)
    assert before.isdisjoint(each["replica_id"] for each in cluster.replicas())
    assert len(outcomes) > len(cases)
    assert lost(outcomes) == []


@needs_ray
def test_a_killed_node_takes_only_what_it_was_answering(
    cluster: Cluster, cases: list[Case]
) -> None:
    assert {each["node_ip"] for each in cluster.replicas()} == {"10.77.0.1", "10.77.0.2"}
    with load(cluster, cases, [url(cluster.head)], 6) as outcomes:
        time.sleep(5)
        killed = time.monotonic()
        cluster.workers[0].kill()
        time.sleep(30)
    print(killed)
    for each in lost(outcomes):
        print(
            each.start - killed,
            each.end - killed,
            cases[each.case].path,
            "stream" in cases[each.case].body,
            each.status,
            each.error,
        )
    late = [e for e in outcomes if e.end - e.start > 3]
    print([(e.start - killed, e.end - killed, e.is_right) for e in late])
    assert 0
