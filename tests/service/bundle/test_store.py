"""Bundles on disk: what is read, what is refused and with which line, and how one is replaced."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.files import MAX_VOCAB_BYTES, BundleError, sha256
from service.bundle.language_model import LanguageModelBundle
from service.bundle.store import (
    MAX_MANIFEST_BYTES,
    read_bundle,
    read_language_model,
    write_bundle,
)
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Vocabulary
from service.bundle.tokenization import Subwords, Symbols
from tests.bundles import TEXTS, plain_files, tiny_encoder_decoder_files, tiny_tokenizer

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
        read_language_model(folder)
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
    bundle = read_language_model(path)
    assert bundle.manifest == manifest
    assert bundle.vocab.tokens == Vocabulary.of_characters(awkward).tokens
    assert bundle.graphs == {GRAPH: bytes(range(256))}
    assert bundle.graph("fp32", "sequence") == (manifest.graphs[0], bytes(range(256)))
    assert sorted(x.name for x in path.iterdir()) == ["manifest.json", GRAPH, "vocab.json"]


def test_a_graph_that_is_not_there_is_none(folder: Path) -> None:
    bundle = read_language_model(folder)
    assert bundle.precisions == ["fp32"]
    assert bundle.graph("int8", "sequence") is None
    assert bundle.graph("fp32", "step") is None


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing") == "nothing: No such file or directory"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    assert refusal(tmp_path / "plain") == "plain: Not a directory"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert refusal(folder) == f"plain: {file}: No such file or directory"


@pytest.mark.parametrize("file", ["manifest.json", "vocab.json", GRAPH])
def test_a_symbolic_link_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path, file: str
) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder) == f"plain: {file}: symbolic links must stay within the folder"


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
        (lambda x: x.update(created="yesterday"), "created: Value error, Invalid isoformat"),
        (lambda x: x.update(created="2026-01-01T00:00:00"), "created: Value error, a time without"),
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
        (lambda x: x["states"].append(x["states"][0]), "names must be unique"),
        (lambda x: x["golden"].clear(), "golden: List should have at least 1 item"),
        (lambda x: x["golden"][0]["logprobs"].clear(), "one logprob for every token"),
        (lambda x: x["golden"][0].update(tokens=[1, 7]), "token outside the vocabulary"),
        (lambda x: x["golden"][0].update(tolerance=float("nan")), "golden.0.tolerance"),
        (lambda x: x["normalization"].update(nfc="yes"), "normalization.nfc"),
        (lambda x: x["normalization"].update(strip=True), "normalization.strip"),
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
    bundle = read_language_model(tmp_path / "plain")
    assert bundle.graphs[GRAPH] == b"the new one"
    assert bundle.vocab.tokens[4:] == ("x", "y", "z")
    assert [x.name for x in tmp_path.iterdir()] == ["plain"]
    assert not (tmp_path / "plain" / "left-over").exists()


def test_the_old_bundle_stays_when_the_new_one_does_not_read_back(tmp_path: Path) -> None:
    write_bundle(tmp_path, *plain_files(graph=b"the old one"))
    manifest, files = plain_files(graph=b"the new one")
    with pytest.raises(BundleError, match="SHA-256"):
        write_bundle(tmp_path, manifest, files | {GRAPH: b"the new 0ne"})
    assert read_language_model(tmp_path / "plain").graphs[GRAPH] == b"the old one"
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
    assert read_language_model(tmp_path / "plain").graphs[GRAPH] == b"the old one"
    assert [x.name for x in tmp_path.iterdir()] == ["plain"]


def test_a_new_bundle_that_does_not_read_back_leaves_nothing(tmp_path: Path) -> None:
    manifest, files = plain_files()
    del files["vocab.json"]
    with pytest.raises(BundleError, match=r"vocab\.json: No such file"):
        write_bundle(tmp_path, manifest, files)
    assert list(tmp_path.iterdir()) == []


# --- encoder-decoders -----------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A good bundle of characters to symbols."""
    manifest, files = tiny_encoder_decoder_files("gru", tokenization="whitespace")
    return write_bundle(tmp_path / "models", manifest, files)


@pytest.fixture
def subwords(tmp_path: Path) -> Path:
    """A good bundle whose sides share the files of their subwords."""
    manifest, files = tiny_encoder_decoder_files(
        "gru", tokenization="bpe", shared=True, attention="none"
    )
    return write_bundle(tmp_path / "models", manifest, files)


def read_pairs(folder: Path) -> EncoderDecoderBundle:
    bundle = read_bundle(folder)
    assert isinstance(bundle, EncoderDecoderBundle)
    return bundle


