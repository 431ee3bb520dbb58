"""Which files are read, and what their outputs are called."""

import gzip
import os
from pathlib import Path

import pytest

from service.batch.compression import compressed
from service.batch.errors import BatchError
from service.batch.files import InputFile, input_files


def found(folder: Path, *patterns: str, are_records: bool = False) -> list[InputFile]:
    given = [str(folder / pattern) for pattern in patterns]
    return input_files(given, folder / "out", ".txt", are_records=are_records)


def outputs(files: list[InputFile]) -> list[str]:
    return [str(file.output) for file in files]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name in ("logs/a/x.log", "logs/b/x.log", "logs/notes.txt", "logs/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a cat\n")
    return tmp_path


def test_a_folder_keeps_its_folders_and_hidden_files_are_left_out(logs: Path) -> None:
    assert outputs(found(logs, "logs")) == ["a/x.log.txt", "b/x.log.txt", "notes.txt"]


def test_a_pattern_keeps_the_folders_that_its_wildcards_match(logs: Path) -> None:
    assert outputs(found(logs, "logs/*/x.log")) == ["a/x.log.txt", "b/x.log.txt"]


def test_a_file_named_twice_is_read_once(logs: Path) -> None:
    assert outputs(found(logs, "logs/notes.txt", "logs/*.txt")) == ["notes.txt"]


def test_two_inputs_with_one_output_are_refused(logs: Path) -> None:
    with pytest.raises(BatchError, match=r"x\.log and .*x\.log would both be written"):
        found(logs, "logs/a/x.log", "logs/b/x.log")


def test_an_input_is_never_an_output(logs: Path) -> None:
    given = [str(logs / "logs/notes.txt")]
    with pytest.raises(BatchError, match="is an input"):
        input_files(given, logs / "logs", ".txt", are_records=False)


def test_a_pattern_that_matches_nothing_is_refused(logs: Path) -> None:
    with pytest.raises(BatchError, match=r"\*\.gz: no such file"):
        found(logs, "logs/*.gz")


@pytest.mark.parametrize(
    ("name", "cause"),
    [("none", "no such file"), ("pipe", "not a regular file"), ("empty", "it has no files")],
)
def test_an_input_without_files_is_refused(logs: Path, name: str, cause: str) -> None:
    os.mkfifo(logs / "pipe")
    (logs / "empty").mkdir()
    with pytest.raises(BatchError, match=f"{name}: .*{cause}"):
        found(logs, name)


def test_results_among_the_inputs_are_no_inputs(logs: Path) -> None:
    (logs / "out").mkdir()
    (logs / "out/notes.txt").write_bytes(b"-1.0\ta cat\n")
    assert "out/notes.txt" not in map(str, (file.path for file in found(logs, ".")))
    assert len(found(logs, ".")) == 3
    with pytest.raises(BatchError, match="the same folder"):
        found(logs, "out")


def test_the_content_tells_the_compression_and_the_name_tells_records(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(gzip.compress(b"a\n"))
    (tmp_path / "b.jsonl.zst").write_bytes(compressed(b"{}\n", "zstd"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1...")
    a, b, c = found(tmp_path, "a.log", "b.jsonl.zst", "c.parquet")
    assert (a.compression, a.kind, str(a.output)) == ("gzip", "lines", "a.log.txt.gz")
    assert (b.compression, b.kind, str(b.output)) == ("zstd", "records", "b.jsonl.zst")
    assert (c.compression, c.kind, str(c.output)) == (None, "table", "c.parquet")


def test_a_field_makes_lines_records(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"{}\n")
    (file,) = found(tmp_path, "a.log", are_records=True)
    assert (file.kind, str(file.output)) == ("records", "a.log.ndjson")
