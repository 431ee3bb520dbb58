"""The command line: on a bundle and against a server, the same numbers to the last digit."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import __main__ as service
from service.bundle.store import write_bundle
from service.cli import commands
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import ROOT, Server, free_port, serve
from tests.labelers import tiny_labeler_files

TEXT, PAIRS = "tiny-lstm", "tiny-pairs"
LABELS, TAGS = "tiny-text", "tiny-restore"
Where = list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    write_bundle(found, *tiny_files("lstm"))
    write_bundle(found, *tiny_encoder_decoder_files(name=PAIRS))
    write_bundle(found, *tiny_labeler_files("text"))
    write_bundle(found, *tiny_labeler_files("restore"))
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder, engine_threads=1) as running:
        yield running


def command(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m service`, in this process: a new one would take a second or two to start."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with tempfile.TemporaryFile("w+") as stdin, pytest.MonkeyPatch.context() as patch:
        stdin.write(given)
        stdin.seek(0)
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "argv", ["service", *arguments])
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                status = service.main()
            except SystemExit as ended:  # of the parser
                status = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


def rows(*arguments: str, given: str = "") -> list[Any]:
    done = command(*arguments, "--format", "json", given=given)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def places(server: Server, folder: Path, model: str) -> list[Where]:
    return [["--url", server.url, "--model", model], ["--bundle", str(folder / model)]]


def test_score_is_the_same_everywhere(server: Server, folder: Path) -> None:
    with server.client() as client:
        body = {"model": TEXT, "text": ["a cat", "tea"], "tokens": True}
        wanted = client.post("/score", json=body).json()["results"]
    for where in places(server, folder, TEXT):
        found = rows("score", *where, "--tokens", "a cat", "tea")
        assert [{k: x[k] for k in wanted[0]} for x in found] == wanted
        lines = rows("score", *where, "--tokens", given="a cat\ntea\n")
        assert lines == found
    pairs = [
        rows("score", *where, "--source", "a cat", "tac a")
        for where in places(server, folder, PAIRS)
    ]
    assert pairs[0] == pairs[1]


def test_generate_and_translate_are_the_same_everywhere(server: Server, folder: Path) -> None:
    options = ["--max-tokens", "12", "--seed", "4", "--n", "2", "--temperature", "2"]
    found = [rows("generate", *x, *options, "the ") for x in places(server, folder, TEXT)]
    assert found[0] == found[1]
    assert len(found[0]) == 2
    options = ["--num-hypotheses", "2", "--beam-size", "3", "--alignments"]
    found = [rows("translate", *x, *options, "a cat") for x in places(server, folder, PAIRS)]
    assert found[0] == found[1]
    assert len(found[0][0]["hypotheses"]) == 2


def test_infill_is_the_same_everywhere(server: Server, folder: Path) -> None:
    text, candidates = "the c__ ___ in a h__", ["at", "sat", "oat"]
    with server.client() as client:
        body = {"model": TEXT, "text": text, "blank": "__", "candidates": candidates, "eos": True}
        (wanted,) = client.post("/infill", json=body).json()["results"]
    options = ["--blank", "__", "--eos", "--candidates", *candidates]
    for where in places(server, folder, TEXT):
        lines = rows("infill", *where, *options, given=f"{text}\n{text}\n")
        assert lines == [{"text": text, **wanted}] * 2


@pytest.mark.parametrize(("model", "name"), [(LABELS, "classify"), (TAGS, "tag")])
def test_labels_are_the_same_everywhere(
    server: Server, folder: Path, capfd: pytest.CaptureFixture[str], model: str, name: str
) -> None:
    texts = ["a bad idea", "abide"]
    body: dict[str, Any] = {"model": model, "text": texts} | ({"top": 1} if model == LABELS else {})
    with server.client() as client:
        wanted = client.post(f"/{name}", json=body).json()["results"]
    sent = "text" if model == LABELS else "sent"
    for where in places(server, folder, model):
        assert commands.run([name, *where, "--format", "json", *texts]) == 0
        found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert found == [{sent: text, **each} for text, each in zip(texts, wanted, strict=True)]


def test_text_and_tsv(folder: Path) -> None:
    where = ["--bundle", str(folder / TEXT)]
    plain = command("score", *where, "a cat")
    bits, text = plain.stdout.rstrip("\n").split("\t")
    assert text == "a cat"
    assert float(bits) > 0
    table = command("score", *where, "--format", "tsv", "a\tb\\\n").stdout.splitlines()
    assert table[0].split("\t") == ["bits_per_char", "bits", "logprob", "chars", "text"]
    assert table[1].split("\t")[-1] == "a\\tb\\\\\\n"
    translated = command(
        "translate", "--bundle", str(folder / PAIRS), "--format", "tsv", given="a cat\ntea\n"
    ).stdout.splitlines()
    assert [row.split("\t")[0] for row in translated] == ["source", "a cat", "tea"]
    written = command("generate", *where, "--max-tokens", "5", "--pattern", "[a-c]{5}", "x")
    assert set(written.stdout.strip()) <= set("abc")
    assert len(written.stdout.strip()) == 5


def test_models_are_listed(server: Server, folder: Path) -> None:
    served = rows("models", "--url", server.url)
    assert [x["name"] for x in served] == sorted((TEXT, PAIRS, LABELS, TAGS))
    assert rows("models", "--bundle", str(folder)) == served
    assert [x["name"] for x in rows("models", "--bundle", str(folder / TEXT))] == [TEXT]
    assert command("models", "--bundle", str(folder)).stdout.count("\t") == 12


def test_the_process_ends_with_the_status_of_the_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "generate", "--bundle", str(folder / PAIRS), "a"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")


def test_each_line_of_a_pipe_is_answered_at_once(folder: Path) -> None:
    arguments = [sys.executable, "-m", "service", "score", "--bundle", str(folder / TEXT)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("a cat", "tea"):
            process.stdin.write(text + "\n")
            process.stdin.flush()
            assert process.stdout.readline().rstrip("\n").endswith(f"\t{text}")
        # Whoever reads goes: that is the end, and a quiet one.
        process.stdout.close()
        process.stdin.write("a hat\na rabbit\n")
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's command needs curl")
def test_curl_is_answered_line_by_line(server: Server) -> None:
    url = f"{server.url}/score?model={TEXT}"
    arguments = ["curl", "-sN", "-X", "POST", "-T", ".", "-H", "Content-Type: text/plain", url]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2):
            process.stdin.write("a cat\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_key_that_is_made_is_a_key(folder: Path, tmp_path: Path) -> None:
    made = command("keys", "alice")
    keys, own = tmp_path / "keys", tmp_path / "own"
    keys.write_text(made.stdout)
    own.write_text(made.stderr.split()[-1])
    assert own.read_text().startswith("unroll-")
    assert own.read_text() not in made.stdout
    with serve(folder, api_keys_file=keys) as guarded:
        ask = ("models", "--url", guarded.url)
        assert len(rows(*ask, "--api-key-file", str(own))) == len(list(folder.iterdir()))
        assert "send a known key" in command(*ask).stderr
        nowhere = command(*ask, "--api-key-file", str(tmp_path / "no"))
        assert "no key can be read" in nowhere.stderr


@pytest.mark.parametrize(
    ("status", "words", "arguments"),
    [
        (1, "less than or equal", ["generate", "--bundle", "{text}", "--top-p", "2", "a"]),
        (1, "does not continue text", ["generate", "--bundle", "{pairs}", "a"]),
        (1, "does not translate", ["translate", "--bundle", "{text}", "a"]),
        (1, "given its source", ["score", "--bundle", "{pairs}", "a"]),
        (1, "not `source`", ["score", "--bundle", "{text}", "--source", "b", "a"]),
        (1, "manifest.json", ["score", "--bundle", "{folder}", "a"]),
        (1, "no such model", ["score", "--url", "{url}", "--model", "nothing", "a"]),
        (1, "http://", ["score", "--url", "file:///etc/passwd", "a"]),
        (1, "127.0.0.1", ["score", "--url", "http://127.0.0.1:{free}", "a"]),
        (1, "1 to 64", ["keys", "a b"]),
        (2, "invalid choice", ["score", "--format", "xml", "a"]),
        (2, "not allowed with", ["score", "--url", "http://x", "--bundle", "y", "a"]),
    ],
)
def test_what_goes_wrong_is_one_line(
    server: Server, folder: Path, status: int, words: str, arguments: list[str]
) -> None:
    names = {
        "text": folder / TEXT,
        "pairs": folder / PAIRS,
        "folder": folder,
        "url": server.url,
        "free": free_port(),
    }
    done = command(*(argument.format(**names) for argument in arguments))
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].count("error: ") == 1
    assert "Traceback" not in done.stderr