def test_an_encoder_decoder_that_is_written_is_what_is_read(pairs: Path) -> None:
    manifest, files = tiny_encoder_decoder_files("gru", tokenization="whitespace")
    bundle = read_pairs(pairs)
    assert bundle.manifest == manifest
    assert bundle.source.tokens == tiny_tokenizer("character").tokens
    assert bundle.target.tokens == tiny_tokenizer("whitespace").tokens
    assert isinstance(bundle.target, Symbols)
    assert bundle.graphs == {x: data for x, data in files.items() if x.endswith(".onnx")}
    assert bundle.precisions == ["fp32", "int8"]
    found = bundle.graph("int8", "decoder")
    assert found is not None
    assert found[1] == files["decoder.int8.onnx"]
    assert bundle.graph("int8", "step") is None
    assert sorted(x.name for x in pairs.iterdir()) == sorted([*files, "manifest.json"])


def test_subwords_and_their_files_can_serve_both_sides(subwords: Path) -> None:
    bundle = read_pairs(subwords)
    assert isinstance(bundle.source, Subwords)
    assert isinstance(bundle.target, Subwords)
    assert bundle.manifest.source.vocab == bundle.manifest.target.vocab
    assert bundle.manifest.source.vocab.file == "both.vocab.json"
    for text in TEXTS:
        ids = bundle.source.encode(text)
        assert ids.tolist() == bundle.target.encode(text).tolist()
        assert bundle.target.decode(ids.tolist()) == text


def test_an_encoder_decoder_is_no_language_model(pairs: Path, folder: Path) -> None:
    assert refusal(pairs) == "tiny-pairs: its kind is encoder_decoder, not language_model"
    assert isinstance(read_bundle(folder), LanguageModelBundle)


def refusal_of_encoder_decoder(folder: Path) -> str:
    """The line of cause, whatever the bundle is."""
    with pytest.raises(BundleError) as refused:
        read_bundle(folder)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 400
    assert message.startswith(f"{folder.name}: ")
    return message


@pytest.mark.parametrize("task", ["summarization", "", None, 5, ["language_model"], {"a": 1}])
def test_a_manifest_of_an_unknown_task_is_refused_in_one_line(folder: Path, task: object) -> None:
    edit_manifest(folder, lambda x: x.update(task=task))
    message = refusal_of_encoder_decoder(folder)
    assert message.startswith("plain: manifest.json: the document: ")
    assert "task" in message
    assert "language_model" in message
    assert "encoder_decoder" in message


def test_a_task_that_is_not_told_is_refused_in_one_line(folder: Path) -> None:
    edit_manifest(folder, lambda x: x.pop("task"))
    assert "task" in refusal_of_encoder_decoder(folder)


def test_a_task_of_any_length_is_refused_in_one_line(folder: Path) -> None:
    edit_manifest(folder, lambda x: x.update(task="a\nb\x1b[31m" * 1000))
    refusal_of_encoder_decoder(folder)


def test_a_manifest_of_the_other_task_is_refused(folder: Path, pairs: Path) -> None:
    edit_manifest(folder, lambda x: x.update(task="encoder_decoder"))
    assert "plain: manifest.json: source: Field required" in refusal_of_encoder_decoder(folder)
    edit_manifest(pairs, lambda x: x.update(task="language_model"))
    assert "tiny-pairs: manifest.json: tokenization: Field" in refusal_of_encoder_decoder(pairs)


def graph_of(document: dict[str, Any], role: str, precision: str = "fp32") -> dict[str, Any]:
    """One graph of a manifest."""
    (found,) = (x for x in document["graphs"] if (x["role"], x["precision"]) == (role, precision))
    assert isinstance(found, dict)
    return found


def drop_graph(document: dict[str, Any], role: str, precision: str = "fp32") -> None:
    document["graphs"].remove(graph_of(document, role, precision))


