"""Ray Serve on two nodes, with the shipped configurations of docker/ray/."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.setting_sources import KNOWN
from service.settings import Settings
from tests.cluster import ray_cluster
from tests.cluster.load import ROOT, Case, Outcome, Plan, ask, known, sending
from tests.cluster.namespaces import Node, nodes
from tests.cluster.ray_cluster import Cluster, wait_until
from tests.end_to_end.server import serve

_FOLDER = ROOT / "docker/ray"
_STATE_KEY = "a key that all replicas share"
_SETTLED_S = 120.0
_NOTICED_S = 25.0  # longer than Ray takes to see that a node is gone

needs_ray = pytest.mark.skipif(ray_cluster.missing() is not None, reason=str(ray_cluster.missing()))


def shipped(name: str, models: Path) -> dict[str, Any]:
    """The shipped configuration, with the models and the numbers of a test."""
    configuration: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text())
    application = configuration["applications"][0]
    variables = application["runtime_env"]["env_vars"]
    del variables["UNROLL_STATE_KEY_FILE"], variables["UNROLL_API_KEYS_FILE"]
    variables |= {"UNROLL_MODELS_DIR": str(models), "UNROLL_STATE_KEY": _STATE_KEY}
    deployment = application["deployments"][0]
    deployment["autoscaling_config"] |= {"max_replicas": 2}
    del deployment["max_surge_percent"]  # two nodes with a processor each have no room for it
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
        running.deploy(shipped("serve.yaml", models))
        try:
            wait_until(lambda: running.is_settled(2), _SETTLED_S)
        except TimeoutError:
            sys.stderr.write(running.logs())
            raise
        yield running


@contextmanager
def load(
    cluster: Cluster, cases: Sequence[Case], nodes_asked: Sequence[Node], clients: int
) -> Iterator[list[Outcome]]:
    """Send the requests from the node of the clients, until the block ends."""
    plan = Plan([url(node) for node in nodes_asked], [*cases], clients, seconds=300)
    with sending(cluster.client, plan, cluster.folder) as outcomes:
        yield outcomes


def url(node: Node) -> str:
    return f"http://{node.address}:8000"


def lost(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if not each.is_right]


def test_the_shipped_configurations_avoid_the_known_traps() -> None:
    for name in ("serve.yaml", "many-models.yaml"):
        application = yaml.safe_load((_FOLDER / name).read_text())["applications"][0]
        (deployment,) = application["deployments"]
        assert deployment["max_ongoing_requests"] == 256
        assert deployment["graceful_shutdown_timeout_s"] > Settings().request_timeout_s
        scaling = deployment["autoscaling_config"]
        assert scaling["target_ongoing_requests"] == Settings().max_rows
        assert scaling["min_replicas"] > 1
        names = {x for x in application["runtime_env"]["env_vars"] if x.startswith("UNROLL_")}
        assert names <= {*KNOWN}


@needs_ray
def test_the_proxy_of_any_node_gives_the_answers_of_the_bare_service(
    cluster: Cluster, cases: list[Case]
) -> None:
    with load(cluster, cases, (cluster.head, *cluster.workers), 4) as outcomes:
        time.sleep(8)
    assert {outcome.case for outcome in outcomes} == {*range(len(cases))}
    assert lost(outcomes) == []


@needs_ray
def test_a_dashboard_without_the_token_refuses_to_deploy(cluster: Cluster) -> None:
    path = f"{cluster.dashboard}/api/serve/applications/"
    assert ask(cluster.client, path)[0] == 401
    wrong = {"Authorization": f"Bearer {'f' * 64}"}
    assert ask(cluster.client, path, headers=wrong)[0] in {401, 403}


@needs_ray
def test_a_rolling_update_under_load_loses_nothing(
    cluster: Cluster, cases: list[Case], models: Path
) -> None:
    before = {each["replica_id"] for each in cluster.replicas()}
    changed = shipped("serve.yaml", models)
    changed["applications"][0]["runtime_env"]["env_vars"]["UNROLL_MAX_N"] = "15"
    with load(cluster, cases, (cluster.head, *cluster.workers), 6) as outcomes:
        time.sleep(2)
        cluster.deploy(changed)
        wait_until(lambda: cluster.is_settled(2), _SETTLED_S)
        time.sleep(2)
    assert before.isdisjoint(each["replica_id"] for each in cluster.replicas())
    assert len(outcomes) > len(cases)
    assert lost(outcomes) == []


@needs_ray
def test_requests_for_one_model_reach_one_replica_through_any_node(
    cluster: Cluster, models: Path
) -> None:
    configuration = shipped("many-models.yaml", models)
    # The proxies keep the router of a running application, so this has to be another.
    configuration["applications"][0]["name"] = "many-models"
    cluster.deploy(configuration)
    wait_until(lambda: cluster.is_settled(2), _SETTLED_S)
    began = {}  # when the process began that answers for a model, by each node's proxy
    for number in range(10):
        said = {"X-Unroll-Model": f"model-{number}"}
        answers = [
            ask(cluster.client, f"{url(node)}/metrics", headers=said)[1]
            for node in (cluster.head, *cluster.workers)
        ]
        began[number] = {_start_time(text) for text in answers}
    assert all(len(each) == 1 for each in began.values())
    assert len(set.union(*began.values())) == 2


@needs_ray
def test_replicas_follow_the_requests_under_way(
    cluster: Cluster, cases: list[Case], models: Path
) -> None:
    changed = shipped("serve.yaml", models)
    changed["applications"][0]["deployments"][0]["autoscaling_config"] |= {
        "min_replicas": 1,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 1,
        "downscale_delay_s": 5,
    }
    cluster.deploy(changed)
    wait_until(lambda: cluster.is_settled(1), _SETTLED_S)
    with load(cluster, cases, [cluster.head], 16) as outcomes:
        wait_until(lambda: len(cluster.replicas()) == 2, _SETTLED_S)
    wait_until(lambda: cluster.is_settled(1), _SETTLED_S)
    assert lost(outcomes) == []


@needs_ray
def test_a_killed_node_loses_only_what_it_was_answering(
    cluster: Cluster, cases: list[Case], models: Path
) -> None:
    cluster.deploy(shipped("serve.yaml", models))
    wait_until(lambda: cluster.is_settled(2), _SETTLED_S)
    assert {each["node_ip"] for each in cluster.replicas()} == {"10.77.0.1", "10.77.0.2"}
    with load(cluster, cases, [cluster.head], 8) as outcomes:
        time.sleep(5)
        killed = time.monotonic()
        cluster.workers[0].kill()
        time.sleep(_NOTICED_S)
    # It had begun to answer these. Requests that had not reached it are sent to the other node.
    assert 0 < len(lost(outcomes)) < 8
    assert all(each.start < killed < each.end for each in lost(outcomes))
    # Those that came after are answered, also in the time until Ray noticed.
    after = [each for each in outcomes if each.start > killed]
    assert len(after) > len(cases)
    assert lost(after) == []


def _start_time(metrics: str) -> str:
    (line,) = (x for x in metrics.splitlines() if x.startswith("process_start_time_seconds "))
    return line
