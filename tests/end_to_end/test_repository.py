"""The repository keeps its word: shipped bundles, documents, pins."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.labeler import LabelerBundle
from service.bundle.language_model import LanguageModelManifest
from service.bundle.store import read_bundle, read_language_model
from service.runtime.adapting import language_model_sessions
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.runtime.labeler import OnnxLabelerSession
from tests import bundle_reference, settings_reference
from tests.end_to_end.server import ROOT

NETWORKS = ("alice-gru", "alice-lstm", "alice-rnn")
BUNDLES = (*NETWORKS, "alice-ngram")
MAX_BUNDLE_BYTES = 6 * 10**6
MAX_NGRAM_BUNDLE_BYTES = 2 * 10**6
PAIR_BUNDLES = ("dates-en-de", "dates-iso", "g2p-en", "strings-en-de")
MAX_PAIR_BUNDLE_BYTES = 8 * 10**6
LABEL_BUNDLES = ("language-id",)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_shipped_bundle_loads_and_is_small(name: str) -> None:
    folder = ROOT / "models" / name
    bundle = read_language_model(folder)
    for precision in bundle.precisions:
        language_model_sessions(bundle, precision)
    limit = MAX_BUNDLE_BYTES if name in NETWORKS else MAX_NGRAM_BUNDLE_BYTES
    assert sum(path.stat().st_size for path in folder.iterdir()) <= limit


@pytest.mark.parametrize("name", PAIR_BUNDLES)
def test_a_shipped_encoder_decoder_loads_and_is_small(name: str) -> None:
    folder = ROOT / "models" / name
    bundle = read_bundle(folder)
    assert isinstance(bundle, EncoderDecoderBundle)
    for precision in bundle.precisions:
        OnnxEncoderDecoderSession(bundle, precision)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_PAIR_BUNDLE_BYTES


@pytest.mark.parametrize("name", LABEL_BUNDLES)
def test_a_shipped_labeler_loads_and_is_small(name: str) -> None:
    folder = ROOT / "models" / name
    bundle = read_bundle(folder)
    assert isinstance(bundle, LabelerBundle)
    for graph in bundle.manifest.graphs:
        OnnxLabelerSession(bundle, graph.precision)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BUNDLE_BYTES


@dataclass(frozen=True, slots=True)
class Figure:
    """What the README tells of an encoder-decoder."""

    metric: str
    form: str
    larger_is_better: bool = True

    def shown(self, values: Mapping[Any, float]) -> str:
        return self.form.format(values[self.metric], percent=100 * values[self.metric])

    def worth(self, values: Mapping[Any, float]) -> float:
        return values[self.metric] if self.larger_is_better else -values[self.metric]


FIGURES = {
    "dates-en-de": Figure("exact_match", "{percent:.1f} % exact"),
    "dates-iso": Figure("exact_match", "{percent:.1f} % exact"),
    "g2p-en": Figure("word_error_rate", "WER {percent:.1f} %", larger_is_better=False),
    "strings-en-de": Figure("bleu", "BLEU {:.1f}"),
}


def rows_of(document: str, name: str) -> list[str]:
    """The rows of the tables that begin with this model's name."""
    lines = (ROOT / document).read_text().splitlines()
    return [line for line in lines if line.startswith(f"| `{name}`")]


def size_of(name: str) -> str:
    return f"{sum(x.stat().st_size for x in (ROOT / 'models' / name).iterdir()) / 1e6:.1f} MB"


@pytest.mark.parametrize("name", PAIR_BUNDLES)
def test_the_results_page_states_the_figures_of_the_encoder_decoders(name: str) -> None:
    bundle = read_bundle(ROOT / "models" / name)
    assert isinstance(bundle, EncoderDecoderBundle)
    assert len(bundle.manifest.examples) == 10
    rows = rows_of("docs/results.md", name)
    # The rows of the confidence follow.
    rows = rows[: len(bundle.manifest.metrics)]
    for row, metrics in zip(rows, bundle.manifest.metrics, strict=True):
        values = {x.name: x.values for x in metrics.measurements}
        assert {"greedy", "beam 5", "copy", "nearest source"} <= set(values)
        assert f"{metrics.sources:,}" in row
        for found in (values["beam 5"], values["copy"], values["nearest source"]):
            if "bleu" not in found:
                assert f"WER {100 * found['word_error_rate']:.1f} %" in row
                assert f"PER {100 * found['symbol_error_rate']:.1f} %" in row
            else:
                assert f"{100 * found['exact_match']:.1f} % exact" in row
            if name == "strings-en-de":
                assert f"BLEU {found['bleu']:.1f}, chrF {found['chrf']:.1f}, " in row
        assert f"| {size_of(name)} |" in row