def add_vocab_elsewhere(document: dict[str, Any]) -> None:
    document["source"]["vocab"]["file"] = document["target"]["vocab"]["file"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x.update({MARKER: 1}), f"{MARKER}: Extra inputs are not permitted"),
        (lambda x: x["source"].update(more=1), "source.more: Extra inputs"),
        (lambda x: x.pop("memory_stride"), "memory_stride: Field required"),
        (lambda x: x.update(memory_stride=0), "memory_stride: Input should be greater"),
        (lambda x: x["limits"].update(max_tokens_extra=0), "limits.max_tokens_extra"),
        (lambda x: x["limits"].update(max_tokens_ratio=-1.0), "limits.max_tokens_ratio"),
        (lambda x: x["limits"].update(max_tokens_ratio=float("inf")), "limits.max_tokens_ratio"),
        (lambda x: x["limits"].update(max_source_tokens=0), "limits.max_source_tokens"),
        (lambda x: x["states"].append(x["states"][0]), "names must be unique"),
        (lambda x: x["memory"].append(x["memory"][0]), "names must be unique"),
        (lambda x: x["memory"][0].update(name="h0"), "names must be unique"),
        (lambda x: x["memory"][0].update(shape=[8, 8]), "shape: numbers, and M once"),
        (lambda x: x["memory"][0].update(shape=["M", "M"]), "shape: numbers, and M once"),
        (lambda x: x["memory"][0].update(shape=["M", "Q"]), "shape: numbers, and M once"),
        (lambda x: x["states"].clear(), "states: List should have at least 1 item"),
        (lambda x: drop_graph(x, "encoder"), "there is no encoder in fp32"),
        (lambda x: drop_graph(x, "encoder", "int8"), "there is no encoder in int8"),
        (lambda x: drop_graph(x, "decoder"), "there is no decoder in fp32"),
        (lambda x: drop_graph(x, "decoder", "int8"), "there is no decoder in int8"),
        (
            lambda x: x["graphs"].append({**x["graphs"][0], "file": "other.onnx"}),
            "one graph for each precision and role",
        ),
        (
            lambda x: x.update(golden=[y for y in x["golden"] if y["precision"] == "fp32"]),
            "golden: there is no vector for int8",
        ),
        (lambda x: x["golden"][0]["logprobs"].pop(), "one logprob for every token"),
        (lambda x: x["golden"][0]["source"].append(999), "token outside the vocabulary"),
        (lambda x: x["golden"][0]["source"].append(-1), "token outside the vocabulary"),
        (lambda x: x["golden"][0]["tokens"].__setitem__(1, 999), "token outside the vocabulary"),
        (lambda x: x["golden"][0].update(source=[]), "golden.0.source: List should have"),
        (lambda x: x["golden"].clear(), "golden: List should have at least 1 item"),
        (lambda x: x["metrics"].clear(), "metrics: List should have at least 1 item"),
        (
            lambda x: x["metrics"][0].update(
                measurements=[{"name": "a", "kind": "model", "values": {"beauty": 1.0}}]
            ),
            "metrics.0.measurements.0.values.beauty",
        ),
        (lambda x: x["model"].update(attention="self"), "model.attention"),
        (lambda x: x["target"].update(tokenization="words"), "target.tokenization"),
        (lambda x: x["target"].update(tokenization="bpe"), "required with bpe, and not allowed"),
        (
            lambda x: x["target"].update(tokenizer={"file": "t.json", "sha256": "0" * 64}),
            "required with bpe, and not allowed",
        ),
        (add_vocab_elsewhere, "they must be different files"),
        (lambda x: x["source"]["vocab"].update(file="manifest.json"), "must be different files"),
        (
            lambda x: x["source"]["vocab"].update(file="encoder.fp32.onnx"),
            "they must be different files",
        ),
        (lambda x: x["source"]["vocab"].update(file="../a"), "source.vocab.file: String should"),
    ],
)
def test_a_manifest_of_pairs_that_does_not_hold_is_refused_with_the_field(
    pairs: Path, change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    edit_manifest(pairs, change)
    message = refusal_of_encoder_decoder(pairs)
    assert message.startswith("tiny-pairs: manifest.json")
    assert cause in message


@pytest.mark.parametrize(
    "file", ["source.vocab.json", "target.vocab.json", "encoder.fp32.onnx", "decoder.int8.onnx"]
)
def test_every_file_of_an_encoder_decoder_is_checked(pairs: Path, file: str) -> None:
    data = bytearray((pairs / file).read_bytes())
    data[-3] ^= 1
    (pairs / file).write_bytes(data)
    assert (
        refusal_of_encoder_decoder(pairs)
        == f"tiny-pairs: {file}: its SHA-256 is not the manifest's"
    )
    (pairs / file).unlink()
    assert refusal_of_encoder_decoder(pairs) == f"tiny-pairs: {file}: No such file or directory"


def replace_side(folder: Path, side: str, part: str, data: bytes) -> str:
    """Another vocabulary or tokenizer, with a checksum that fits."""
    file = json.loads((folder / "manifest.json").read_bytes())[side][part]["file"]
    (folder / file).write_bytes(data)

    def tell(document: dict[str, Any]) -> None:
        for other in ("source", "target"):
            if (document[other][part] or {}).get("file") == file:
                document[other][part].update(sha256=sha256(data))

    edit_manifest(folder, tell)
    return str(file)


SPECIAL = '"\\ue000", "\\ue001", "\\ue002", "\\ue003"'


@pytest.mark.parametrize(
    ("side", "tokens", "cause"),
    [
        ("source", f'[{SPECIAL}, "ab"]', "exactly one character"),
        ("source", '["a", "b"]', "starts with the printed forms"),
        ("source", f'[{SPECIAL}, "a", "b"]', "6 tokens, the manifest has"),
        ("target", f'[{SPECIAL}, "a b"]', "has no space and is not empty"),
        ("target", f'[{SPECIAL}, ""]', "has no space and is not empty"),
        ("target", f'[{SPECIAL}, "A", "A"]', "holds each token once"),
        ("target", '["A", "B"]', "starts with the printed forms"),
        ("target", '{"A": 1}', "it must be a list of strings"),
        ("target", f'[{SPECIAL}, "A"]', "5 tokens, the manifest has"),
    ],
)  # fmt: skip
def test_a_side_whose_vocabulary_does_not_hold_is_refused(
    pairs: Path, side: str, tokens: str, cause: str
) -> None:
    file = replace_side(pairs, side, "vocab", tokens.encode())
    message = refusal_of_encoder_decoder(pairs)
    assert message.startswith(f"tiny-pairs: {file}: ")
    assert cause in message


def test_a_tokenizer_file_that_was_changed_is_refused(subwords: Path) -> None:
    path = subwords / "both.tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    cause = "both.tokenizer.json: its SHA-256 is not the manifest's"
    assert refusal_of_encoder_decoder(subwords) == f"tiny-pairs: {cause}"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "not a tokenizer of the tokenizers library"),
        (b"{}", "not a tokenizer of the tokenizers library"),
        (b"[" * 100_000, "not a tokenizer of the tokenizers library"),
        (b"\xff", "decode"),
    ],
)
def test_a_tokenizer_file_that_is_none_is_refused(subwords: Path, data: bytes, cause: str) -> None:
    file = replace_side(subwords, "source", "tokenizer", data)
    message = refusal_of_encoder_decoder(subwords)
    assert message.startswith(f"tiny-pairs: {file}: ")
    assert cause in message


