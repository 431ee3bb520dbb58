"""Small bundles: one without a real graph for the store, and untrained models for the rest."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
import torch

from service.bundle.confidence import Confidence
from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.files import sha256, vocab_bytes
from service.bundle.infill import MARKS, infill_of
from service.bundle.language_model import (
    LanguageModelBundle,
    LanguageModelGoldenVector,
    LanguageModelLimits,
    LanguageModelManifest,
)
from service.bundle.manifest import Graph, Precision, StateTensor
from service.bundle.text import (
    BOS_ID,
    EOS_ID,
    SPECIAL_TOKENS,
    Normalization,
    SideNormalization,
    Vocabulary,
)
from service.bundle.text_side import TextSide
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenizer
from training.config import EncoderDecoderNetworkConfig, LanguageModelNetworkConfig, TextSideConfig
from training.data.corpus import Split
from training.data.pairs import PairSplit
from training.export.encoder_decoder import build_graphs as build_encoder_decoder_graphs
from training.export.encoder_decoder import (
    describe_side,
    memory_tensors,
    model_shape,
    state_tensors,
)
from training.export.encoder_decoder_parity import golden_vectors as encoder_decoder_golden_vectors
from training.export.language_model import build_graphs
from training.export.language_model_parity import golden_vectors
from training.export.manifest_parts import describe_graph, file_name
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.language_model import LanguageModel

ALPHABET = "\n !',.?abcdefghijklmnopqrstuvwxyzABC\x00\x85\u2028é\u0301ß\U0001f407"
HIDDEN = 12


def manifest_of(
    vocab: Vocabulary, graphs: Sequence[Graph], **changes: Any
) -> LanguageModelManifest:
    """A manifest of a model that nobody trained; `changes` replace fields."""
    document: dict[str, Any] = {
        "format_version": 2,
        "name": "plain",
        "description": "A bundle for tests.",
        "license": "CC0-1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "language_model",
        "tokenization": "character",
        "normalization": Normalization(),
        "vocab": {
            "file": "vocab.json",
            "sha256": sha256(vocab_bytes(vocab)),
            "size": len(vocab),
            "pad": 0,
            "bos": 1,
            "eos": 2,
            "unk": 3,
        },
        "graphs": list(graphs),
        "precision": "fp32",
        "states": [StateTensor(name="h0", dtype="float32", shape=[HIDDEN])],
        "model": {
            "cell": "gru",
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "embedding_dim": 5,
            "parameters": 1,
        },
        "limits": LanguageModelLimits(max_tokens=1000),
        "data": {
            "name": "nothing",
            "source": "nowhere",
            "license": "CC0-1.0",
            "sha256": "0" * 64,
            "documents": 1,
            "train_chars": 1,
            "valid_chars": 1,
            "test_chars": 0,
        },
        "metrics": {"split": "valid", "chars": 1, "tokens": 1, "measurements": []},
        "training": {"config": {}, "seed": 1, "steps": 0, "git_commit": None, "versions": {}},
        "golden": [
            LanguageModelGoldenVector(
                precision="fp32", tokens=[1, 2], logprobs=[-1.0], tolerance=1e-5
            )
        ],
    }
    return LanguageModelManifest.model_validate(document | changes)


def plain_files(
    name: str = "plain", characters: str = "abc", graph: bytes = b"not a graph", **changes: Any
) -> tuple[LanguageModelManifest, dict[str, bytes]]:
    """A bundle that the store accepts, but no session would."""
    vocab = Vocabulary.of_characters(characters)
    described = Graph(
        role="sequence",
        precision="fp32",
        file="sequence.fp32.onnx",
        sha256=sha256(graph),
        size_bytes=len(graph),
        opset=18,
        inputs=[],
        outputs=[],
    )
    manifest = manifest_of(vocab, [described], name=name, **changes)
    return manifest, {"vocab.json": vocab_bytes(vocab), "sequence.fp32.onnx": graph}


def tiny_model(cell: str, vocab_size: int, scale: float = 2.0) -> LanguageModel:
    """An untrained model with weights large enough to have opinions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        config = LanguageModelNetworkConfig.model_validate(
            {"cell": cell, "num_layers": 2, "hidden_size": HIDDEN, "embedding_dim": 5}
        )
        model = LanguageModel(config, vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.eval()


def tiny_files(
    cell: str, *, characters: str = ALPHABET, scale: float = 2.0, **changes: Any
) -> tuple[LanguageModelManifest, dict[str, bytes]]:
    """`tiny-<cell>`: an untrained model, as the exporter would write it."""
    vocab = Vocabulary.of_characters(characters)
    model = tiny_model(cell, len(vocab), scale)
    graphs = build_graphs(model)
    ids = np.array([BOS_ID, *range(4, len(vocab)), EOS_ID], np.uint16)
    held_out = Split(ids, np.array([0, len(ids)]))
    options: dict[str, Any] = {
        "name": f"tiny-{cell}",
        "model": {
            "cell": cell,
            "num_layers": 2,
            "hidden_size": HIDDEN,
            "embedding_dim": 5,
            "parameters": sum(x.numel() for x in model.parameters()),
        },
        "states": [
            StateTensor(name=name, dtype="float32", shape=[HIDDEN]) for name in model.state_names
        ],
        "golden": golden_vectors(model, held_out, vocab, ["fp32", "int8"]),
        "precision": "int8",
    }
    described = [describe_graph(*kind, data) for kind, data in graphs.items()]
    manifest = manifest_of(vocab, described, **(options | changes))
    files = {file_name(*kind): data for kind, data in graphs.items()}
    return manifest, {"vocab.json": vocab_bytes(vocab), **files}


def endless_files(
    *, hoards: bool, **changes: Any
) -> tuple[LanguageModelManifest, dict[str, bytes]]:
    """`tiny-lstm` with a graph that loops for ever; if it `hoards`, it takes a megabyte a turn."""
    manifest, files = tiny_files("lstm", **changes)
    name = file_name("int8", "sequence")
    proto = onnx.load_model_from_string(files[name])
    graph, result = proto.graph, "target_logprobs"
    for node in graph.node:
        node.output[:] = ["sound" if x == result else x for x in node.output]
    node, scalar = onnx.helper.make_node, partial(onnx.helper.make_tensor_value_info, shape=[])
    float32, int64, boolean = (
        onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL,
    )  # fmt: skip
    tensor = partial(onnx.helper.make_tensor_value_info, elem_type=float32, shape=None)
    steps = [node("Identity", ["again"], ["goes_on"]), node("Identity", ["before"], ["after"])]
    outputs, results = [scalar("goes_on", boolean), tensor("after")], [result]
    if hoards:
        steps.append(node("ConstantOfShape", ["size"], ["piece"]))
        outputs.append(tensor("piece"))
        results.append("hoard")
    inputs = [scalar("round", int64), scalar("again", boolean), tensor("before")]
    body = onnx.helper.make_graph(steps, "body", inputs, outputs)
    make = onnx.helper.make_tensor
    graph.initializer.extend(
        [
            make("rounds", int64, [], [2**62]),
            make("always", boolean, [], [True]),
            make("size", int64, [1], [2**18]),
        ]
    )
    graph.node.append(node("Loop", ["rounds", "always", "sound"], results, body=body))
    files[name] = proto.SerializeToString()
    described = [describe_graph(x.precision, x.role, files[x.file]) for x in manifest.graphs]
    return manifest.model_copy(update={"graphs": described}), files


def in_memory(
    manifest: LanguageModelManifest, files: Mapping[str, bytes], characters: str = ALPHABET
) -> LanguageModelBundle:
    """The bundle as a reader would give it."""
    graphs = {graph.file: files[graph.file] for graph in manifest.graphs}
    return LanguageModelBundle(manifest, Vocabulary.of_characters(characters), graphs)


# --- encoder-decoders -----------------------------------------------------------------------------

Tokenization = Literal["character", "whitespace", "bpe"]

TEXTS = ("the white rabbit", "alice was late", "a cat in a hat", "tea at three, rabbit!")
SYMBOLS = ("AA", "AH", "B", "EH", "K", "L", "S", "T", "Z\u0301", "+")
MAX_SOURCE_TOKENS = 60
POOL_STRIDE = 2


def tiny_tokenizer(tokenization: Tokenization) -> Tokenizer:
    """A small vocabulary of the given kind, from `TEXTS` or `SYMBOLS`."""
    if tokenization == "character":
        return Characters.of_characters("".join(TEXTS))
    if tokenization == "whitespace":
        return Symbols.of_symbols(SYMBOLS)
    return Subwords.learn(TEXTS, vocab_size=64, min_count=1)


def tiny_encoder_decoder(
    source_size: int, target_size: int, *, scale: float = 1.5, **options: Any
) -> EncoderDecoder:
    """An untrained encoder-decoder with opinions; its targets end sooner or later."""
    sizes: dict[str, Any] = {
        "encoder_hidden_size": 6,
        "hidden_size": HIDDEN,
        "embedding_dim": 5,
        "decoder_layers": 2,
        "conv_widths": [1, 2, 3],
        "conv_filters": [3, 4, 5],
        "pool_stride": POOL_STRIDE,
    }
    config = EncoderDecoderNetworkConfig.model_validate(sizes | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(23)
        model = EncoderDecoder(config, source_size, target_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
                if parameter.dim() == 1:
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
            model.decoder.output.bias[EOS_ID] += 1.0
    return model.eval()


def tiny_encoder_decoder_files(
    cell: str = "lstm",
    *,
    name: str = "tiny-pairs",
    source: Tokenizer | None = None,
    target: Tokenizer | None = None,
    tokenization: Tokenization = "character",
    shared: bool = False,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[EncoderDecoderManifest, dict[str, bytes]]:
    """An untrained encoder-decoder as the exporter would write it.

    `tokenization` is that of the target, and of the source where the files are `shared`; `options`
    are the model's, `changes` replace fields of the manifest.
    """
    target = target or tiny_tokenizer(tokenization)
    source = target if shared else source or tiny_tokenizer("character")
    model = tiny_encoder_decoder(len(source), len(target), cell=cell, **options)
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    graphs = build_encoder_decoder_graphs(model)
    files = {file_name(*kind): data for kind, data in graphs.items()}
    sides = []
    for label, tokenizer in (("source", source), ("target", target)):
        config = TextSideConfig(lang=label, tokenization=_tokenization_of(tokenizer))
        side, own = describe_side("both" if shared else label, config, tokenizer)
        sides.append(side)
        files |= own
    document: dict[str, Any] = {
        "format_version": 2,
        "name": name,
        "description": "A bundle for tests.",
        "license": "CC0-1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "encoder_decoder",
        "source": sides[0],
        "target": sides[1],
        "graphs": [describe_graph(*kind, data) for kind, data in graphs.items()],
        "precision": "int8",
        "states": state_tensors(model),
        "memory": memory_tensors(model),
        "memory_stride": POOL_STRIDE if model.config.encoder == "crnn" else 1,
        "model": model_shape(model),
        "limits": {
            "max_source_tokens": MAX_SOURCE_TOKENS,
            "max_tokens_ratio": 1.5,
            "max_tokens_extra": 20,
        },
        "data": {
            "name": "nothing",
            "source": "nowhere",
            "license": "CC0-1.0",
            "sha256": "0" * 64,
            "train_pairs": 1,
            "valid_pairs": 1,
        },
        "metrics": [{"split": "test", "pairs": 1, "sources": 1, "measurements": []}],
        "examples": [],
        "training": {"config": {}, "seed": 1, "steps": 0, "git_commit": None, "versions": {}},
        "golden": encoder_decoder_golden_vectors(model, _golden_pairs(source, target), precisions),
    }
    return EncoderDecoderManifest.model_validate(document | dict(changes or {})), files


_MAP = {"intercept": 1.0, "odds": 0.5, "margin": 0.2, "score": 1.0, "log_loss": 0.5}
# The confidence of an encoder-decoder's translations; the best ones have steps.
CONFIDENCE = Confidence.model_validate(
    {
        "precision": "int8",
        "split": "valid",
        "sources": 100,
        "targets": 1.05,
        "beam_size": 5,
        "length_penalty": 1.0,
        "best": {
            **_MAP,
            "steps": [
                {"logistic": 0.2, "confidence": 0.1},
                {"logistic": 0.6, "confidence": 0.7},
                {"logistic": 0.9, "confidence": 0.9},
            ],
        },
        "others": {**_MAP, "steps": []},
        "measured": [],
    }
)

CLOZE = infill_of(context=12, max_blanks=2, max_chars=4)


def tiny_cloze_files(
    name: str = "tiny-cloze", characters: str = "abc \n"
) -> tuple[EncoderDecoderManifest, dict[str, bytes]]:
    """An untrained model that fills blanks, as the exporter would write it."""
    tokenizer = Characters([*SPECIAL_TOKENS, *MARKS, *characters])
    manifest, files = tiny_encoder_decoder_files("lstm", name=name, target=tokenizer, shared=True)
    rules = SideNormalization(strip=False)
    sides = {
        side: getattr(manifest, side).model_copy(update={"normalization": rules})
        for side in ("source", "target")
    }
    return manifest.model_copy(update={**sides, "infill": CLOZE}), files


def encoder_decoder_in_memory(
    manifest: EncoderDecoderManifest, files: Mapping[str, bytes]
) -> EncoderDecoderBundle:
    """The bundle as a reader would give it."""
    graphs = {graph.file: files[graph.file] for graph in manifest.graphs}
    source, target = (_tokenizer_of(side, files) for side in (manifest.source, manifest.target))
    return EncoderDecoderBundle(manifest, source, target, graphs)


def _tokenization_of(tokenizer: Tokenizer) -> Tokenization:
    if isinstance(tokenizer, Subwords):
        return "bpe"
    return "whitespace" if isinstance(tokenizer, Symbols) else "character"


def _tokenizer_of(side: TextSide, files: Mapping[str, bytes]) -> Tokenizer:
    if side.tokenizer is not None:
        return Subwords(files[side.tokenizer.file].decode())
    kind = Characters if side.tokenization == "character" else Symbols
    return kind(json.loads(files[side.vocab.file]))


def _golden_pairs(source: Tokenizer, target: Tokenizer) -> PairSplit:
    """Two pairs of different lengths, made of the vocabularies' tokens."""
    ids = [np.arange(4, 4 + length, dtype=np.uint16) for length in (3, 5)]
    pairs = [(source.decode(x), target.decode(x)) for x in ids]
    return PairSplit("made", pairs, ids, ids)
