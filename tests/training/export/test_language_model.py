"""A run to a bundle: what is written, and when nothing is."""

import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import MAX_CURVE_POINTS, Precision, Role
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID
from tests.training.helpers import FABLE, tiny_document, tiny_model, write_toml
from training.__main__ import main
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.errors import ExportError
from training.evaluation.language_model import Score, evaluate
from training.export.language_model import build_graphs, default_precision, export, gate
from training.export.language_model_parity import (
    OnnxLanguageModel,
    check_int8,
    check_parity,
    golden_vectors,
    onnx_score,
)
from training.export.manifest_parts import learning_curve
from training.export.precision import MAX_DIFFERENCE, MAX_INT8_DIFFERENCE
from training.graphs import language_model as onnx_graph
from training.graphs.language_model_reference import reference_logprobs
from training.loop.language_model import load_best
from training.loop.task import Curve
from training.loop.trainer import parameter_count
from training.networks.language_model import LanguageModel

KINDS = [
    (cell, num_layers, tied)
    for cell in ("rnn", "gru", "lstm")
    for num_layers in (1, 2)
    for tied in (False, True)
]
Exported = tuple[Path, LanguageModelBundle]  # the run's folder, and the bundle read back


def corpus_of(run: Path) -> Corpus:
    config, _, _ = load_best(run)
    return corpora.prepare(config.data, run.parent, run / "corpus")


def train(folder: Path, cell: str, num_layers: int, *, tied: bool, steps: int = 20) -> Path:
    """The folder of a run of a few steps."""
    folder.mkdir()
    (folder / "text.txt").write_text(FABLE)
    document = tiny_document(
        model={
            "cell": cell,
            "num_layers": num_layers,
            "tie_embeddings": tied,
            "embedding_dim": 12 if tied else 6,
        },
        training={"steps": steps, "eval_every": steps, "learning_rate": 0.02},
    )
    config = write_toml(folder / "config.toml", document | {"name": f"tiny-{cell}-{num_layers}"})
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module", params=KINDS, ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    cell, num_layers, tied = request.param
    run = train(tmp_path_factory.mktemp("export") / "run", cell, num_layers, tied=tied)
    return run, read_language_model(export(run, corpus_of(run), run / "models"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("export") / "run", "lstm", 1, tied=False)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained.parent, tmp_path / "copy")) / "run"


def models_of(exported: Exported) -> tuple[LanguageModel, OnnxLanguageModel, Corpus]:
    run, bundle = exported
    _, model, _ = load_best(run)
    names = [state.name for state in bundle.manifest.states]
    graph = OnnxLanguageModel.load(bundle.graphs["sequence.fp32.onnx"], names)
    return model, graph, corpus_of(run)


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 60), (2, 9), (7, 30)])
def test_the_bundle_gives_pytorchs_log_probabilities_on_text(
    exported: Exported, batch: int, time: int
) -> None:
    model, onnx_model, corpus = models_of(exported)
    text = np.resize(corpus.train.ids[1:-1].astype(np.int64), (batch, time + 1))
    tokens, targets = text[:, :-1], text[:, 1:]
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(tokens), model.initial_states(batch))
    wanted = torch.log_softmax(logits, -1).numpy()
    picked, logprobs, _ = onnx_model.run(
        tokens, targets, [x.numpy() for x in model.initial_states(batch)]
    )
    np.testing.assert_allclose(logprobs, wanted, rtol=0, atol=MAX_DIFFERENCE)
    wanted_picked = np.take_along_axis(wanted, targets[..., None], 2)[..., 0]
    np.testing.assert_allclose(picked, wanted_picked, rtol=0, atol=MAX_DIFFERENCE)


def test_the_bundle_measures_what_pytorch_measures(exported: Exported) -> None:
    _, bundle = exported
    model, onnx_model, corpus = models_of(exported)
    wanted = evaluate(model, corpus.test, torch.device("cpu"))
    assert onnx_score(onnx_model, model, corpus.test).loss == pytest.approx(wanted.loss, abs=1e-5)
    measured = bundle.manifest.metrics.measurements[0]
    assert (measured.name, measured.kind) == ("fp32", "model")
    assert measured.loss == pytest.approx(wanted.loss, abs=1e-5)
    assert measured.bits_per_char == pytest.approx(wanted.bits_per_char, abs=1e-4)
    assert measured.perplexity == pytest.approx(wanted.perplexity, rel=1e-4)


