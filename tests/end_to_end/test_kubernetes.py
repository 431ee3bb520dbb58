"""docker/kubernetes renders, fits Kubernetes' schemas, and says what the service does."""

import copy
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from service.http.api_keys import read_api_keys
from service.setting_sources import KNOWN, load_settings
from tests.end_to_end import manifest_faults as faults
from tests.end_to_end.manifest_faults import (
    container_security,
    faults_of,
    schema_fault,
    settings_of,
)
from tests.end_to_end.manifests import (
    API_KEYS,
    BUNDLE,
    COMPONENTS,
    FOLDER,
    METRICS_KEY,
    MODEL,
    STATE_KEY,
    Pod,
    RenderError,
    Resource,
    compose,
    copy_manifests,
    named,
    of_kind,
    render,
    write_as_kubelet,
)
from tests.end_to_end.server import ROOT

MODELS = ("models-image", "models-volume", "models-configmap")
# `api-keys` after `monitoring`, as its file says.
OTHERS = ("state-key", "gateway", "monitoring", "autoscaling", "api-keys")
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (make kubectl fetches it)"
)
pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_manifests(tmp_path_factory.mktemp("manifests") / "kubernetes")


@pytest.fixture(scope="module")
def production(manifests: Path) -> list[Resource]:
    return render(manifests / "overlays/production")


# --- what is rendered -----------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", sorted(x.name for x in (FOLDER / "overlays").iterdir()))
def test_an_overlay_has_no_fault(manifests: Path, overlay: str) -> None:
    assert faults_of(render(manifests / "overlays" / overlay)) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_has_no_fault_by_itself(manifests: Path, component: str) -> None:
    assert faults_of(compose(manifests, [component])) == []


@pytest.mark.parametrize("models", MODELS)
def test_all_components_work_together(manifests: Path, models: str) -> None:
    assert {models, *OTHERS} | {*MODELS} == {*COMPONENTS}
    assert faults_of(compose(manifests, [models, *OTHERS])) == []


@pytest.mark.parametrize("missing", [STATE_KEY, API_KEYS, METRICS_KEY])
def test_nothing_is_rendered_without_a_key_of_ones_own(
    manifests: Path, tmp_path: Path, missing: str
) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(manifests, copied)
    (copied / missing).unlink()
    with pytest.raises(RenderError, match=Path(missing).name):
        render(copied / "overlays/production")


