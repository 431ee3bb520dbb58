"""A trained language model to a bundle: graphs, parity, the gate for int8, known answers.

B batch, T time, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from service.bundle.files import vocab_bytes
from service.bundle.language_model import (
    LanguageModelDataSource,
    LanguageModelGoldenVector,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMeasurement,
    LanguageModelMetrics,
    LanguageModelShape,
)
from service.bundle.manifest import Precision, StateTensor
from service.bundle.store import write_bundle
from service.bundle.text import Vocabulary
from training.config import LanguageModelConfig
from training.data.corpus import Corpus, Split
from training.errors import ExportError
from training.evaluation.language_model import Score, evaluate
from training.evaluation.language_model_report import measurement
from training.export.gate import PRECISIONS, is_kept, measured, served_precision
from training.export.language_model_parity import (
    OnnxLanguageModel,
    check_golden,
    check_int8,
    check_parity,
    golden_vectors,
    onnx_score,
)
from training.export.manifest_parts import (
    Graphs,
    describe_graphs,
    describe_vocab,
    graph_files,
    heading,
    read_metrics,
    training_record,
)
from training.export.precision import ADVICE, MAX_DIFFERENCE, in_double
from training.graphs import language_model as onnx_graph
from training.loop.language_model import LanguageModelTask, load_best
from training.loop.trainer import parameter_count
from training.networks.language_model import LanguageModel

VOCAB_FILE = "vocab.json"
_DEFAULT_MAX_TOKENS = 4096


def export(run_dir: Path, corpus: Corpus, models_dir: Path, *, name: str | None = None) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    It holds int8 graphs if they are at most MAX_QUANTIZATION_LOSS worse on held-out text.
    """
    config, model, record = load_best(run_dir)
    vocab = Vocabulary(record["vocab"])
    if corpus.sha256 != record["corpus_sha256"] or corpus.vocab.tokens != vocab.tokens:
        raise ExportError(
            f"{run_dir}: the prepared text is not the one the weights were trained on"
        )
    graphs = build_graphs(model)
    golden = golden_vectors(model, corpus.held_out, vocab, PRECISIONS)
    scores = checked_scores(model, graphs, corpus.held_out, golden)
    precision = gate(scores)
    graphs = {kind: data for kind, data in graphs.items() if is_kept(kind[0], precision)}
    manifest = LanguageModelManifest(
        **heading(config, name),
        task="language_model",
        tokenization="character",
        normalization=config.data.normalization,
        vocab=describe_vocab(VOCAB_FILE, vocab),
        graphs=describe_graphs(graphs),
        precision=precision,
        states=state_tensors(model),
        model=model_shape(model),
        limits=LanguageModelLimits(max_tokens=_DEFAULT_MAX_TOKENS),
        data=_data_source(config, corpus),
        metrics=_metrics(run_dir, corpus, scores),
        training=training_record(run_dir, config, record, LanguageModelTask.curve),
        golden=[x for x in golden if is_kept(x.precision, precision)],
    )
    files = {VOCAB_FILE: vocab_bytes(vocab), **graph_files(graphs)}
    return write_bundle(models_dir, manifest, files)


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

    int8 is left out if nobody can say whether its graphs are right; the log says so.
    """
    fp32, int8 = (
        OnnxLanguageModel.load(graphs[x, "sequence"], model.state_names) for x in PRECISIONS
    )

    def check_eight_bits() -> None:
        check_int8(model, int8, graphs["int8", "step"], held_out)
        check_golden(model, int8, golden, "int8")

    check_parity(model, fp32, held_out)
    check_golden(model, fp32, golden, "fp32")
    score = onnx_score(fp32, model, held_out)
    _check_loss(score, model, held_out)
    return measured(score, check_eight_bits, lambda: onnx_score(int8, model, held_out))


def _check_loss(score: Score, model: LanguageModel, held_out: Split) -> None:
    """Hold the graph's held-out loss to PyTorch's in double precision. Raises ExportError."""
    expected = evaluate(in_double(model), held_out, torch.device("cpu"))
    # Written so that NaN fails too.
    if not abs(score.loss - expected.loss) <= MAX_DIFFERENCE:
        raise ExportError(
            f"held-out loss: onnxruntime has {score.loss}, PyTorch in double precision "
            f"{expected.loss}; they may differ by at most {MAX_DIFFERENCE} nats per token. {ADVICE}"
        )


def gate(scores: Mapping[Precision, Score]) -> Precision:
    """The precision that the bundle is served in by default."""
    return served_precision({x: score.bits_per_char for x, score in scores.items()})


def state_tensors(model: LanguageModel) -> list[StateTensor]:
    """The state tensors as the manifest writes them."""
    shape = [model.config.hidden_size]
    return [StateTensor(name=x, dtype="float32", shape=shape) for x in model.state_names]


def model_shape(model: LanguageModel) -> LanguageModelShape:
    """The model's shape, as the manifest writes it."""
    return LanguageModelShape(
        cell=model.config.cell,
        num_layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        embedding_dim=model.config.embedding_dim,
        parameters=parameter_count(model),
    )


def _data_source(config: LanguageModelConfig, corpus: Corpus) -> LanguageModelDataSource:
    return LanguageModelDataSource(
        name=config.data.title,
        source=config.data.source,
        license=config.data.license,
        sha256=corpus.sha256,
        documents=sum(x.documents for x in (corpus.train, corpus.valid, corpus.test)),
        train_chars=corpus.train.chars,
        valid_chars=corpus.valid.chars,
        test_chars=corpus.test.chars,
    )


def _metrics(
    run_dir: Path, corpus: Corpus, scores: Mapping[Precision, Score]
) -> LanguageModelMetrics:
    """The score of each precision, and the baselines that `train` left in the run's folder."""
    entries = read_metrics(run_dir)["measurements"]
    trained, *others = (LanguageModelMeasurement.model_validate(x) for x in entries)
    # It is that of the same weights on the same text; eight bits do not change it.
    spread = {"standard_error": trained.standard_error}
    exported = [
        measurement(precision, "model", score).model_copy(update=spread)
        for precision, score in scores.items()
    ]
    return LanguageModelMetrics(
        split=corpus.held_out_name,
        chars=corpus.held_out.chars,
        tokens=corpus.held_out.tokens,
        measurements=[*exported, *(x for x in others if x.kind == "baseline")],
    )