def test_the_golden_vectors_are_the_models_answers_one_token_at_a_time(
    exported: Exported,
) -> None:
    _, bundle = exported
    model, onnx_model, _ = models_of(exported)
    exact = model.double()
    for golden in bundle.manifest.golden:
        if golden.precision != "fp32":
            continue
        states = exact.initial_states(1)
        wanted = []
        for token, target in itertools.pairwise(golden.tokens):
            with torch.no_grad():
                logits, states = exact(torch.tensor([[token]]), states)
            wanted.append(float(torch.log_softmax(logits[0, 0], 0)[target]))
        assert golden.logprobs == pytest.approx(wanted, abs=1e-7)
        ids = np.array([golden.tokens])
        zeros = [x.float().numpy() for x in exact.initial_states(1)]
        picked, _, _ = onnx_model.run(ids[:, :-1], ids[:, 1:], zeros)
        assert float(np.abs(picked[0] - golden.logprobs).mean()) < golden.tolerance


# --- the manifest -------------------------------------------------------------------------------


def test_a_bundle_is_its_manifest_its_vocabulary_and_its_graphs(exported: Exported) -> None:
    run, bundle = exported
    has_int8 = any(graph.precision == "int8" for graph in bundle.manifest.graphs)
    int8 = ["sequence.int8.onnx", "step.int8.onnx"] if has_int8 else []
    folder = run / "models" / bundle.manifest.name
    assert sorted(x.name for x in folder.iterdir()) == [
        "manifest.json",
        "sequence.fp32.onnx",
        *int8[:1],
        *int8[1:],
        "vocab.json",
    ]
    assert list((run / "models").iterdir()) == [folder]


def test_the_manifest_says_what_the_model_is(exported: Exported) -> None:
    run, bundle = exported
    config, model, _ = load_best(run)
    shape = bundle.manifest.model
    assert (shape.cell, shape.num_layers) == (config.model.cell, config.model.num_layers)
    assert (shape.hidden_size, shape.embedding_dim) == (12, config.model.embedding_dim)
    assert shape.parameters == parameter_count(model)
    assert [(x.name, x.shape) for x in bundle.manifest.states] == [
        (name, [12]) for name in model.state_names
    ]


def test_the_manifest_has_every_files_checksum(exported: Exported) -> None:
    run, bundle = exported
    folder = run / "models" / bundle.manifest.name
    graphs, vocab = bundle.manifest.graphs, bundle.manifest.vocab
    sums = {graph.file: graph.sha256 for graph in graphs} | {vocab.file: vocab.sha256}
    for file, expected in sums.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == expected
    for graph in graphs:
        assert graph.size_bytes == (folder / graph.file).stat().st_size
    assert vocab.size == len(json.loads((folder / vocab.file).read_text()))


def test_the_manifest_describes_the_graphs_inputs_and_outputs(exported: Exported) -> None:
    _, bundle = exported
    for graph in bundle.manifest.graphs:
        proto = onnx.load_model_from_string(bundle.graphs[graph.file])
        assert graph.file == f"{graph.role}.{graph.precision}.onnx"
        assert [x.name for x in graph.inputs] == [x.name for x in proto.graph.input]
        assert [x.name for x in graph.outputs] == [x.name for x in proto.graph.output]
        assert graph.opset == proto.opset_import[0].version
    sequence = bundle.manifest.graphs[0]
    assert {x.name: (x.dtype, x.shape) for x in sequence.inputs}["lengths"] == ("int32", ["B"])


def test_the_manifest_has_the_baselines_beside_the_model(exported: Exported) -> None:
    run, bundle = exported
    corpus = corpus_of(run)
    metrics = bundle.manifest.metrics
    assert [(x.name, x.kind) for x in metrics.measurements] == [
        ("fp32", "model"),
        ("int8", "model"),
        ("unigram", "baseline"),
        ("kneser-ney 2-gram", "baseline"),
    ]
    found = (metrics.split, metrics.chars, metrics.tokens)
    assert found == ("test", corpus.test.chars, corpus.test.tokens)


