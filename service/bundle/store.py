"""Bundles on disk: read and checked as bytes, written beside and swapped in."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from service.bundle.encoder_decoder import AnyManifest, EncoderDecoderManifest, TextSide
from service.bundle.manifest import Graph, LanguageModelManifest, Precision, Role, VocabFile
from service.bundle.text import Vocabulary
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenizer

Parsed = TypeVar("Parsed")

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_VOCAB_BYTES = 4 * 2**20
MAX_GRAPH_BYTES = 2**31 - 1  # protobuf's own limit: larger graphs need external data


class BundleError(Exception):
    """A bundle that cannot be used; the message is one line with the cause."""


class _Graphs:
    """What the two kinds of bundle do with their graphs."""

    __slots__ = ()

    manifest: LanguageModelManifest | EncoderDecoderManifest
    graphs: Mapping[str, bytes]

    @property
    def precisions(self) -> list[Precision]:
        """The precisions that there are graphs of."""
        return sorted({graph.precision for graph in self.manifest.graphs})

    def graph(self, precision: Precision, role: Role) -> tuple[Graph, bytes] | None:
        """A graph and its bytes; None where the bundle has none such."""
        for graph in self.manifest.graphs:
            if (graph.precision, graph.role) == (precision, role):
                return graph, self.graphs[graph.file]
        return None


@dataclass(frozen=True, slots=True)
class LanguageModelBundle(_Graphs):
    """A language model in memory, every checksum verified. Nothing is read from disk after this."""

    manifest: LanguageModelManifest
    vocab: Vocabulary
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


@dataclass(frozen=True, slots=True)
class EncoderDecoderBundle(_Graphs):
    """An encoder-decoder in memory, every checksum verified."""

    manifest: EncoderDecoderManifest
    source: Tokenizer
    target: Tokenizer
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


def read_language_model(folder: Path) -> LanguageModelBundle:
    """Read and verify a language model. Raises BundleError with a one-line cause."""
    bundle = read_bundle(folder)
    if not isinstance(bundle, LanguageModelBundle):
        raise BundleError(f"{folder.name}: an {bundle.manifest.task} and not a language_model")
    return bundle


def read_bundle(folder: Path) -> LanguageModelBundle | EncoderDecoderBundle:
    """Read and verify a bundle. Raises BundleError with a one-line cause."""
    name = folder.name
    raw = _read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = _ANY_MANIFEST.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A union's location begins with the branch that it took.
        places = first["loc"][1:] if first["loc"] and first["loc"][0] in _TASKS else first["loc"]
        # The names of unknown fields can hold anything, and the cause is one line.
        parts = [str(part)[:64].encode("unicode_escape").decode() for part in places]
        where = ".".join(parts) or "the document"
        cause = first["msg"]
        if first["type"] == "union_tag_invalid":
            # Its message repeats the task, and that can hold anything, too.
            cause = f"task must be one of {first['ctx']['expected_tags']}"
        raise BundleError(f"{name}: {MANIFEST_FILE}: {where}: {cause}") from error
    if manifest.name != name:
        raise BundleError(f"{name}: {MANIFEST_FILE} names another bundle, {manifest.name}")
    if isinstance(manifest, LanguageModelManifest):
        tokens = _read_vocab(folder, manifest.vocab)
        vocab = _parsed(name, manifest.vocab.file, lambda: Vocabulary(tokens))
        _check_size(name, manifest.vocab, tokens)
        return LanguageModelBundle(manifest, vocab, _read_graphs(folder, manifest.graphs))
    source, target = (_read_side(folder, side) for side in (manifest.source, manifest.target))
    return EncoderDecoderBundle(manifest, source, target, _read_graphs(folder, manifest.graphs))


_ANY_MANIFEST: TypeAdapter[LanguageModelManifest | EncoderDecoderManifest] = TypeAdapter(
    AnyManifest
)
_TASKS = ("language_model", "encoder_decoder")


def _read_graphs(folder: Path, described: Sequence[Graph]) -> dict[str, bytes]:
    graphs = {}
    for graph in described:
        data = _read_file(folder, graph.file, min(graph.size_bytes, MAX_GRAPH_BYTES))
        _check_sha256(folder.name, graph.file, data, graph.sha256)
        graphs[graph.file] = data
    return graphs


def write_bundle(
    models_dir: Path,
    manifest: LanguageModelManifest | EncoderDecoderManifest,
    files: Mapping[str, bytes],
) -> Path:
    """Write `models_dir/<manifest.name>`, whole or not at all, and return its path.

    The new bundle is written and read back under a temporary name in the same folder, then
    swapped in by two renames: a reader finds the old bundle, the new one or, for an instant, none;
    never a mixture. Raises BundleError when what was written does not read back.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    final = models_dir / manifest.name
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=models_dir))
    try:
        staged = scratch / manifest.name
        staged.mkdir()
        document = manifest.model_dump_json(indent=2) + "\n"
        for file, data in {**files, MANIFEST_FILE: document.encode()}.items():
            _write_synced(staged / file, data)
        read_bundle(staged)
        replaced = scratch / "replaced"
        if final.exists():
            final.rename(replaced)
        try:
            staged.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
    finally:
        shutil.rmtree(scratch)
    return final