def test_a_tokenizer_of_other_tokens_is_refused(subwords: Path) -> None:
    other = Subwords.learn(["something else"], vocab_size=64, min_count=1)
    file = replace_side(subwords, "source", "tokenizer", other.document.encode())
    cause = f"{file}: its tokens differ from the vocabulary's"
    assert refusal_of_encoder_decoder(subwords) == f"tiny-pairs: {cause}"


def test_a_tokenizer_whose_special_tokens_stand_elsewhere_is_refused(subwords: Path) -> None:
    document = json.loads((subwords / "both.tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    first, last = (next(x for x, i in vocab.items() if i == place) for place in (1, len(vocab) - 1))
    vocab[first], vocab[last] = vocab[last], vocab[first]
    replace_side(subwords, "source", "tokenizer", json.dumps(document).encode())
    assert "starts with the printed forms" in refusal_of_encoder_decoder(subwords)


@pytest.mark.parametrize("special", ["\ue000", "\ue001", "\ue002", "\ue003"])
def test_no_text_holds_a_special_token(subwords: Path, special: str) -> None:
    """Not for subwords either, whose library would look for them in a text."""
    tokenizer = read_pairs(subwords).source
    ids = tokenizer.encode(f"a{special}cat").tolist()
    assert UNK_ID in ids
    assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids)
    assert tokenizer.decode(ids) == "acat"


# --- the learning curve --------------------------------------------------------------------------


def test_a_bundle_without_a_learning_curve_is_as_good(folder: Path) -> None:
    edit_manifest(folder, lambda x: x["training"].pop("curve"))
    assert read_language_model(folder).manifest.training.curve is None


@pytest.mark.parametrize(
    ("steps", "values", "cause"),
    [
        ([1, 2], [1.0], "they must have the same length"),
        ([2, 2], [1.0, 1.0], "each is greater"),
        ([2, 1], [1.0, 1.0], "each is greater"),
        (list(range(1001)), [1.0] * 1001, "at most 1000 items"),
    ],
)
def test_a_learning_curve_that_is_none_is_refused(
    folder: Path, steps: list[int], values: list[float], cause: str
) -> None:
    curve = {"unit": "bits a character", "steps": steps, "values": values}
    edit_manifest(folder, lambda x: x["training"].update(curve=curve))
    assert cause in refusal(folder)


def test_a_learning_curve_is_read(folder: Path) -> None:
    curve = {"unit": "bits a character", "steps": [1, 5], "values": [3.0, 2.5]}
    edit_manifest(folder, lambda x: x["training"].update(curve=curve))
    read = read_language_model(folder).manifest.training.curve
    assert read is not None
    assert read.model_dump() == curve
