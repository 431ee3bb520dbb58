"""A trained encoder-decoder to a bundle: graphs, parity, the gate for int8, metrics, examples."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from service.bundle.encoder_decoder import (
    EncoderDecoderDataSource,
    EncoderDecoderGoldenVector,
    EncoderDecoderLimits,
    EncoderDecoderManifest,
    EncoderDecoderMeasurement,
    EncoderDecoderMetrics,
    EncoderDecoderShape,
    Example,
    MemoryTensor,
)
from service.bundle.files import sha256, vocab_bytes
from service.bundle.infill import Infill
from service.bundle.manifest import Precision, Role, StateTensor
from service.bundle.store import write_bundle
from service.bundle.text_side import TextSide, TokenizerFile
from service.bundle.tokenization import Subwords, Tokenizer
from training.config import EncoderDecoderConfig, TextSideConfig
from training.data.pairs import PairCorpus, PairSplit
from training.errors import ExportError
from training.evaluation.confidence import Judge, measured_confidence
from training.evaluation.encoder_decoder import length_limits, translate_texts
from training.export.confidence import GraphSteps
from training.export.encoder_decoder_parity import (
    OnnxEncoderDecoder,
    check_golden,
    check_int8,
    check_parity,
    golden_vectors,
    onnx_loss,
)
from training.export.gate import PRECISIONS, is_kept, measured, served_precision
from training.export.manifest_parts import (
    Graphs,
    describe_graphs,
    describe_vocab,
    graph_files,
    heading,
    read_metrics,
    training_record,
)
from training.graphs.decoder import build_decoder
from training.graphs.encoder import build_encoder
from training.graphs.interface import memory_shapes, state_sizes
from training.loop.encoder_decoder import EncoderDecoderTask, load_best
from training.loop.trainer import parameter_count
from training.networks.encoder_decoder import EncoderDecoder

EXAMPLES = 10
_ROLES: tuple[Role, Role] = ("encoder", "decoder")


def export(
    run_dir: Path,
    corpus: PairCorpus,
    models_dir: Path,
    *,
    name: str | None = None,
    infill: Infill | None = None,
) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    `infill` says how blanks are written, where it was trained to fill them. The bundle
    holds int8 graphs if they are at most MAX_QUANTIZATION_LOSS worse on held-out pairs.
    """
    config, model, source, target, record = load_best(run_dir)
    if corpus.sha256 != record["corpus_sha256"] or corpus.target.tokens != target.tokens:
        raise ExportError(
            f"{run_dir}: the prepared pairs are not those the weights were trained on"
        )
    held_out = corpus.held_out[0]
    graphs = build_graphs(model)
    golden = golden_vectors(model, held_out, PRECISIONS)
    losses = checked_losses(model, graphs, held_out, golden)
    precision = gate(losses)
    graphs = {kind: data for kind, data in graphs.items() if is_kept(kind[0], precision)}
    labels = ("both", "both") if config.data.share_vocab else ("source", "target")
    source_side, source_files = describe_side(labels[0], config.data.source, source)
    target_side, target_files = describe_side(labels[1], config.data.target, target)
    limits = length_limits(corpus.train, config.data.max_source_tokens)
    served = OnnxEncoderDecoder.load(model, *(graphs[precision, x] for x in _ROLES))
    judge = Judge(
        steps=GraphSteps(served),
        precision=precision,
        source=source,
        target=target,
        limits=limits,
    )
    manifest = EncoderDecoderManifest(
        **heading(config, name),
        task="encoder_decoder",
        source=source_side,
        target=target_side,
        graphs=describe_graphs(graphs),
        precision=precision,
        states=state_tensors(model),
        memory=memory_tensors(model),
        memory_stride=config.model.pool_stride if config.model.encoder == "crnn" else 1,
        model=model_shape(model),
        limits=limits,
        infill=infill,
        confidence=None if infill else measured_confidence(judge, corpus.valid, corpus.tests),
        data=_data_source(config, corpus),
        metrics=_metrics(run_dir, losses),
        examples=_examples(config, model, corpus, limits, held_out),
        training=training_record(run_dir, config, record, EncoderDecoderTask.curve),
        golden=[x for x in golden if is_kept(x.precision, precision)],
    )
    return write_bundle(
        models_dir, manifest, {**graph_files(graphs), **source_files, **target_files}
    )


def build_graphs(model: EncoderDecoder) -> Graphs:
    """Every graph of a model, by precision and role."""
    graphs: dict[tuple[Precision, Role], bytes] = {}
    for precision in PRECISIONS:
        graphs[precision, "encoder"] = build_encoder(model, precision)
        graphs[precision, "decoder"] = build_decoder(model, precision)
    return graphs