def test_the_manifest_says_what_it_was_trained_on_and_how(exported: Exported) -> None:
    run, bundle = exported
    config, _, record = load_best(run)
    corpus = corpus_of(run)
    data, training = bundle.manifest.data, bundle.manifest.training
    assert data.sha256 == hashlib.sha256(FABLE.encode()).hexdigest()
    assert data.train_chars + data.valid_chars + data.test_chars == len(FABLE)
    assert (data.train_chars, data.documents) == (corpus.train.chars, 3)
    assert training.config == config.model_dump(mode="json")
    assert (training.seed, training.steps) == (config.training.seed, record["step"])
    assert set(training.versions) == {"python", "torch", "onnx", "onnxruntime", "numpy"}
    assert training.git_commit is None or re.fullmatch(r"[0-9a-f]{40}", training.git_commit)


def valid_line(step: int) -> str:
    return json.dumps({"kind": "valid", "step": step, "bits_per_char": 1 / step}) + "\n"


def test_the_learning_curve_is_what_the_log_has(exported: Exported) -> None:
    run, bundle = exported
    lines = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
    valid = [x for x in lines if x["kind"] == "valid"]
    curve = bundle.manifest.training.curve
    assert valid
    assert curve is not None
    assert curve.unit == "bits a character"
    assert curve.steps == [x["step"] for x in valid]
    assert curve.values == [x["bits_per_char"] for x in valid]


def test_a_long_curve_is_thinned_and_a_run_without_a_log_has_none(tmp_path: Path) -> None:
    key = Curve("bits_per_char", "bits")
    assert learning_curve(tmp_path, key) is None
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')
    assert learning_curve(tmp_path, key) is None
    for count, left in ((MAX_CURVE_POINTS, 1000), (1001, 501), (2001, 667)):
        log.write_text("".join(valid_line(step) for step in range(1, count + 1)))
        curve = learning_curve(tmp_path, key)
        assert curve is not None
        assert len(curve.steps) == left <= MAX_CURVE_POINTS
        assert curve.values == [1 / step for step in curve.steps]


def test_the_vocabulary_is_the_corpuss(exported: Exported) -> None:
    run, bundle = exported
    assert bundle.vocab.tokens == corpus_of(run).vocab.tokens


# --- golden vectors -----------------------------------------------------------------------------


def test_golden_vectors_hold_a_text_the_empty_one_and_every_token(trained: Path) -> None:
    corpus = corpus_of(trained)
    _, model, _ = load_best(trained)
    vectors = golden_vectors(model, corpus.train, corpus.vocab, ["fp32", "int8"])
    assert [x.precision for x in vectors] == ["fp32"] * 3 + ["int8"] * 3
    text, empty, every = (x.tokens for x in vectors[3:])
    assert [x.tokens for x in vectors[:3]] == [text, empty, every]
    assert text == corpus.train.ids[:129].tolist()
    assert empty == [BOS_ID, EOS_ID]
    assert sorted(every) == list(range(BOS_ID, len(corpus.vocab)))


# --- refusals -----------------------------------------------------------------------------------


def perturbed(name: str) -> Callable[..., bytes]:
    """onnx_graph.build, but for a thousandth on one element of a constant."""
    build = onnx_graph.build

    def tampered(
        model: LanguageModel, precision: Precision = "fp32", role: Role = "sequence", **_: Any
    ) -> bytes:
        if precision != "fp32":
            return build(model, precision, role)
        proto = onnx.load_model_from_string(build(model))
        (constant,) = (x for x in proto.graph.initializer if x.name == name)
        values = numpy_helper.to_array(constant).copy()
        values.flat[-1] += 1e-3
        constant.CopyFrom(numpy_helper.from_array(values, name))
        data: bytes = proto.SerializeToString()
        return data

    return tampered


def without_lengths(
    model: LanguageModel, precision: Precision = "fp32", role: Role = "sequence", **_: Any
) -> bytes:
    """A graph that reads every row to the end of the window: its states run on into padding."""
    if precision != "fp32":
        return WHOLE_BUILD(model, precision, role)
    proto = onnx.load_model_from_string(WHOLE_BUILD(model))
    for node in proto.graph.node:
        if node.op_type == "LSTM":
            node.input[4] = ""
    data: bytes = proto.SerializeToString()
    return data


WHOLE_BUILD = onnx_graph.build