@pytest.mark.parametrize("made", [STATE_KEY, API_KEYS, METRICS_KEY, f"{BUNDLE}/manifest.json"])
def test_git_ignores_what_is_made_for_a_cluster(made: str) -> None:
    path = f"docker/kubernetes/{made}"
    done = subprocess.run(["git", "check-ignore", path], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 128:
        pytest.skip("not in a checkout of git")
    assert done.returncode == 0, path


def test_one_line_of_the_overlay_sets_the_host_everywhere(manifests: Path, tmp_path: Path) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(manifests, copied)
    overlay = copied / "overlays/production/kustomization.yaml"
    assert overlay.read_text().count("unroll.example") == 1
    overlay.write_text(overlay.read_text().replace("unroll.example", "texts.example"))
    resources = render(overlay.parent)
    assert faults_of(resources) == []
    assert of_kind(resources, "HTTPRoute")[0]["spec"]["hostnames"] == ["texts.example"]


def test_the_query_follows_another_namespace(manifests: Path, tmp_path: Path) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(manifests, copied)
    overlay = copied / "overlays/production/kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("namespace: unroll", "namespace: texts"))
    resources = render(overlay.parent)
    assert named(resources, "Namespace", "texts") is not None
    assert 'namespace="texts"' in yaml.safe_dump(of_kind(resources, "ScaledObject"))


def test_the_trial_fits_the_oldest_version_that_is_documented(manifests: Path) -> None:
    page = (ROOT / "docs/scale.md").read_text()
    (oldest,) = re.findall(r"for Kubernetes (1\.\d+) or newer", page)
    for resource in render(manifests / "overlays/trial"):
        kubernetes_validate.validate(resource, oldest, strict=True)


def test_the_bundles_that_are_said_to_fit_into_two_configmaps_do() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    (said,) = re.findall(r"The shipped bundles (.*) fit into two ConfigMaps each", page)
    for folder in (ROOT / "models").glob("*/"):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        parts = itertools.product((0, 1), repeat=len(sizes))
        fits = any(
            max(sum(x for x, y in zip(sizes, part, strict=True) if y == side) for side in (0, 1))
            <= faults.MAX_CONFIG_BYTES
            for part in parts
        )
        assert fits == (f"`{folder.name}`" in said), folder.name


def test_the_configmaps_hold_every_file_of_the_bundle_and_fit() -> None:
    component = (FOLDER / "components/models-configmap/kustomization.yaml").read_text()
    parts = [x["files"] for x in yaml.safe_load(component)["configMapGenerator"]]
    files = [Path(name) for part in parts for name in part]
    assert sorted(x.name for x in files) == sorted(x.name for x in MODEL.iterdir())
    for part in parts:
        sizes = [(MODEL / Path(name).name).stat().st_size for name in part]
        assert sum(sizes) <= faults.MAX_CONFIG_BYTES


def test_every_component_is_documented() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    assert [x for x in COMPONENTS if f"\n| `{x}` |" not in page] == []


# --- KServe ---------------------------------------------------------------------------------------


def test_the_serving_runtime_of_kserve_has_no_fault(manifests: Path) -> None:
    resources = render(manifests / "kserve")
    assert [x for x in map(schema_fault, resources) if x] == []
    (runtime,) = of_kind(resources, "ServingRuntime")
    (service,) = of_kind(resources, "InferenceService")
    container = runtime["spec"]["containers"][0]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        "spec": {key: runtime["spec"][key] for key in ("containers", "volumes")},
    }
    assert schema_fault(pod) is None
    assert [*container_security(container)] == []
    assert container["name"] == "kserve-container"
    said = {x["name"]: x.get("value", "1") for x in container["env"]}
    assert said.keys() <= {*KNOWN}
    settings = load_settings([], said)
    assert settings.models_dir == Path("/mnt/models")
    assert [settings.port] == [x["containerPort"] for x in container["ports"]]
    probed = {container[x]["httpGet"]["port"] for x in ("readinessProbe", "livenessProbe")}
    assert probed == {settings.port}
    model = service["spec"]["predictor"]["model"]
    formats = {x["name"] for x in runtime["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_job_of_a_sweep_fits_the_schema() -> None:
    job = yaml.safe_load((ROOT / "docker/sweep/job.yaml").read_text())
    assert schema_fault(job) is None
    assert [*container_security(job["spec"]["template"]["spec"]["containers"][0])] == []


# --- what the service reads -----------------------------------------------------------------------


def test_the_service_reads_secrets_through_the_links_of_the_kubelet(
    production: list[Resource], tmp_path: Path
) -> None:
    settings = settings_of(Pod(production), tmp_path)
    assert settings.state_key is not None
    assert settings.state_key.get_secret_value() == "0123456789abcdef" * 4
    assert settings.api_keys_file is not None
    assert settings.api_keys_file.is_symlink()
    assert [x.name for x in read_api_keys(settings.api_keys_file)] == ["alice", "prometheus"]


def test_a_secret_may_change_as_the_kubelet_changes_it(tmp_path: Path) -> None:
    write_as_kubelet(tmp_path, {"key": b"a key of sixteen characters\n"})
    new = tmp_path / "..2026_02_02"
    new.mkdir()
    (new / "key").write_text("another key of sixteen")
    (tmp_path / "..data_tmp").symlink_to(new.name)
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    settings = load_settings([], {"UNROLL_STATE_KEY_FILE": str(tmp_path / "key")})
    assert settings.state_key is not None
    assert settings.state_key.get_secret_value() == "another key of sixteen"


def test_half_a_processor_counts_as_one(production: list[Resource]) -> None:
    resources = copy.deepcopy(production)
    Pod(resources).container["resources"]["requests"]["cpu"] = "500m"
    assert Pod(resources).environment()["UNROLL_WORKERS"] == "1"


# Two pods, of which one has just been scraped with less; another namespace, and another job.
SERIES = """
rule_files: []
evaluation_interval: 10s
tests:
  - interval: 10s
    input_series:
      - {series: 'Q{job="unroll",namespace="unroll",pod="a",model="x"}', values: "0 30000 100"}
      - {series: 'Q{job="unroll",namespace="unroll",pod="b",model="x"}', values: "0 0 10000"}
      - {series: 'Q{job="unroll",namespace="other",pod="c",model="x"}', values: "7 7 7"}
      - {series: 'Q{job="other",namespace="unroll",pod="d",model="x"}', values: "7 7 7"}
    promql_expr_test:
      - expr: EXPRESSION
        eval_time: 20s
        exp_samples: [{labels: "{}", value: 40000}]
"""


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (it is in Debian's package prometheus)",
)
def test_the_query_of_autoscaling_adds_what_waits(
    production: list[Resource], tmp_path: Path
) -> None:
    query = of_kind(production, "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["query"]
    series = SERIES.replace("Q{", "unroll_queue_tokens{").replace("EXPRESSION", query)
    (tmp_path / "test.yml").write_text(series)
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_figures_of_autoscaling_are_the_measured_ones() -> None:
    comment = (FOLDER / "components/autoscaling/scaled-object.yaml").read_text()
    table = (ROOT / "docs/benchmarks.md").read_text()
    rows = re.findall(r"default settings beside .* 2 . (\d+) units \| ([\d,]+) tokens/s", table)
    measured = {units: int(rate.replace(",", "")) for units, rate in rows}
    threshold = int(re.search(r'threshold: "(\d+)"', comment)[1])  # type: ignore[index]
    assert threshold <= measured["512"] <= measured["128"]
    for units, said in itertools.chain([("512", 23_000), ("128", 45_000)]):
        assert f"{said:,}" in comment
        assert abs(measured[units] - said) < 2_000
