"""A trained language model to a bundle: graphs, parity, the gate for int8, known answers.

B batch, T time, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.bundle.files import vocab_bytes
from service.bundle.language_model import (
    LanguageModelDataSource,
    LanguageModelGoldenVector,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMeasurement,
    LanguageModelMetrics,
)
from service.bundle.manifest import Precision, StateTensor
from service.bundle.store import write_bundle
from service.bundle.text import Vocabulary
from training.config import AnyLanguageModelConfig
from training.data.corpus import Corpus, Split
from training.data.splits import SPLITS
from training.errors import ExportError
from training.evaluation.language_model import Score, evaluate
from training.evaluation.language_model_report import measure_baselines, measurement
from training.export.adapting import added
from training.export.gate import PRECISIONS, is_kept, measured, served_precision
from training.export.guesses import guess_curve
from training.export.language_model_parity import (
    OnnxLanguageModel,
    check_golden,
    check_int8,
    check_parity,
    check_steps,
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
from training.export.mixture import Parts, of_networks, of_ngram
from training.export.percentiles import held_out_percentiles
from training.export.precision import ADVICE, MAX_DIFFERENCE, in_double
from training.graphs import language_model as onnx_graph
from training.loop.language_model import LanguageModelTask, open_best
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel
from training.networks.ngram import NGram

VOCAB_FILE = "vocab.json"
# LSTMs and GRUs that multiply no more weights a token read a text two to three times as fast in
# fp32, since ONNX has an operator for them, and write it nearly as fast (docs/decisions.md).
MAX_FP32_WEIGHTS = 1 << 16
_DEFAULT_MAX_TOKENS = 4096
_CPU = torch.device("cpu")


def export(
    run_dir: Path,
    corpus: Corpus,
    models_dir: Path,
    *,
    name: str | None = None,
    ensemble: Sequence[tuple[Path, Corpus]] = (),
) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    The model is a mixture if the configuration names an n-gram, or with an `ensemble`: other runs
    on the same text, each with its corpus. The bundle has int8 graphs if they are at most
    MAX_QUANTIZATION_LOSS worse on held-out text, and is served in them unless it is small.
    """
    config, first, record = open_best(run_dir)
    _check_corpus(run_dir, record, corpus)
    models = [first, *(_member(*other, corpus) for other in ensemble)]
    parts = _parts(models, config, corpus)
    model, held_out = parts.model, corpus.held_out
    graphs = build_graphs(model, adapting=parts.adaptation is not None)
    precisions = [x for x in PRECISIONS if (x, "sequence") in graphs]
    golden = golden_vectors(model, held_out, corpus.vocab, precisions)
    scores = checked_scores(model, graphs, held_out, golden)
    allowed = gate(scores)
    graphs = {kind: data for kind, data in graphs.items() if is_kept(kind[0], allowed)}
    adapting = added(model, parts.adaptation, graphs, held_out)
    graphs |= adapting.graphs
    manifest = LanguageModelManifest(
        **heading(config, name),
        task="language_model",
        tokenization="character",
        normalization=config.data.normalization,
        vocab=describe_vocab(VOCAB_FILE, corpus.vocab),
        graphs=describe_graphs(graphs),
        precision=default_precision(model, allowed),
        states=state_tensors(model),
        model=parts.shapes()[0],
        parts=parts.described(),
        exponent=model.exponent or 1.0,
        fit=parts.fit,
        adapt=parts.adapt_record(),
        limits=LanguageModelLimits(max_tokens=_DEFAULT_MAX_TOKENS),
        data=_data_source(config, corpus),
        metrics=_metrics(
            corpus,
            scores,
            [
                *adapting.measurements,
                *parts.measured(held_out),
                *_baselines(run_dir, config, corpus, scores["fp32"], parts),
            ],
        ),
        percentiles=held_out_percentiles(model, graphs, config, corpus),
        guesses=guess_curve(model, config, corpus),
        training=training_record(run_dir, config, record, LanguageModelTask.curve),
        golden=[*(x for x in golden if is_kept(x.precision, allowed)), *adapting.golden],
    )
    files = {VOCAB_FILE: vocab_bytes(corpus.vocab), **graph_files(graphs)}
    return write_bundle(models_dir, manifest, files)


def _parts(
    models: Sequence[LanguageModel | NGram], config: AnyLanguageModelConfig, corpus: Corpus
) -> Parts:
    networks = [network for model in models for network in model.networks]
    ngrams = [model.ngram for model in models if model.ngram is not None]
    if not ngrams:
        return of_networks(networks, config.ngram, corpus, config.adapt)
    if len(models) > 1:
        raise ExportError(
            "an ensemble consists of networks: to mix an n-gram with them, add [ngram] to the "
            "first run's config.toml"
        )
    return of_ngram(ngrams[0])


def _member(run_dir: Path, own: Corpus, corpus: Corpus) -> LanguageModel | NGram:
    """The model of another run of an ensemble. Raises ExportError unless its text is the same."""
    _, model, record = open_best(run_dir)
    _check_corpus(run_dir, record, own)
    same = own.vocab.tokens == corpus.vocab.tokens and all(
        np.array_equal(own.split(x).ids, corpus.split(x).ids) for x in SPLITS
    )
    if not same:
        raise ExportError(
            f"{run_dir}: an ensemble needs runs on the same text, split and vocabulary as the "
            "first one: otherwise one would be fitted or measured on text that another was "
            "trained on"
        )
    return model


