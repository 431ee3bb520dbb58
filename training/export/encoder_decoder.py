"""A trained encoder-decoder to a bundle: graphs, parity, the gate for int8, metrics, examples."""

import datetime
import hashlib
import json
import logging
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
    TextSide,
    TokenizerFile,
)
from service.bundle.files import sha256, vocab_bytes
from service.bundle.manifest import (
    FORMAT_VERSION,
    Precision,
    Role,
    StateTensor,
    TrainingRecord,
    VocabFile,
)
from service.bundle.store import write_bundle
from service.bundle.tokenization import Subwords, Tokenizer
from training.config import EncoderDecoderConfig, TextSideConfig
from training.data.pairs import PairCorpus, PairSplit
from training.evaluation.encoder_decoder import length_limits, translate_texts
from training.export.encoder_decoder_parity import (
    OnnxEncoderDecoder,
    check_pair_golden,
    check_pair_int8,
    check_pair_parity,
    onnx_loss,
    pair_golden_vectors,
)
from training.export.manifest_parts import (
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
from training.graphs.decoder import build_decoder
from training.graphs.encoder import build_encoder
from training.graphs.interface import memory_shapes, state_sizes
from training.loop.encoder_decoder import EncoderDecoderTask, load_best
from training.loop.trainer import parameter_count
from training.networks.encoder_decoder import EncoderDecoder

EXAMPLES = 10
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_LOG = logging.getLogger(__name__)


def export(run_dir: Path, corpus: PairCorpus, models_dir: Path, *, name: str | None = None) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written.

    The int8 graphs are in it where they are at most MAX_QUANTIZATION_LOSS worse on held-out pairs.
    """
    config, model, source, target, record = load_best(run_dir)
    if corpus.sha256 != record["corpus_sha256"] or corpus.target.tokens != target.tokens:
        raise ExportError(f"{run_dir}: the prepared pairs are not those the weights come from")
    held_out = corpus.held_out[0]
    graphs = build_graphs(model)
    golden = pair_golden_vectors(model, held_out, _PRECISIONS)
    losses = checked_losses(model, graphs, held_out, golden)
    precision = gate(losses)
    kept = {kind: data for kind, data in graphs.items() if kind[0] in {"fp32", precision}}
    limits = length_limits(corpus.train, config.data.max_source_tokens)
    files = {file_name(*kind): data for kind, data in kept.items()}
    shared = config.data.share_vocab
    sides = []
    for label, side, tokenizer in (
        ("source", config.data.source, source),
        ("target", config.data.target, target),
    ):
        text_side, side_files = describe_side("both" if shared else label, side, tokenizer)
        sides.append(text_side)
        files |= side_files
    manifest = EncoderDecoderManifest(
        format_version=FORMAT_VERSION,
        name=name or config.name,
        description=config.description,
        license=config.license,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="encoder_decoder",
        source=sides[0],
        target=sides[1],
        graphs=[describe_graph(*kind, data) for kind, data in kept.items()],
        precision=precision,
        states=state_tensors(model),
        memory=memory_tensors(model),
        memory_stride=config.model.pool_stride if config.model.encoder == "crnn" else 1,
        model=model_shape(model),
        limits=limits,
        data=EncoderDecoderDataSource(
            name=config.data.title,
            source=config.data.origin,
            license=config.data.license,
            sha256=corpus.sha256,
            train_pairs=len(corpus.train),
            valid_pairs=len(corpus.valid),
        ),
        metrics=_metrics(run_dir, losses),
        examples=_examples(config, model, corpus, limits, held_out),
        training=TrainingRecord(
            config=record["config"],
            seed=config.training.seed,
            steps=record["step"],
            git_commit=git_commit(),
            versions=versions(),
            parent=record.get("parent"),
            curve=learning_curve(run_dir, EncoderDecoderTask.curve),
        ),
        golden=[x for x in golden if x.precision in {"fp32", precision}],
    )
    return write_bundle(models_dir, manifest, files)


def build_graphs(model: EncoderDecoder) -> Graphs:
    """Every graph of a model, by precision and role."""
    graphs: dict[tuple[Precision, Role], bytes] = {}
    for precision in _PRECISIONS:
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

    int8 is not among them where nobody can say whether its graphs are right; the log says so.
    """
    fp32, int8 = (
        OnnxEncoderDecoder.load(model, graphs[x, "encoder"], graphs[x, "decoder"])
        for x in _PRECISIONS
    )
    check_pair_parity(model, fp32, held_out)
    check_pair_golden(model, fp32, golden, "fp32")
    losses: dict[Precision, float] = {"fp32": onnx_loss(fp32, held_out)}
    try:
        check_pair_int8(model, int8, held_out)
        check_pair_golden(model, int8, golden, "int8")
    except Unverifiable as why:
        _LOG.warning("the bundle has no int8 graphs: %s", why)
        return losses
    return losses | {"int8": onnx_loss(int8, held_out)}


def gate(losses: Mapping[Precision, float]) -> Precision:
    """What a bundle is served in unless a setting says otherwise."""
    if "int8" not in losses:
        return "fp32"
    worse_bits = (losses["int8"] - losses["fp32"]) / math.log(2)
    return "int8" if worse_bits <= MAX_QUANTIZATION_LOSS else "fp32"


def describe_side(
    label: str, config: TextSideConfig, tokenizer: Tokenizer
) -> tuple[TextSide, dict[str, bytes]]:
    """One side as the manifest writes it, and its files; `label` begins their names."""
    data = vocab_bytes(tokenizer)
    files = {f"{label}.vocab.json": data}
    vocab = VocabFile(
        file=f"{label}.vocab.json",
        sha256=sha256(data),
        size=len(tokenizer),
        pad=0,
        bos=1,
        eos=2,
        unk=3,
    )
    described = None
    if isinstance(tokenizer, Subwords):
        document = tokenizer.document.encode()
        files[f"{label}.tokenizer.json"] = document
        described = TokenizerFile(file=f"{label}.tokenizer.json", sha256=sha256(document))
    side = TextSide(
        lang=config.lang,
        tokenization=config.tokenization,
        normalization=config.normalization,
        vocab=vocab,
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
    """What the model is, as the manifest writes it."""
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


def _metrics(run_dir: Path, losses: Mapping[Precision, float]) -> list[EncoderDecoderMetrics]:
    """What `train` left in the run's folder, and the loss of each precision."""
    path = run_dir / "metrics.json"
    if not path.exists():
        raise ExportError(f"{path}: not there; `train` writes it when it is done")
    found = [
        EncoderDecoderMetrics.model_validate(entry)
        for entry in json.loads(path.read_text())["pairs"]
    ]
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
    """Held-out sources in the order of their SHA-256: nobody picks them."""
    texts = sorted(held_out.references, key=lambda x: hashlib.sha256(x.encode()).digest())
    texts = texts[:EXAMPLES]
    beam_size = config.training.beam_size
    device = torch.device("cpu")
    found = translate_texts(model, corpus, texts, limits, beam_size=beam_size, device=device)
    return [
        Example(source=text, targets=held_out.references[text], translation=translation)
        for text, translation in zip(texts, found, strict=True)
    ]
