"""A trained labeler to a bundle: temperature, graphs, parity, the gate for int8, metrics."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from service.bundle.labeler import (
    LabelerDataSource,
    LabelerGoldenVector,
    LabelerLimits,
    LabelerManifest,
    LabelerMeasurement,
    LabelerMetrics,
    LabelerShape,
    LabelledExample,
    Labels,
    LinearChain,
)
from service.bundle.manifest import Precision, StateTensor
from service.bundle.store import write_bundle
from training.config import LabelerConfig
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.errors import ExportError
from training.evaluation.labeler import found_labels, judge_split, read_texts
from training.evaluation.linear_chain import chain_of
from training.evaluation.restore_report import split_values
from training.export.encoder_decoder import describe_side
from training.export.gate import PRECISIONS, is_kept, measured, served_precision
from training.export.labeler_parity import (
    OnnxLabeler,
    Tempered,
    check_golden,
    check_int8,
    check_parity,
    golden_vectors,
)
from training.export.manifest_parts import (
    Graphs,
    describe_graphs,
    graph_files,
    heading,
    read_metrics,
    training_record,
)
from training.export.temperature import fit_temperature, tempered
from training.graphs.labeler import build_labeler
from training.loop.labeler import LabelerTask, load_best
from training.loop.trainer import parameter_count
from training.networks.labeler import Labeler

EXAMPLES = 10


def export(
    run_dir: Path, corpus: LabelledCorpus, models_dir: Path, *, name: str | None = None
) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    The bundle holds int8 graphs if they are at most MAX_QUANTIZATION_LOSS worse on held-out texts.
    """
    config, trained, tokenizer, labels, record = load_best(run_dir)
    if (corpus.sha256, corpus.labels) != (record["corpus_sha256"], labels):
        raise ExportError(
            f"{run_dir}: the prepared texts are not those the weights were trained on"
        )
    temperature = fit_temperature(trained, corpus.valid, labels)
    model = Tempered(tempered(trained, temperature), labels)
    graphs = build_graphs(model)
    golden = golden_vectors(model, corpus.held_out[0], PRECISIONS)
    metrics = checked_metrics(model, graphs, corpus.held_out, golden)
    precision = gate(metrics)
    graphs = {kind: data for kind, data in graphs.items() if is_kept(kind[0], precision)}
    served = OnnxLabeler.load(model, graphs[precision, "labels"])
    side, files = describe_side("text", config.data.text, tokenizer)
    manifest = LabelerManifest(
        **heading(config, name),
        task="labeler",
        text=side,
        labels=labels,
        chain=described_chain(model.network),
        graphs=describe_graphs(graphs),
        precision=precision,
        states=state_tensors(model.network),
        temperature=temperature,
        model=model_shape(model.network),
        limits=LabelerLimits(max_tokens=config.data.max_tokens),
        data=_data_source(config, corpus),
        metrics=_metrics(run_dir, metrics),
        examples=_examples(served, model, corpus.held_out[0]),
        training=training_record(run_dir, config, record, LabelerTask.curve),
        golden=[x for x in golden if is_kept(x.precision, precision)],
    )
    return write_bundle(models_dir, manifest, {**graph_files(graphs), **files})


def build_graphs(model: Tempered) -> Graphs:
    """Every graph of a model, by precision and role."""
    several = model.labels.several
    return {(x, "labels"): build_labeler(model.network, x, several=several) for x in PRECISIONS}


Measurements = Mapping[str, LabelerMeasurement]  # by the split's name


def checked_metrics(
    model: Tempered,
    graphs: Graphs,
    held_out: Sequence[LabelledSplit],
    golden: Sequence[LabelerGoldenVector],
) -> dict[Precision, Measurements]:
    """What the graphs of each precision measure on each split, after every check.

    int8 is left out if nobody can say whether its graphs are right; the log says so. Raises
    ExportError.
    """
    fp32, int8 = (OnnxLabeler.load(model, graphs[x, "labels"]) for x in PRECISIONS)

    def check_eight_bits() -> None:
        check_int8(model, int8, held_out[0])
        check_golden(model, int8, golden, "int8")

    check_parity(model, fp32, held_out[0])
    check_golden(model, fp32, golden, "fp32")
    return measured(
        _measured(model, fp32, held_out, "fp32"),
        check_eight_bits,
        lambda: _measured(model, int8, held_out, "int8"),
    )


