"""`score --input`: files through worker processes."""

import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.batch.compression import compressed
from service.bundle.store import write_bundle
from service.cli.bundle import Bundle
from service.cli.commands import run
from tests.bundles import tiny_files

TEXTS = ["a cat", "", "tea at three", "caf\u00e9", "a cat", "z" * 300]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"), *tiny_files("gru"))


def score(bundle: Path, tmp_path: Path, *more: str, status: int = 0) -> Path:
    """The folder of the results of everything in `in`."""
    folder = tmp_path / "out"
    given = ["--input", str(tmp_path / "in"), "--output", str(folder)]
    assert run(["score", "--bundle", str(bundle), *given, *more]) == status
    return folder


def put(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_every_line_has_the_numbers_of_score_whatever_the_workers(
    bundle: Path, tmp_path: Path
) -> None:
    lines = TEXTS * 600
    put(tmp_path, "a.log", "\n".join(lines).encode())
    engine = Bundle(bundle)
    whole = {x: engine.ask("/score", {"text": x})["results"][0] for x in set(lines)}
    engine.close()
    found = rows((score(bundle, tmp_path, "--format", "json") / "a.log.ndjson").read_bytes())
    assert found == [{**whole[line], "text": line} for line in lines]


def test_the_output_is_compressed_as_its_input(bundle: Path, tmp_path: Path) -> None:
    content = "\r\n".join(TEXTS).encode("utf-8-sig")
    put(tmp_path, "plain", content)
    put(tmp_path, "gz.gz", gzip.compress(content[:9]) + gzip.compress(content[9:]))
    put(tmp_path, "zst.zst", compressed(content[:9], "zstd") + compressed(content[9:], "zstd"))
    put(tmp_path, "wide", content.decode("utf-8-sig").encode("utf-16"))
    folder = score(bundle, tmp_path)
    plain = (folder / "plain.txt").read_bytes()
    assert [line.split("\t")[1] for line in plain.decode().split("\n")[:-1]] == TEXTS
    assert gzip.decompress((folder / "gz.txt.gz").read_bytes()) == plain
    assert (folder / "zst.txt.zst").read_bytes() == compressed(plain, "zstd")
    assert (folder / "wide.txt").read_bytes() == plain


def test_a_record_keeps_its_bytes_and_gains_a_score(bundle: Path, tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", b'{"id": 1.50, "text": "a cat"}\n\n{"text": ""}\n')
    first, second = (score(bundle, tmp_path) / "a.jsonl").read_text().splitlines()
    assert first.startswith('{"id": 1.50, "text": "a cat", "score": {')
    assert json.loads(second)["score"]["chars"] == 0


def test_a_line_that_cannot_be_scored_keeps_its_place(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.log", b"a cat\ncaf\xe9\ntea\n")
    records = [b'{"text": 7}', b"{", b'{"text": "tea", "score": 1}', b'{"text": "tea"}', b"{}"]
    put(tmp_path, "b.jsonl", b"\n".join(records))
    folder = score(bundle, tmp_path, status=1)
    kept = [line.split("\t") for line in (folder / "a.log.txt").read_text().splitlines()]
    assert [line[1] for line in kept] == ["a cat", "", "tea"]
    assert kept[1][0] == "-"
    errors = [row.get("score_error") for row in rows((folder / "b.jsonl").read_bytes())]
    assert errors == [
        "no field text with a text",
        "not JSON",
        "it already has a field score or score_error",
        None,
        "no field text with a text",
    ]
    told = capfd.readouterr().err
    assert "a.log: line 2: byte 4 is not UTF-8" in told
    assert "5 lines could not be scored" in told


def test_json_nested_without_end_and_utf_16_in_a_line_are_errors_of_their_lines(
    bundle: Path, tmp_path: Path
) -> None:
    deep = b'{"text": "tea", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    put(tmp_path, "a.jsonl", b"\n".join([deep, b'{"\0t\0"\0:\0"\0a\0"\0}\0', b'{"text": "tea"}']))
    found = rows((score(bundle, tmp_path, status=1) / "a.jsonl").read_bytes())
    errors = [row.get("score_error") for row in found]
    assert errors == ["JSON that is nested too deeply", "not JSON", None]


def test_a_name_of_any_bytes_is_kept(bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.log")
    put(tmp_path, name, b"a cat\n")
    for _ in range(2):
        assert (score(bundle, tmp_path) / f"{name}.txt").is_file()


def test_an_output_that_cannot_be_a_folder_is_named(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.log", b"a cat\n")
    (tmp_path / "out").touch()
    score(bundle, tmp_path, status=1)
    assert f"error: {tmp_path / 'out'}: File exists" in capfd.readouterr().err


def test_a_file_that_is_cut_off_is_named_and_the_others_are_scored(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = random.Random(1).randbytes(3000).hex()
    put(tmp_path, "a.gz", gzip.compress(f"a cat\n{noise}".encode())[:-20])
    put(tmp_path, "b.log", b"tea\n")
    folder = score(bundle, tmp_path, status=1)
    assert "a.gz: it is cut off or damaged after line 1" in capfd.readouterr().err
    assert gzip.decompress((folder / "a.txt.gz.part").read_bytes()).endswith(b"\ta cat\n")
    assert (folder / "b.log.txt").exists()


@pytest.mark.parametrize("change", ["input", "options", "bundle"])
def test_the_results_of_another_run_are_never_continued(
    bundle: Path, tmp_path: Path, change: str, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.log", b"tea\n")
    score(bundle, tmp_path)
    if change == "input":
        put(tmp_path, "a.log", b"tea\nmore\n")
    elif change == "bundle":
        bundle = write_bundle(tmp_path, *tiny_files("lstm"))
    score(bundle, tmp_path, *(["--eos"] if change == "options" else []), status=1)
    assert "choose another --output" in capfd.readouterr().err


def test_an_option_that_the_model_lacks_is_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.log", b"tea\n")
    folder = score(bundle, tmp_path, "--percentile", status=1)
    assert "no table of held-out texts" in capfd.readouterr().err
    assert not folder.exists()


def test_a_killed_run_continues_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    lines = [f"{text} {i}" for i, text in enumerate(TEXTS * 1000)]
    put(tmp_path, "a.gz", gzip.compress("\n".join(lines).encode()))
    put(tmp_path, "b.log", "\n".join(lines[:1500]).encode())
    whole = {x.name: x.read_bytes() for x in score(bundle, tmp_path).iterdir()}
    folder = tmp_path / "again"
    command = [sys.executable, "-m", "service", "score", "--bundle", str(bundle)]
    command += ["--input", str(tmp_path / "in"), "--output", str(folder), "--workers", "2"]
    moments = random.Random(2)
    ends = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        if number is not None:
            _wait_until_locked(folder / "unroll.journal")
            time.sleep(moments.uniform(0, 0.5))
            process.send_signal(number)
        process.communicate(timeout=120)
        ends.append(process.returncode)
    assert ends[0] in {0, -signal.SIGKILL}
    assert ends[1] in {0, 143}
    assert ends[2] in {0, 130}
    assert ends[3] == 0
    for name, content in whole.items():
        if name != "unroll.journal":
            assert (folder / name).read_bytes() == content


def _wait_until_locked(path: Path) -> None:
    """Until a run has begun."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
        time.sleep(0.01)