def vocab_bytes(vocab: Vocabulary | Tokenizer) -> bytes:
    """The vocabulary's file: ASCII JSON, so that U+2028 and its like survive any editor."""
    return (json.dumps(list(vocab.tokens), ensure_ascii=True) + "\n").encode("ascii")


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of the data."""
    return hashlib.sha256(data).hexdigest()


def _read_vocab(folder: Path, info: VocabFile) -> list[str]:
    """The tokens of a vocabulary's file."""
    data = _read_file(folder, info.file, MAX_VOCAB_BYTES)
    _check_sha256(folder.name, info.file, data, info.sha256)
    tokens = _parsed(folder.name, info.file, lambda: json.loads(data))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise BundleError(f"{folder.name}: {info.file}: it must be a list of strings")
    return tokens


def _check_size(name: str, info: VocabFile, tokens: Sequence[str]) -> None:
    if len(tokens) != info.size:
        raise BundleError(
            f"{name}: {info.file}: {len(tokens)} tokens, the manifest has {info.size}"
        )


def _read_side(folder: Path, side: TextSide) -> Tokenizer:
    tokens = _read_vocab(folder, side.vocab)
    if side.tokenizer is None:
        kind = Characters if side.tokenization == "character" else Symbols
        tokenizer = _parsed(folder.name, side.vocab.file, lambda: kind(tokens))
        _check_size(folder.name, side.vocab, tokens)
        return tokenizer
    info = side.tokenizer
    data = _read_file(folder, info.file, MAX_VOCAB_BYTES)
    _check_sha256(folder.name, info.file, data, info.sha256)
    subwords = _parsed(folder.name, info.file, lambda: Subwords(data.decode()))
    if list(subwords.tokens) != tokens:
        raise BundleError(f"{folder.name}: {info.file}: its tokens are not the vocabulary's")
    _check_size(folder.name, side.vocab, tokens)
    return subwords


def _parsed(name: str, file: str, parse: Callable[[], Parsed]) -> Parsed:
    try:
        return parse()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {file}: {error}") from error


def _check_sha256(name: str, file: str, data: bytes, expected: str) -> None:
    if sha256(data) != expected:
        raise BundleError(f"{name}: {file}: its SHA-256 is not the manifest's")


def _read_file(folder: Path, file: str, max_bytes: int) -> bytes:
    """Bytes of a regular file with one name; links could lead outside the models folder."""
    path = folder / file
    where = f"{folder.name}: {file}"
    try:
        with open(path, "rb", opener=_open_plainly) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{where}: not a regular file")
            if status.st_nlink != 1:
                raise BundleError(f"{where}: hard links are not accepted")
            if status.st_size > max_bytes:
                size = f"{status.st_size} bytes, at most {max_bytes} are allowed"
                raise BundleError(f"{where}: {size}")
            return stream.read(max_bytes)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(f"{where}: symbolic links are not followed") from error
        raise BundleError(f"{where}: {error.strerror}") from error


def _open_plainly(path: str, flags: int) -> int:
    """Without following a link, and without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