@pytest.mark.parametrize("name", PAIR_BUNDLES)
def test_the_results_page_states_how_far_a_confidence_can_be_trusted(name: str) -> None:
    bundle = read_bundle(ROOT / "models" / name)
    assert isinstance(bundle, EncoderDecoderBundle)
    confidence = bundle.manifest.confidence
    assert confidence is not None
    rows = rows_of("docs/results.md", name)[len(bundle.manifest.metrics) :]
    for row, found in zip(rows, confidence.measured, strict=True):
        assert f"| {found.sources:,} | {100 * found.right:.1f} % |" in row
        assert f"| {found.ece:.3f} | {found.ece_by_chance:.3f} |" in row
        for x in found.coverage:
            if x.threshold is None or x.right is None:
                assert "| no threshold |" in row
                continue
            answered = f"{100 * x.coverage:.1f} %, {100 * x.right:.1f} % right"
            assert f"| ≥ {x.threshold:.3f}: {answered} |" in row


@pytest.mark.parametrize("name", PAIR_BUNDLES)
def test_the_readme_states_the_result_beside_the_better_baseline(name: str) -> None:
    bundle = read_bundle(ROOT / "models" / name)
    assert isinstance(bundle, EncoderDecoderBundle)
    rows = rows_of("README.md", name)
    assert len(rows) == len(bundle.manifest.metrics)
    assert f"| {size_of(name)} |" in rows[0]
    assert f"| {bundle.manifest.model.parameters / 1e6:.2f} M |" in rows[0]
    for row, metrics in zip(rows, bundle.manifest.metrics, strict=True):
        values = {x.name: x.values for x in metrics.measurements}
        figure = FIGURES[name]
        assert f"| **{figure.shown(values['beam 5'])}** o" in row
        assert f"{metrics.sources:,}" in row
        best = max((values["copy"], values["nearest source"]), key=figure.worth)
        assert f"| {figure.shown(best)} |" in row


def _accuracy(values: Mapping[Any, float]) -> float:
    return values["accuracy"]


@pytest.mark.parametrize("name", LABEL_BUNDLES)
def test_the_results_page_states_the_figures_of_the_labelers(name: str) -> None:
    bundle = read_bundle(ROOT / "models" / name)
    assert isinstance(bundle, LabelerBundle)
    manifest = bundle.manifest
    found = {x.split: x for x in manifest.metrics if x.split != "valid"}
    for row, metrics in zip(rows_of("docs/results.md", name), found.values(), strict=True):
        values = {x.name: x.values for x in metrics.measurements}
        figures = values[manifest.precision]
        assert f"{metrics.texts:,}" in row
        accuracy, macro_f1 = 100 * figures["accuracy"], 100 * figures["macro_f1"]
        assert f"| **{accuracy:.1f} %, macro F1 {macro_f1:.1f} %** |" in row
        best = max((x.values for x in metrics.measurements if x.kind == "baseline"), key=_accuracy)
        assert f"| {100 * best['accuracy']:.1f} %, {100 * best['macro_f1']:.1f} % " in row
        assert f"| {figures['ece']:.3f} |" in row
        assert f"| {size_of(name)} |" in row


def bits_of(manifest: LanguageModelManifest, kind: str) -> dict[str, float]:
    """The measurements of a kind, by name, in bits a character."""
    found = [x for x in manifest.metrics.measurements if x.kind == kind]
    return {x.name: x.bits_per_char for x in found}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_shipped_bundle_carries_its_figures_beside_every_baseline(name: str) -> None:
    bundle = read_language_model(ROOT / "models" / name)
    manifest = bundle.manifest
    kneser_ney = [f"kneser-ney {order}-gram" for order in range(2, 9)]
    assert list(bits_of(manifest, "baseline")) == ["unigram", *kneser_ney]
    assert manifest.training.git_commit
    whole = bits_of(manifest, "model")
    assert set(whole) == set(bundle.precisions)
    if "int8" in whole:
        assert (manifest.precision == "int8") == (whole["int8"] - whole["fp32"] <= 0.002)
    adapting = bits_of(manifest, "adapting")
    assert set(adapting) == (set(whole) if manifest.adapt else set())
    assert all(adapting[precision] < whole[precision] for precision in adapting)
    if len(manifest.parts) > 1:
        parts = bits_of(manifest, "part")
        assert {x.name for x in manifest.parts} <= set(parts)
        assert all(whole["fp32"] < part for part in parts.values())