def gate(metrics: Mapping[Precision, Measurements]) -> Precision:
    """The precision that the bundle is served in by default: by the first split's loss."""
    first = {x: next(iter(found.values())) for x, found in metrics.items()}
    return served_precision({x: found.values["loss"] / math.log(2) for x, found in first.items()})


def described_chain(model: Labeler) -> LinearChain | None:
    """A chain as the manifest writes it."""
    if model.chain is None:
        return None
    parts = (model.chain.transitions, model.chain.first, model.chain.last)
    transitions, first, last = (np.round(x.detach().double().numpy(), 8).tolist() for x in parts)
    return LinearChain(transitions=transitions, first=first, last=last)


def state_tensors(model: Labeler) -> list[StateTensor]:
    """The states as the manifest writes them."""
    shape = [model.config.hidden_size]
    return [StateTensor(name=name, dtype="float32", shape=shape) for name in model.state_names]


def model_shape(model: Labeler) -> LabelerShape:
    """The model's shape, as the manifest writes it."""
    config = model.config
    return LabelerShape(
        cell=config.cell,
        direction=model.head.direction,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        embedding_dim=config.embedding_dim,
        pooling=model.head.pooling,
        parameters=parameter_count(model),
    )


def _data_source(config: LabelerConfig, corpus: LabelledCorpus) -> LabelerDataSource:
    return LabelerDataSource(
        name=config.data.title,
        source=config.data.origin,
        license=config.data.license,
        sha256=corpus.sha256,
        train_texts=len(corpus.train),
        valid_texts=len(corpus.valid),
    )


def _measured(
    model: Tempered, onnx_model: OnnxLabeler, splits: Sequence[LabelledSplit], name: Precision
) -> Measurements:
    chain = None if model.network.chain is None else chain_of(model.network.chain)
    found = {}
    for split in splits:
        judged = judge_split(
            onnx_model.read, split, model.labels, forward=model.reads_forward, chain=chain
        )
        values = split_values(judged, split, model.labels)
        found[split.name] = LabelerMeasurement(name=name, kind="model", values=values)
    return found


def _metrics(run_dir: Path, exported: Mapping[Precision, Measurements]) -> list[LabelerMetrics]:
    """What `train` left in the run's folder, and what the graphs of each precision measure."""
    found = [LabelerMetrics.model_validate(x) for x in read_metrics(run_dir)["labels"]]
    return [
        x.model_copy(
            update={"measurements": [*x.measurements, *(own[x.split] for own in exported.values())]}
        )
        for x in found
    ]


def _examples(
    onnx_model: OnnxLabeler, model: Tempered, held_out: LabelledSplit
) -> list[LabelledExample]:
    """Held-out texts in the order of their SHA-256, so that nobody picks them."""
    order = sorted(
        range(len(held_out)), key=lambda i: hashlib.sha256(held_out.texts[i].encode()).digest()
    )[:EXAMPLES]
    chain = None if model.network.chain is None else chain_of(model.network.chain)
    tokens = [held_out.tokens[i] for i in order]
    answers: dict[int, Sequence[int]] = {}
    for indices, logprobs in read_texts(
        onnx_model.read, tokens, model.labels, forward=model.reads_forward
    ):
        found = found_labels(model.labels, logprobs, chain)
        answers |= {i: ids.tolist() for i, ids in zip(indices, found, strict=True)}
    return [
        LabelledExample(
            text=held_out.texts[i],
            labels=_names(model.labels, held_out.labels[i].tolist()),
            found=_names(model.labels, answers[place]),
        )
        for place, i in enumerate(order)
    ]


def _names(labels: Labels, ids: Sequence[int]) -> list[str]:
    return [labels.names[i] for i in ids]