def _check_corpus(run_dir: Path, record: Mapping[str, Any], corpus: Corpus) -> None:
    tokens = Vocabulary(record["vocab"]).tokens
    if corpus.sha256 != record["corpus_sha256"] or corpus.vocab.tokens != tokens:
        raise ExportError(
            f"{run_dir}: the prepared text is not the one the weights were trained on"
        )


def build_graphs(model: AnyLanguageModel, *, adapting: bool = False) -> Graphs:
    """Every graph of a model, by precision and role; the adapting ones are `adapting_graphs`."""
    return {
        (precision, role): onnx_graph.build(model, precision, role, adapting=adapting)
        for precision, roles in onnx_graph.roles(model).items()
        for role in roles
    }


def checked_scores(
    model: AnyLanguageModel,
    graphs: Graphs,
    held_out: Split,
    golden: Sequence[LanguageModelGoldenVector],
) -> dict[Precision, Score]:
    """The held-out score of each precision, after every check. Raises ExportError.

    int8 is left out if nobody can say whether its graphs are right; the log says so.
    """
    fp32 = OnnxLanguageModel.load(graphs["fp32", "sequence"], model.state_names)
    check_parity(model, fp32, held_out)
    if ("fp32", "step") in graphs:
        check_steps(model, fp32, graphs["fp32", "step"], held_out)
    check_golden(model, fp32, golden, "fp32")
    exact = evaluate(in_double(model), held_out, _CPU, expected=True)

    def scored(graph: OnnxLanguageModel) -> Score:
        """With the spread of the exact score, which eight bits do not change."""
        found = onnx_score(graph, model, held_out)
        return dataclasses.replace(exact, nats=found.nats)

    score = scored(fp32)
    _check_loss(score, exact)
    if ("int8", "sequence") not in graphs:
        return {"fp32": score}
    int8 = OnnxLanguageModel.load(graphs["int8", "sequence"], model.state_names)

    def check_eight_bits() -> None:
        check_int8(model, int8, graphs["int8", "step"], held_out)
        check_golden(model, int8, golden, "int8")

    return measured(score, check_eight_bits, lambda: scored(int8))


def _check_loss(score: Score, exact: Score) -> None:
    """Hold the graph's held-out loss to PyTorch's in double precision. Raises ExportError."""
    # Written so that NaN fails too.
    if not abs(score.loss - exact.loss) <= MAX_DIFFERENCE:
        raise ExportError(
            f"held-out loss: onnxruntime has {score.loss}, PyTorch in double precision "
            f"{exact.loss}; they may differ by at most {MAX_DIFFERENCE} nats per token. {ADVICE}"
        )


def gate(scores: Mapping[Precision, Score]) -> Precision:
    """int8 if the bundle may hold it, else fp32."""
    return served_precision({x: score.bits_per_char for x, score in scores.items()})


def default_precision(model: AnyLanguageModel, allowed: Precision) -> Precision:
    """The precision that the bundle is served in by default, if `allowed` is the best it holds."""
    weights = sum(
        layer.weight_hh.numel() + (layer.weight_ih.numel() if i else 0)
        for network in model.networks
        for i, layer in enumerate(network.recurrent_layers)
    )
    has_operators = all(network.config.cell != "rnn" for network in model.networks)
    return "fp32" if has_operators and weights <= MAX_FP32_WEIGHTS else allowed


def state_tensors(model: AnyLanguageModel) -> list[StateTensor]:
    """The state tensors as the manifest writes them."""
    states = zip(model.state_names, model.state_shapes, strict=True)
    return [StateTensor(name=name, dtype="float32", shape=shape) for name, shape in states]


def _metrics(
    corpus: Corpus,
    scores: Mapping[Precision, Score],
    others: Sequence[LanguageModelMeasurement],
) -> LanguageModelMetrics:
    """The scores of the model itself, and the `others` on the same text."""
    return LanguageModelMetrics(
        split=corpus.held_out_name,
        chars=corpus.held_out.chars,
        tokens=corpus.held_out.tokens,
        measurements=[*(measurement(x, "model", score) for x, score in scores.items()), *others],
        expected_bits_per_char=scores["fp32"].expected_bits_per_char,
    )


def _data_source(config: AnyLanguageModelConfig, corpus: Corpus) -> LanguageModelDataSource:
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


def _baselines(
    run_dir: Path, config: AnyLanguageModelConfig, corpus: Corpus, score: Score, parts: Parts
) -> list[LanguageModelMeasurement]:
    """The baselines that `train` left in the run's folder; for a mixture, measured again.

    How far they are from the model is measured text by text, and a mixture is another model.
    """
    if len(parts.shares.weights) > 1:
        vocab_size = len(corpus.vocab)
        return measure_baselines(corpus.train, corpus.held_out, vocab_size, config.baselines, score)
    entries = read_metrics(run_dir)["measurements"]
    found = (LanguageModelMeasurement.model_validate(x) for x in entries)
    return [x for x in found if x.kind == "baseline"]