def checked_losses(
    model: EncoderDecoder,
    graphs: Graphs,
    held_out: PairSplit,
    golden: Sequence[EncoderDecoderGoldenVector],
) -> dict[Precision, float]:
    """The held-out loss of each precision, after every check. Raises ExportError.

    int8 is left out if nobody can say whether its graphs are right; the log says so.
    """
    fp32, int8 = (
        OnnxEncoderDecoder.load(model, graphs[x, "encoder"], graphs[x, "decoder"])
        for x in PRECISIONS
    )

    def check_eight_bits() -> None:
        check_int8(model, int8, held_out)
        check_golden(model, int8, golden, "int8")

    check_parity(model, fp32, held_out)
    check_golden(model, fp32, golden, "fp32")
    return measured(onnx_loss(fp32, held_out), check_eight_bits, lambda: onnx_loss(int8, held_out))


def gate(losses: Mapping[Precision, float]) -> Precision:
    """The precision that the bundle is served in by default."""
    return served_precision({x: loss / math.log(2) for x, loss in losses.items()})


def describe_side(
    label: str, config: TextSideConfig, tokenizer: Tokenizer
) -> tuple[TextSide, dict[str, bytes]]:
    """One side as the manifest writes it, and its files; `label` begins their names."""
    file = f"{label}.vocab.json"
    files = {file: vocab_bytes(tokenizer)}
    described = None
    if isinstance(tokenizer, Subwords):
        document = tokenizer.document.encode()
        files[f"{label}.tokenizer.json"] = document
        described = TokenizerFile(file=f"{label}.tokenizer.json", sha256=sha256(document))
    side = TextSide(
        lang=config.lang,
        tokenization=config.tokenization,
        normalization=config.normalization,
        vocab=describe_vocab(file, tokenizer),
        tokenizer=described,
    )
    return side, files


def state_tensors(model: EncoderDecoder) -> list[StateTensor]:
    """The decoder's states as the manifest writes them."""
    sizes = state_sizes(model).items()
    return [StateTensor(name=name, dtype="float32", shape=[size]) for name, size in sizes]


def memory_tensors(model: EncoderDecoder) -> list[MemoryTensor]:
    """The memory as the manifest writes it."""
    shapes = memory_shapes(model).items()
    return [MemoryTensor(name=name, dtype="float32", shape=shape) for name, shape in shapes]


def model_shape(model: EncoderDecoder) -> EncoderDecoderShape:
    """The model's shape, as the manifest writes it."""
    config = model.config
    return EncoderDecoderShape(
        cell=config.cell,
        encoder=config.encoder,
        encoder_layers=config.encoder_layers,
        encoder_hidden_size=config.encoder_hidden_size,
        decoder_layers=config.decoder_layers,
        hidden_size=config.hidden_size,
        embedding_dim=config.embedding_dim,
        attention=config.attention,
        input_feeding=config.input_feeding,
        parameters=parameter_count(model),
    )


def _data_source(config: EncoderDecoderConfig, corpus: PairCorpus) -> EncoderDecoderDataSource:
    return EncoderDecoderDataSource(
        name=config.data.title,
        source=config.data.origin,
        license=config.data.license,
        sha256=corpus.sha256,
        train_pairs=len(corpus.train),
        valid_pairs=len(corpus.valid),
    )


def _metrics(run_dir: Path, losses: Mapping[Precision, float]) -> list[EncoderDecoderMetrics]:
    """What `train` left in the run's folder, and the loss of each precision."""
    found = [EncoderDecoderMetrics.model_validate(x) for x in read_metrics(run_dir)["pairs"]]
    exported = [
        EncoderDecoderMeasurement(
            name=f"{precision}, onnxruntime, first pairs", kind="model", values={"loss": loss}
        )
        for precision, loss in losses.items()
    ]
    first = found[0].model_copy(update={"measurements": [*found[0].measurements, *exported]})
    return [first, *found[1:]]


def _examples(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    corpus: PairCorpus,
    limits: EncoderDecoderLimits,
    held_out: PairSplit,
) -> list[Example]:
    """Held-out sources in the order of their SHA-256, so that nobody picks them."""
    texts = sorted(held_out.references, key=lambda x: hashlib.sha256(x.encode()).digest())
    texts = texts[:EXAMPLES]
    beam_size = config.training.beam_size
    device = torch.device("cpu")
    found = translate_texts(model, corpus, texts, limits, beam_size=beam_size, device=device)
    return [
        Example(
            source=corpus.readable(text),
            targets=[corpus.readable(target) for target in held_out.references[text]],
            translation=corpus.readable(translation),
        )
        for text, translation in zip(texts, found, strict=True)
    ]
