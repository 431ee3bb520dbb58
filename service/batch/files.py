"""Which files are read, and the name of each one's output."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from service.batch.compression import SUFFIXES, Compression, compression_of
from service.batch.errors import BatchError

# Lines are texts, or JSON objects; a table is Parquet.
Kind: TypeAlias = Literal["lines", "records", "table"]
_PARQUET = b"PAR1"
_RECORDS = (".ndjson", ".jsonl", ".json")
_TABLE = ".parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file to read."""

    path: Path
    kind: Kind
    compression: Compression | None
    output: Path  # relative to the folder of outputs
    size_bytes: int
    changed_ns: int


def input_files(
    patterns: Sequence[str], output: Path, suffix: str, *, are_records: bool
) -> list[InputFile]:
    """The files that the patterns match, each once; a pattern may also be a file or a folder.

    `suffix` is for the outputs of text files. Files in the folder of outputs are not inputs. Raises
    BatchError if a pattern matches nothing, if two outputs would be the same file, or if an output
    would be an input.
    """
    found: dict[Path, InputFile] = {}
    for pattern in patterns:
        listed = list(_matches(pattern, output.resolve()))
        if not listed:
            raise BatchError(f"--input {pattern}: {_nothing(pattern)}")
        for path, name in listed:
            if path.resolve() not in found:
                found[path.resolve()] = _described(path, name, suffix, are_records=are_records)
    names: dict[Path, Path] = {}
    for file in found.values():
        other = names.setdefault(file.output, file.path)
        if other != file.path:
            raise BatchError(
                f"{other} and {file.path} would both be written to {output / file.output}; give "
                "their common folder as --input, or score them in two runs, each with its --output"
            )
        if (output / file.output).resolve() in found:
            raise BatchError(f"{output / file.output} is an input; choose another --output")
    return list(found.values())


def _nothing(pattern: str) -> str:
    path = Path(pattern)
    if path.is_dir():
        return "it has no files"
    return "not a regular file" if path.exists() else "no such file"


def _matches(pattern: str, output: Path) -> Iterator[tuple[Path, Path]]:
    """Files, each with its path below the part of the pattern that has no wildcards."""
    path = Path(pattern)
    if path.is_file():
        yield path, Path(path.name)
        return
    if path.is_dir():
        base, listed = path, sorted(path.rglob("*"))
    elif not glob.has_magic(pattern):
        return
    else:
        plain = []
        for part in path.parts:
            if glob.has_magic(part):
                break
            plain.append(part)
        base = Path(*plain)
        listed = sorted(base.glob(str(path.relative_to(base))))
    if base.resolve() == output:
        # The next run would read the results of this one.
        raise BatchError(f"--input {pattern}: --output is the same folder; choose another")
    for each in listed:
        name = each.relative_to(base)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_result = base.resolve() in output.parents and output in each.resolve().parents
        if each.is_file() and not is_hidden and not is_result:
            yield each, name


def _described(path: Path, name: Path, suffix: str, *, are_records: bool) -> InputFile:
    try:
        with path.open("rb") as file:
            head = file.read(4)
        about = path.stat()
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}") from error
    compression = compression_of(head)
    inner = name
    if compression is not None and name.suffix in {".gz", ".gzip", ".zst", ".zstd"}:
        inner = name.with_suffix("")
    kind: Kind = "lines"
    if head == _PARQUET:
        kind = "table"
    elif are_records or inner.suffix in _RECORDS:
        kind = "records"
    endings = {"lines": (suffix,), "records": _RECORDS, "table": (_TABLE,)}[kind]
    if inner.suffix not in endings:
        inner = inner.with_name(inner.name + endings[0])
    return InputFile(
        path=path,
        kind=kind,
        compression=compression,
        output=inner.with_name(inner.name + SUFFIXES[compression]),
        size_bytes=about.st_size,
        changed_ns=about.st_mtime_ns,
    )
