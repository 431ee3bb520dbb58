"""The bundle that puts accents back, as it ships."""

from service.bundle.labeler import LabelerBundle
from service.bundle.losses import lost
from service.bundle.store import read_bundle
from service.runtime.labeler import OnnxLabelerSession
from tests.end_to_end.server import ROOT

FOLDER = ROOT / "models/accents"
MAX_BYTES = 6 * 10**6


def bundle() -> LabelerBundle:
    found = read_bundle(FOLDER)
    assert isinstance(found, LabelerBundle)
    return found


def test_the_bundle_loads_and_is_small() -> None:
    found = bundle()
    for graph in found.manifest.graphs:
        OnnxLabelerSession(found, graph.precision)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_every_label_is_a_letter_with_accents() -> None:
    labels = bundle().manifest.labels
    assert labels.applied
    assert all(lost(name, ["accents"]) != name for name in labels.names if name)


def test_the_results_page_states_its_figures_and_no_base_letter_changed() -> None:
    manifest = bundle().manifest
    lines = (ROOT / "docs/results.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `accents`")]
    for row, metrics in zip(rows, manifest.metrics, strict=True):
        values = {x.name: x.values for x in metrics.measurements}
        served = values[manifest.precision]
        wrong, table, copy = (
            f"{100 * x['word_error_rate']:.1f} %"
            for x in (served, values["word table"], values["copy"])
        )
        assert f"| {metrics.texts:,} texts | **{wrong}** | {table} | {copy} |" in row
        assert served["base_errors"] == 0.0
