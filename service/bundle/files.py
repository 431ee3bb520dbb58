"""The files of a bundle: read once, as bytes, and checked against the manifest."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from service.bundle.links import BundleFolder
from service.bundle.manifest import Graph, Precision, Role, VocabFile
from service.bundle.text import Vocabulary
from service.bundle.tokenization import Tokenizer

Parsed = TypeVar("Parsed")

MAX_VOCAB_BYTES = 4 * 2**20
MAX_GRAPH_BYTES = 2**31 - 1  # protobuf's own limit: larger graphs need external data


class BundleError(Exception):
    """A bundle that cannot be used; the message is one line with the cause."""


class _HasGraphs(Protocol):
    """A manifest of any kind."""

    @property
    def graphs(self) -> Sequence[Graph]: ...


class GraphFiles:
    """Access to the graphs, for every kind of bundle."""

    __slots__ = ()

    manifest: _HasGraphs
    graphs: Mapping[str, bytes]

    @property
    def precisions(self) -> list[Precision]:
        """The precisions that the bundle has graphs for."""
        return sorted({graph.precision for graph in self.manifest.graphs})

    def graph(self, precision: Precision, role: Role) -> tuple[Graph, bytes] | None:
        """A graph and its bytes; None if the bundle lacks it."""
        for graph in self.manifest.graphs:
            if (graph.precision, graph.role) == (precision, role):
                return graph, self.graphs[graph.file]
        return None


def read_graphs(folder: BundleFolder, described: Sequence[Graph]) -> dict[str, bytes]:
    """The bytes of graphs, by file name."""
    graphs = {}
    for graph in described:
        data = read_file(folder, graph.file, min(graph.size_bytes, MAX_GRAPH_BYTES))
        check_sha256(folder.name, graph.file, data, graph.sha256)
        graphs[graph.file] = data
    return graphs


def read_vocab(folder: BundleFolder, info: VocabFile) -> list[str]:
    """The tokens of a vocabulary's file."""
    data = read_file(folder, info.file, MAX_VOCAB_BYTES)
    check_sha256(folder.name, info.file, data, info.sha256)
    tokens = parsed(folder.name, info.file, lambda: json.loads(data))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise BundleError(f"{folder.name}: {info.file}: it must be a list of strings")
    return tokens


def check_size(name: str, info: VocabFile, tokens: Sequence[str]) -> None:
    """Check a vocabulary's size against the manifest. Raises BundleError."""
    if len(tokens) != info.size:
        raise BundleError(
            f"{name}: {info.file}: {len(tokens)} tokens, the manifest has {info.size}"
        )


def vocab_bytes(vocab: Vocabulary | Tokenizer) -> bytes:
    """The vocabulary's file: ASCII JSON, so that U+2028 and its like survive any editor."""
    return (json.dumps(list(vocab.tokens), ensure_ascii=True) + "\n").encode("ascii")


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of the data."""
    return hashlib.sha256(data).hexdigest()


def parsed(name: str, file: str, parse: Callable[[], Parsed]) -> Parsed:
    """The result of `parse`; its ValueError becomes a BundleError that names the file."""
    try:
        return parse()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {file}: {error}") from error


def check_sha256(name: str, file: str, data: bytes, expected: str) -> None:
    """Check a file's data against the manifest. Raises BundleError."""
    if sha256(data) != expected:
        raise BundleError(f"{name}: {file}: its SHA-256 is not the manifest's")


def read_file(folder: BundleFolder, file: str, max_bytes: int) -> bytes:
    """The bytes of a regular file. Hard links and links that lead out of the folder are refused."""
    where = f"{folder.name}: {file}"
    try:
        with open(file, "rb", opener=lambda name, _: folder.open(name)) as stream:
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
        raise BundleError(f"{where}: {error.strerror}") from error