@pytest.mark.parametrize("name", ["weight_ih0", "weight_hh0", "bias0", "output_bias"])
def test_a_graph_with_another_weight_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(onnx_graph, "build", perturbed(name))
    with pytest.raises(
        ExportError, match="the exported graph and PyTorch in double precision differ by"
    ):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()


def test_a_graph_whose_states_run_on_into_padding_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "build", without_lengths)
    with pytest.raises(ExportError, match="depend on the rows beside a row"):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()


@pytest.mark.parametrize("text", [FABLE + "more", FABLE.replace("fox", "cat")])
def test_weights_of_another_text_are_not_written(run: Path, text: str) -> None:
    (run.parent / "text.txt").write_text(text)
    with pytest.raises(ExportError, match="the prepared text is not the one"):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()


def test_a_run_that_was_not_finished_is_not_written(run: Path) -> None:
    (run / "metrics.json").unlink()
    with pytest.raises(ExportError, match=r"metrics\.json: not there"):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()


def test_a_refused_export_leaves_the_old_bundle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(run, corpus_of(run), run / "models")
    before = read_language_model(path).manifest
    monkeypatch.setattr(onnx_graph, "build", perturbed("output_bias"))
    with pytest.raises(ExportError):
        export(run, corpus_of(run), run / "models")
    assert read_language_model(path).manifest == before


# --- replacing ----------------------------------------------------------------------------------