@pytest.mark.parametrize("name", BUNDLES)
def test_the_documents_state_the_figures_of_the_language_models(name: str) -> None:
    manifest = read_language_model(ROOT / "models" / name).manifest
    readme, results = rows_of("README.md", name), rows_of("docs/results.md", name)
    assert len(readme) == 1
    whole, adapting = bits_of(manifest, "model"), bits_of(manifest, "adapting")
    served = manifest.precision
    size = manifest.model.parameters
    is_ngram = manifest.model.cell == "ngram"
    for row in (readme[0], results[0]):
        assert f"**{whole[served]:.4f}**" in row
        assert served not in adapting or f"{adapting[served]:.4f}" in row
        assert f"{min(bits_of(manifest, 'baseline').values()):.3f}" in row
        assert (f"{size:,} n-grams" if is_ngram else f"{size / 1e6:.2f} M") in row
        assert f"| {size_of(name)} |" in row
    assert f"{whole['fp32']:.4f}" in results[0]
    if len(manifest.parts) > 1:
        expected = manifest.metrics.expected_bits_per_char
        assert expected is not None
        figures = [*bits_of(manifest, "part").values(), whole["fp32"], expected]
        assert all(f"{figure:.4f}" in results[1] for figure in figures)


def test_the_bundle_reference_is_the_schemas() -> None:
    assert (ROOT / "models/README.md").read_text() == bundle_reference.render()


def test_the_page_of_settings_is_written_from_them() -> None:
    assert (ROOT / "docs/settings.md").read_text() == settings_reference.render()


# This project is on no index: the name by itself would bring a stranger's package.
_NAME = r"unroll(?:[-_]client)?"
_INSTALLS = re.compile(
    rf"\b(?:install|add|uvx|pipx run)\s+(?:-\S+\s+|\S*[=:/]\S*\s+)*['\"`]*{_NAME}(?![\w/.-])"
    rf"|(?:^|['\"`\s]){_NAME}\[[\w,-]+\]|\b{_NAME}(?:[=~>]=)[0-9]"
)


def test_nothing_says_to_install_this_project_by_its_name() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or path.suffix in {".onnx", ".png"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if _INSTALLS.search(line):
                found.append(f"{name}:{number}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("pip install unroll", True),
        ("pip install 'unroll[telemetry]'", True),
        (".venv/bin/pip install --quiet unroll==0.1.0", True),
        ("it needs the extra: unroll[client]", True),
        ("uv pip install --upgrade unroll", True),
        ("pip install unroll-client", True),
        ("pip install '.[telemetry]'", False),
        ("pip freeze --exclude unroll --exclude torch", False),
        ("pip install --no-deps --editable /opt/unroll", False),
        ("unroll learn names.txt", False),
        ("docker build -t unroll .", False),
    ],
)
def test_such_a_line_would_be_found(line: str, is_found: bool) -> None:
    assert bool(_INSTALLS.search(line)) == is_found


def test_compose_pulls_no_image_by_this_projects_name() -> None:
    # Of a service with `build` and `image`, Compose pulls the image first: somebody else's.
    lines = (ROOT / "docker/compose.yaml").read_text().splitlines()
    images = [line.split()[1] for line in lines if line.strip().startswith("image:")]
    assert images
    assert not [image for image in images if image.startswith("unroll")]


def pins(path: Path) -> dict[str, set[str]]:
    """Name to pinned versions."""
    found: dict[str, set[str]] = {}
    pattern = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
    for name, version in pattern.findall(path.read_text()):
        found.setdefault(re.sub(r"[._]", "-", name.lower()), set()).add(version)
    return found


def test_development_runs_on_the_versions_that_the_service_is_locked_to() -> None:
    service = pins(ROOT / "requirements/service.txt")
    development = pins(ROOT / "requirements/development.txt")
    for name, versions in service.items():
        assert development[name] <= versions


def test_the_service_lock_holds_no_training_package() -> None:
    assert not {"torch", "onnx", "pandas", "safetensors"} & set(
        pins(ROOT / "requirements/service.txt")
    )


@pytest.mark.skipif(
    not (ROOT / ".venv/audit/.done").exists(), reason="make sbom has not made its environment"
)
def test_the_bill_of_materials_lists_what_the_service_is_locked_to() -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True)
    document = json.loads((ROOT / "build/sbom.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "unroll"
    found: dict[str, set[str]] = {}
    for component in document["components"]:
        found.setdefault(component["name"].lower(), set()).add(component["version"])
        assert component["purl"].startswith("pkg:pypi/")
    assert found == pins(ROOT / "requirements/service.txt")


@pytest.mark.parametrize("module", ["service.app", "service.__main__", "training.__main__"])
def test_nothing_tells_anybody_what_is_run_here(tmp_path: Path, module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    code = f"import {module}, onnxruntime; onnxruntime.get_available_providers()"
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path).lower()]
