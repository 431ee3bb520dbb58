"""A trained run to a bundle: graphs, parity, the gate for int8, golden vectors.

B batch, T time, V vocabulary.
"""

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from service.bundle.files import sha256, vocab_bytes
from service.bundle.language_model import (
    LanguageModelDataSource,
    LanguageModelGoldenVector,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMeasurement,
    LanguageModelMetrics,
    LanguageModelShape,
)
from service.bundle.manifest import (
    FORMAT_VERSION,
    Precision,
    StateTensor,
    TrainingRecord,
    VocabFile,
)
from service.bundle.store import write_bundle
from service.bundle.text import Vocabulary
from training.data.corpus import Corpus, Split
from training.evaluation.language_model import Score, evaluate
from training.evaluation.language_model_report import measurement
from training.export.language_model_parity import (
    OnnxModel,
    check_golden,
    check_int8,
    check_parity,
    golden_vectors,
    onnx_score,
)
from training.export.manifest_parts import (
    MAX_DIFFERENCE,
    MAX_QUANTIZATION_LOSS,
    ExportError,
    Graphs,
    Unverifiable,
    describe_graph,
    file_name,
    git_commit,
    learning_curve,
    versions,
)
from training.export.precision import ADVICE, in_double
from training.graphs import language_model as onnx_graph
from training.loop.language_model import LanguageModelTask, load_best
from training.loop.trainer import parameter_count
from training.networks.language_model import LanguageModel

VOCAB_FILE = "vocab.json"
_DEFAULT_MAX_TOKENS = 4096
_LOG = logging.getLogger(__name__)


def export(run_dir: Path, corpus: Corpus, models_dir: Path, *, name: str | None = None) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    int8 graphs are in it where they are at most MAX_QUANTIZATION_LOSS worse on held-out text.
    """
    config, model, record = load_best(run_dir)
    vocab = Vocabulary(record["vocab"])
    if corpus.sha256 != record["corpus_sha256"] or corpus.vocab.tokens != vocab.tokens:
        raise ExportError(f"{run_dir}: the prepared text is not the one the weights come from")
    held_out = corpus.held_out
    graphs = build_graphs(model)
    golden = golden_vectors(model, held_out, vocab, ["fp32", "int8"])
    scores = checked_scores(model, graphs, held_out, golden)
    precision = gate(scores)
    precisions: list[Precision] = ["fp32", "int8"] if precision == "int8" else ["fp32"]
    graphs = {kind: data for kind, data in graphs.items() if kind[0] in precisions}
    # Of the same weights on the same text; 8 bits do not move it.
    spread = {"standard_error": _measurements(run_dir)[0].standard_error}
    measured = [
        measurement(kind, "model", score).model_copy(update=spread)
        for kind, score in scores.items()
    ]
    manifest = LanguageModelManifest(
        format_version=FORMAT_VERSION,
        name=name or config.name,
        description=config.description,
        license=config.license,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="language_model",
        tokenization="character",
        normalization=config.data.normalization,
        vocab=describe_vocab(vocab),
        graphs=[describe_graph(*kind, data) for kind, data in graphs.items()],
        precision=precision,
        states=state_tensors(model),
        model=model_shape(model),
        limits=LanguageModelLimits(max_tokens=_DEFAULT_MAX_TOKENS),
        data=LanguageModelDataSource(
            name=config.data.title,
            source=config.data.source,
            license=config.data.license,
            sha256=corpus.sha256,
            documents=sum(x.documents for x in (corpus.train, corpus.valid, corpus.test)),
            train_chars=corpus.train.chars,
            valid_chars=corpus.valid.chars,
            test_chars=corpus.test.chars,
        ),
        metrics=LanguageModelMetrics(
            split=corpus.held_out_name,
            chars=held_out.chars,
            tokens=held_out.tokens,
            measurements=[
                *measured,
                *(x for x in _measurements(run_dir) if x.kind == "baseline"),
            ],
        ),
        training=TrainingRecord(
            config=record["config"],
            seed=config.training.seed,
            steps=record["step"],
            git_commit=git_commit(),
            versions=versions(),
            parent=record.get("parent"),
            curve=learning_curve(run_dir, LanguageModelTask.curve),
        ),
        golden=[x for x in golden if x.precision in precisions],
    )
    files = {file_name(*kind): data for kind, data in graphs.items()}
    return write_bundle(models_dir, manifest, {VOCAB_FILE: vocab_bytes(vocab), **files})


def build_graphs(model: LanguageModel) -> Graphs:
    """Every graph of a model, by precision and role."""
    return {
        (precision, role): onnx_graph.build(model, precision, role)
        for precision, roles in onnx_graph.ROLES.items()
        for role in roles
    }


def checked_scores(
    model: LanguageModel,
    graphs: Graphs,
    held_out: Split,
    golden: Sequence[LanguageModelGoldenVector],
) -> dict[Precision, Score]:
    """The held-out score of each precision, after every check. Raises ExportError.

    int8 is not among them where nobody can say whether its graphs are right; the log says so.
    """
    fp32 = OnnxModel.load(graphs["fp32", "sequence"], model.state_names)
    int8 = OnnxModel.load(graphs["int8", "sequence"], model.state_names)
    check_parity(model, fp32, held_out)
    check_golden(model, fp32, golden, "fp32")
    score = onnx_score(fp32, model, held_out)
    expected = evaluate(in_double(model), held_out, torch.device("cpu"))
    # Written so that NaN fails too.
    if not abs(score.loss - expected.loss) <= MAX_DIFFERENCE:
        raise ExportError(
            f"held-out loss: onnxruntime has {score.loss}, PyTorch in double precision "
            f"{expected.loss}; at most {MAX_DIFFERENCE} nats a token may lie between them. {ADVICE}"
        )
    try:
        check_int8(model, int8, graphs["int8", "step"], held_out)
        check_golden(model, int8, golden, "int8")
    except Unverifiable as why:
        _LOG.warning("the bundle has no int8 graphs: %s", why)
        return {"fp32": score}
    return {"fp32": score, "int8": onnx_score(int8, model, held_out)}


def gate(scores: Mapping[Precision, Score]) -> Precision:
    """What a bundle is served in unless a setting says otherwise."""
    if "int8" not in scores:
        return "fp32"
    loss = scores["int8"].bits_per_char - scores["fp32"].bits_per_char
    return "int8" if loss <= MAX_QUANTIZATION_LOSS else "fp32"


def describe_vocab(vocab: Vocabulary) -> VocabFile:
    """The vocabulary's file as the manifest writes it."""
    checksum = sha256(vocab_bytes(vocab))
    return VocabFile(file=VOCAB_FILE, sha256=checksum, size=len(vocab), pad=0, bos=1, eos=2, unk=3)


def state_tensors(model: LanguageModel) -> list[StateTensor]:
    """The state tensors as the manifest writes them."""
    shape = [model.config.hidden_size]
    return [StateTensor(name=x, dtype="float32", shape=shape) for x in model.state_names]


def model_shape(model: LanguageModel) -> LanguageModelShape:
    """What the model is, as the manifest writes it."""
    return LanguageModelShape(
        cell=model.config.cell,
        num_layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        embedding_dim=model.config.embedding_dim,
        parameters=parameter_count(model),
    )


def _measurements(run_dir: Path) -> list[LanguageModelMeasurement]:
    """What `train` left in the run's folder: the model, then the baselines."""
    path = run_dir / "metrics.json"
    if not path.exists():
        raise ExportError(f"{path}: not there; `train` writes it when it is done")
    entries = json.loads(path.read_text())["measurements"]
    return [LanguageModelMeasurement.model_validate(x) for x in entries]