def test_a_bundle_is_replaced_as_a_whole(run: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = read_language_model(export(run, corpus_of(run), models))
    longer = train(tmp_path / "longer", "lstm", 1, tied=False, steps=25)
    path = export(longer, corpus_of(longer), models)
    second = read_language_model(path)
    assert (first.manifest.training.steps, second.manifest.training.steps) == (20, 25)
    assert list(models.iterdir()) == [path]


def test_a_bundle_may_have_another_name_than_its_configuration(run: Path) -> None:
    path = export(run, corpus_of(run), run / "models", name="other")
    assert path.name == "other"
    assert read_language_model(path).manifest.name == "other"


# --- eight bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "precision"), [(-1.0, "fp32"), (1.0, "int8")])
def test_int8_graphs_are_in_the_bundle_where_they_cost_no_more_than_is_allowed(
    run: Path, monkeypatch: pytest.MonkeyPatch, allowed: float, precision: str
) -> None:
    monkeypatch.setattr("training.export.gate.MAX_QUANTIZATION_LOSS", allowed)
    bundle = read_language_model(export(run, corpus_of(run), run / "models"))
    manifest = bundle.manifest
    kinds = {(x.precision, x.role) for x in manifest.graphs}
    int8 = {("int8", "sequence"), ("int8", "step")} if precision == "int8" else set()
    assert kinds == {("fp32", "sequence"), *int8}
    assert {x.precision for x in manifest.golden} == {x for x, _ in kinds}
    # Both are measured, whatever is served.
    measured = [x.name for x in manifest.metrics.measurements if x.kind == "model"]
    assert measured == ["fp32", "int8"]


@pytest.mark.parametrize(
    ("cell", "num_layers", "hidden_size", "served"),
    [
        ("lstm", 1, 128, "fp32"),
        ("gru", 1, 128, "fp32"),
        ("lstm", 2, 64, "fp32"),
        ("lstm", 1, 129, "int8"),
        ("lstm", 2, 128, "int8"),
        ("rnn", 1, 16, "int8"),  # its fp32 graph has no operator of its own
    ],
)
def test_small_lstms_and_grus_are_served_in_fp32(
    cell: str, num_layers: int, hidden_size: int, served: Precision
) -> None:
    options: dict[str, Any] = {"cell": cell, "num_layers": num_layers, "hidden_size": hidden_size}
    model = tiny_model(**options)
    assert default_precision(model, "int8") == served
    assert default_precision(model, "fp32") == "fp32"


def test_an_int8_model_that_costs_more_than_is_allowed_is_measured_and_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of every output channel is so large that the others are lost beside it."""
    config, model, record = load_best(run)
    size = model.config.hidden_size
    with torch.no_grad():
        for layer in model.recurrent_layers:
            # The first unit is never on: what it is multiplied by changes nothing but the scales.
            for parameter in (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh):
                parameter[::size] = 0.0
            layer.weight_hh[:, 0] = 300.0
            layer.weight_hh[::size] = 0.0
    monkeypatch.setattr(
        "training.export.language_model.open_best", lambda _: (config, model, record)
    )
    manifest = read_language_model(export(run, corpus_of(run), run / "models")).manifest
    fp32, int8 = (x.bits_per_char for x in manifest.metrics.measurements[:2])
    assert int8 - fp32 > 0.002
    assert manifest.precision == "fp32"
    assert {(x.precision, x.role) for x in manifest.graphs} == {("fp32", "sequence")}


def score(bits_per_char: float) -> Score:
    """1,000 characters and 10 ends of text: nats a token are no multiple of bits a character."""
    return Score(nats=bits_per_char * 1000 * math.log(2), tokens=1010, chars=1000)


@pytest.mark.parametrize(
    ("int8", "served"),
    [
        (1.5, "int8"),  # better
        (2.0, "int8"),
        (2.0019, "int8"),
        (2.0021, "fp32"),
        (2.0028, "fp32"),  # 0.0019 nats: the limit is in bits
        (math.nan, "fp32"),
    ],
)
def test_int8_may_cost_two_thousandths_of_a_bit_a_character(int8: float, served: str) -> None:
    assert gate({"fp32": score(2.0), "int8": score(int8)}) == served


def test_the_loss_that_is_just_allowed_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[Precision, Score] = {"fp32": score(2.0), "int8": score(2.001)}
    loss = scores["int8"].bits_per_char - scores["fp32"].bits_per_char
    monkeypatch.setattr("training.export.gate.MAX_QUANTIZATION_LOSS", loss)
    assert gate(scores) == "int8"
    monkeypatch.setattr("training.export.gate.MAX_QUANTIZATION_LOSS", np.nextafter(loss, 0.0))
    assert gate(scores) == "fp32"


def test_the_int8_measurement_is_the_references_loss(exported: Exported) -> None:
    run, bundle = exported
    _, model, _ = load_best(run)
    test = corpus_of(run).test
    nats = 0.0
    for start, end in itertools.pairwise(test.starts):
        ids = torch.from_numpy(test.ids[start:end].astype(np.int64))[None]
        logprobs, _ = reference_logprobs(model, ids[:, :-1], model.initial_states(1))
        nats -= float(logprobs.gather(2, ids[:, 1:, None]).sum())
    fp32, int8 = bundle.manifest.metrics.measurements[:2]
    assert int8.name == "int8"
    assert int8.loss == pytest.approx(nats / test.tokens, abs=2e-5)
    assert int8.loss != fp32.loss


def test_the_int8_golden_vectors_are_what_the_step_graph_writes(trained: Path) -> None:
    _, model, _ = load_best(trained)
    corpus = corpus_of(trained)
    vectors = golden_vectors(model, corpus.test, corpus.vocab, ["fp32", "int8"])
    step = OnnxLanguageModel.load(build_graphs(model)["int8", "step"], model.state_names)
    for exact, golden in zip(vectors[:3], vectors[3:], strict=True):
        states = [x.numpy() for x in model.initial_states(1)]
        found = []
        for token, target in itertools.pairwise(golden.tokens):
            feeds = dict(zip(model.state_names, states, strict=True))
            logprobs, *states = step.session.run(None, {"tokens": np.array([token]), **feeds})
            found.append(logprobs[0, target])
        difference = float(np.abs(np.array(found) - golden.logprobs).mean())
        assert difference < 2e-5
        assert golden.tolerance == MAX_INT8_DIFFERENCE
        # Other numbers than those of fp32, except after bos alone: the zero state has no rounding.
        same = np.abs(np.array(exact.logprobs) - golden.logprobs) < 1e-7
        assert same.tolist() == [True] + [False] * (len(found) - 1)


def test_weights_that_are_no_numbers_are_not_written(run: Path) -> None:
    _, model, _ = load_best(run)
    sequence = OnnxLanguageModel.load(build_graphs(model)["fp32", "sequence"], model.state_names)
    held_out = corpus_of(run).test
    check_parity(model, sequence, held_out)
    with torch.no_grad():
        model.output.bias[4] = float("nan")
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(model, sequence, held_out)


def test_a_step_graph_of_other_weights_is_not_written(run: Path, tmp_path: Path) -> None:
    _, model, _ = load_best(run)
    other = train(tmp_path / "other", "lstm", 1, tied=False, steps=25)
    _, other_model, _ = load_best(other)
    graphs, others = build_graphs(model), build_graphs(other_model)
    held_out = corpus_of(run).test
    sequence = OnnxLanguageModel.load(graphs["int8", "sequence"], model.state_names)
    assert check_int8(model, sequence, graphs["int8", "step"], held_out) < 1e-4
    with pytest.raises(ExportError, match="step and the sequence graph differ"):
        check_int8(model, sequence, others["int8", "step"], held_out)
    wrong = OnnxLanguageModel.load(others["int8", "sequence"], model.state_names)
    with pytest.raises(ExportError, match="the int8 graphs and their reference differ"):
        check_int8(model, wrong, others["int8", "step"], held_out)


Tamper = Callable[[onnx.GraphProto], None]


def tampered(graph: bytes, change: Tamper) -> bytes:
    proto = onnx.load_model_from_string(graph)
    change(proto.graph)
    data: bytes = proto.SerializeToString()
    return data


def nudge_output_states(graph: onnx.GraphProto) -> None:
    """A millionth on the h that is handed on: it stays in its step, and only states differ."""
    for node in graph.node:
        for names in (node.input, node.output):
            renamed = ["h0_made" if name == "h0_out" else name for name in names]
            del names[:]
            names.extend(renamed)
    graph.initializer.append(numpy_helper.from_array(np.array(1e-6, np.float32), "nudge"))
    graph.node.append(onnx.helper.make_node("Add", ["h0_made", "nudge"], ["h0_out"]))


def run_on_into_padding(graph: onnx.GraphProto) -> None:
    (scan,) = (x for x in graph.node if x.op_type == "Scan")
    (body,) = (x.g for x in scan.attribute if x.name == "body")
    for node in body.node:
        if node.op_type == "Where":
            node.input[2] = node.input[1]


def put_nan(graph: onnx.GraphProto) -> None:
    (constant,) = (x for x in graph.initializer if x.name == "output_bias")
    values = np.full_like(numpy_helper.to_array(constant), np.nan)
    constant.CopyFrom(numpy_helper.from_array(values, "output_bias"))


def turn_one_weight(graph: onnx.GraphProto) -> None:
    (constant,) = (x for x in graph.initializer if x.name == "recurrent0_weight")
    values = numpy_helper.to_array(constant).copy()
    row, column = np.unravel_index(np.abs(values.astype(int)).argmax(), values.shape)
    values[row, column] = -values[row, column]
    constant.CopyFrom(numpy_helper.from_array(values, "recurrent0_weight"))


def halve_the_scales(graph: onnx.GraphProto) -> None:
    (constant,) = (x for x in graph.initializer if x.name == "recurrent0_scale")
    values = numpy_helper.to_array(constant) / 2
    constant.CopyFrom(numpy_helper.from_array(values, "recurrent0_scale"))


@pytest.mark.parametrize(
    ("role", "change", "message"),
    [
        ("step", nudge_output_states, "the states of step and sequence graph differ at 1 rows"),
        ("step", turn_one_weight, "the step and the sequence graph differ at 1 rows"),
        ("sequence", run_on_into_padding, "depend on the rows beside a row"),
        ("sequence", put_nan, "the int8 graphs and their reference differ by nan"),
        ("sequence", halve_the_scales, "the int8 graphs and their reference differ by"),
    ],
    ids=lambda x: x.__name__ if callable(x) else None,
)
def test_an_int8_graph_that_was_tampered_with_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, role: Role, change: Tamper, message: str
) -> None:
    def build(
        model: LanguageModel, precision: Precision = "fp32", built: Role = "sequence", **_: Any
    ) -> bytes:
        graph = WHOLE_BUILD(model, precision, built)
        return tampered(graph, change) if (precision, built) == ("int8", role) else graph

    monkeypatch.setattr(onnx_graph, "build", build)
    with pytest.raises(ExportError, match=message):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()


def test_a_loss_that_is_not_pytorchs_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: Any) -> Score:
        found = onnx_score(*arguments)
        return Score(found.nats + 1.1 * MAX_DIFFERENCE * found.tokens, found.tokens, found.chars)

    monkeypatch.setattr("training.export.language_model.onnx_score", other)
    with pytest.raises(ExportError, match="held-out loss: onnxruntime has"):
        export(run, corpus_of(run), run / "models")
    assert not (run / "models").exists()
