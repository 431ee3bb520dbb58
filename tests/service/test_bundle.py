"""Bundles on disk: what is read, what is refused and with which line, and how one is replaced."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle import BundleError, Vocabulary, read_bundle, write_bundle
from service.bundle.store import MAX_MANIFEST_BYTES, MAX_VOCAB_BYTES, sha256
from tests.bundles import plain_files

GRAPH = "sequence.fp32.onnx"
MARKER = "q7marker"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good bundle."""
    manifest, files = plain_files()
    return write_bundle(tmp_path / "models", manifest, files)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def replace_vocab(folder: Path, data: bytes) -> None:
    """Another vocabulary file, with a checksum that fits."""
    (folder / "vocab.json").write_bytes(data)
    edit_manifest(folder, lambda x: x["vocab"].update(sha256=sha256(data)))


def refusal(folder: Path) -> str:
    """The line of cause."""
    with pytest.raises(BundleError) as refused:
        read_bundle(folder)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 400
    assert message.startswith(f"{folder.name}: ")
    return message


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    awkward = '\n\x00\x85\u2028\u2029\u0301\U0001f407é"\\'
    manifest, files = plain_files("awkward", awkward, graph=bytes(range(256)))
    path = write_bundle(tmp_path / "not" / "yet", manifest, files)
    assert path == tmp_path / "not" / "yet" / "awkward"
    bundle = read_bundle(path)
    assert bundle.manifest == manifest
    assert bundle.vocab.tokens == Vocabulary.of_characters(awkward).tokens
    assert bundle.graphs == {GRAPH: bytes(range(256))}
    assert bundle.graph("fp32", "sequence") == (manifest.graphs[0], bytes(range(256)))
    assert sorted(x.name for x in path.iterdir()) == ["manifest.json", GRAPH, "vocab.json"]


def test_a_graph_that_is_not_there_is_none(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.precisions == ["fp32"]
    assert bundle.graph("int8", "sequence") is None
    assert bundle.graph("fp32", "step") is None


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing") == "nothing: manifest.json: No such file or directory"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    assert refusal(tmp_path / "plain") == "plain: manifest.json: Not a directory"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert refusal(folder) == f"plain: {file}: No such file or directory"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_symbolic_link_is_not_followed(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder) == f"plain: {file}: symbolic links are not followed"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_hard_link_is_not_accepted(folder: Path, tmp_path: Path, file: str) -> None:
    os.link(folder / file, tmp_path / "elsewhere")
    assert refusal(folder) == f"plain: {file}: hard links are not accepted"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_folder_in_place_of_a_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    assert refusal(folder) == f"plain: {file}: Is a directory"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert refusal(folder) == f"plain: {file}: not a regular file"


def test_a_socket_in_place_of_a_file_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / GRAPH).unlink()
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(GRAPH)
        assert refusal(folder).startswith(f"plain: {GRAPH}: ")


def test_a_refused_bundle_leaves_no_file_open(folder: Path) -> None:
    (folder / GRAPH).unlink()
    (folder / GRAPH).mkdir()
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        refusal(folder)
    assert len(list(descriptors.iterdir())) == before


def test_a_truncated_graph_is_refused(folder: Path) -> None:
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:-1])
    assert refusal(folder) == f"plain: {GRAPH}: its SHA-256 is not the manifest's"


def test_a_graph_with_a_changed_bit_is_refused(folder: Path) -> None:
    data = bytearray((folder / GRAPH).read_bytes())
    data[3] ^= 1
    (folder / GRAPH).write_bytes(data)
    assert refusal(folder) == f"plain: {GRAPH}: its SHA-256 is not the manifest's"


def test_a_graph_that_grew_is_refused_before_it_is_read(folder: Path) -> None:
    size = (folder / GRAPH).stat().st_size
    os.truncate(folder / GRAPH, 2**40)  # sparse: a terabyte that is not there
    assert refusal(folder) == f"plain: {GRAPH}: {2**40} bytes, at most {size} are allowed"


@pytest.mark.parametrize(
    ("file", "limit"), [("manifest.json", MAX_MANIFEST_BYTES), ("vocab.json", MAX_VOCAB_BYTES)]
)
def test_a_huge_file_is_refused_before_it_is_read(folder: Path, file: str, limit: int) -> None:
    os.truncate(folder / file, limit + 1)
    assert refusal(folder) == f"plain: {file}: {limit + 1} bytes, at most {limit} are allowed"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x.update({MARKER: 1}), f"{MARKER}: Extra inputs are not permitted"),
        (lambda x: x.update({"a\nb" * 1000: 1}), "a\\nba\\nb"),
        (lambda x: x["graphs"][0].update(more=1), "graphs.0.more: Extra inputs"),
        (lambda x: x.pop("license"), "license: Field required"),
        (lambda x: x.update(format_version=1), "format_version: Input should be 2"),
        (lambda x: x.update(precision="int8"), "there is no sequence graph in int8"),
        (lambda x: x["graphs"][0].update(role="step"), "there is no sequence graph in fp32"),
        (
            lambda x: (
                x.update(precision="int8"),
                x["graphs"][0].update(precision="int8"),
                [vector.update(precision="int8") for vector in x["golden"]],
            ),
            "there is no sequence graph in fp32",
        ),
        (
            lambda x: x["graphs"].append({**x["graphs"][0], "file": "other.onnx"}),
            "one graph for each precision and role",
        ),
        (
            lambda x: x["graphs"].append(
                {**x["graphs"][0], "file": "other.onnx", "precision": "int8"}
            ),
            "golden: there is no vector for int8",
        ),
        (lambda x: x.update(name="other"), "names another bundle, other"),
        (lambda x: x.update(name="../plain"), "name: String should match pattern"),
        (lambda x: x.update(name="plain\n"), "name: String should match pattern"),
        (lambda x: x["vocab"].update(file="../vocab.json"), "vocab.file: String should match"),
        (lambda x: x["vocab"].update(file="/etc/passwd"), "vocab.file: String should match"),
        (lambda x: x["vocab"].update(file="manifest.json"), "must be different files"),
        (lambda x: x["graphs"][0].update(file="vocab.json"), "must be different files"),
        (lambda x: x["graphs"][0].update(file=".hidden"), "graphs.0.file: String should match"),
        (lambda x: x["graphs"][0].update(sha256="0" * 63), "graphs.0.sha256: String should"),
        (lambda x: x["graphs"].clear(), "graphs: List should have at least 1 item"),
        (lambda x: x["states"].append(x["states"][0]), "every name may stand once"),
        (lambda x: x["golden"].clear(), "golden: List should have at least 1 item"),
        (lambda x: x["golden"][0]["logprobs"].clear(), "one logprob for every token"),
        (lambda x: x["golden"][0].update(tokens=[1, 7]), "token outside the vocabulary"),
        (lambda x: x["golden"][0].update(tolerance=float("nan")), "golden.0.tolerance"),
        (lambda x: x["normalization"].update(nfc="yes"), "normalization.nfc"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused_with_the_field(
    folder: Path, change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    edit_manifest(folder, change)
    message = refusal(folder)
    assert message.startswith("plain: manifest.json")
    assert cause in message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b"\xef\xbb\xbf{}"]
)
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    assert "plain: manifest.json: the document: " in refusal(folder)


def test_a_vocabulary_with_another_checksum_is_refused(folder: Path) -> None:
    path = folder / "vocab.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert refusal(folder) == "plain: vocab.json: its SHA-256 is not the manifest's"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "Expecting value"),
        (b"\xff", "decode"),
        (b'{"a": 1}', "it must be a list of strings"),
        (b'["a", 1]', "it must be a list of strings"),
        (b'["a", "b"]', "starts with"),
        (b"[" * 100_000, "recursion"),
        (b'["\\ue000", "\\ue001", "\\ue002", "\\ue003", "a", "b", "\\ud800"]', "surrogate"),
        (b'["\\ue000", "\\ue001", "\\ue002", "\\ue003", "a", "b"]', "6 tokens, the manifest has 7"),
    ],
)
def test_a_vocabulary_that_does_not_hold_is_refused(folder: Path, data: bytes, cause: str) -> None:
    replace_vocab(folder, data)
    message = refusal(folder)
    assert message.startswith("plain: vocab.json: ")
    assert cause in message


def test_a_bundle_is_replaced_whole(tmp_path: Path) -> None:
    write_bundle(tmp_path, *plain_files(graph=b"the old one"))
    (tmp_path / "plain" / "left-over").write_text("of the old one")
    write_bundle(tmp_path, *plain_files(graph=b"the new one", characters="xyz"))
    bundle = read_bundle(tmp_path / "plain")
    assert bundle.graphs[GRAPH] == b"the new one"
    assert bundle.vocab.tokens[4:] == ("x", "y", "z")
    assert [x.name for x in tmp_path.iterdir()] == ["plain"]
    assert not (tmp_path / "plain" / "left-over").exists()


def test_the_old_bundle_stays_when_the_new_one_does_not_read_back(tmp_path: Path) -> None:
    write_bundle(tmp_path, *plain_files(graph=b"the old one"))
    manifest, files = plain_files(graph=b"the new one")
    with pytest.raises(BundleError, match="SHA-256"):
        write_bundle(tmp_path, manifest, files | {GRAPH: b"the new 0ne"})
    assert read_bundle(tmp_path / "plain").graphs[GRAPH] == b"the old one"
    assert [x.name for x in tmp_path.iterdir()] == ["plain"]


def test_the_old_bundle_comes_back_when_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path, *plain_files(graph=b"the old one"))
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if self.name == "plain" and self.parent != tmp_path:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(OSError, match="the disk is gone"):
        write_bundle(tmp_path, *plain_files(graph=b"the new one"))
    assert read_bundle(tmp_path / "plain").graphs[GRAPH] == b"the old one"
    assert [x.name for x in tmp_path.iterdir()] == ["plain"]


def test_a_new_bundle_that_does_not_read_back_leaves_nothing(tmp_path: Path) -> None:
    manifest, files = plain_files()
    del files["vocab.json"]
    with pytest.raises(BundleError, match=r"vocab\.json: No such file"):
        write_bundle(tmp_path, manifest, files)
    assert list(tmp_path.iterdir()) == []
