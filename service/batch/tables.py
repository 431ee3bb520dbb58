"""Parquet: batches of rows go to workers and come back in Arrow's stream format.

A Parquet file cannot be appended to. So a part holds such streams, each preceded by its length, and
is converted to Parquet when it is complete.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from service.batch.chunks import Chunk
from service.batch.errors import BatchError, DamagedFile
from service.batch.files import InputFile
from service.batch.work import ERROR, SCORE, Work

_ROWS = 1000
_LENGTH = struct.Struct("<Q")


def arrow() -> ModuleType:
    """pyarrow. Raises BatchError if it is not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra; forks come before its threads)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise BatchError(
            "Parquet needs pyarrow: .venv/service/bin/python -m pip install 'pyarrow>=26,<27'"
        ) from error
    module: ModuleType = pa
    return module


def row_works(file: InputFile, *, offset: int, column: str) -> Iterator[Work]:
    """The batches of rows from an offset on. Raises BatchError and DamagedFile."""
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(file.path) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise BatchError(
                    f"{file.path}: there is no column {column}; --field names the one with texts"
                )
            if found := [name for name in (SCORE, ERROR) if name in schema.names]:
                raise BatchError(f"{file.path} already has a column {found[0]}")
            rows, at = table.metadata.num_rows, 0
            batches = table.iter_batches(_ROWS, use_threads=False)
            if not rows:
                batches = [pa.RecordBatch.from_pylist([], schema=schema)]
            for batch in batches:
                first, at = at + 1, at + batch.num_rows
                if at > offset or not rows:
                    chunk = Chunk(first, batch.num_rows, packed(batch), at)
                    yield Work(file.kind, None, chunk, file.size_bytes * at // max(rows, 1))
    except pa.ArrowException as error:
        raise DamagedFile(str(error).partition("\n")[0]) from error


def packed(batch: Any) -> bytes:
    """A record batch as a stream."""
    pa = arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpacked(data: bytes) -> Any:
    """The record batch of a stream."""
    with arrow().ipc.open_stream(data) as stream:
        return stream.read_next_batch()


def framed(data: bytes) -> bytes:
    """A stream with its length, as a part holds it."""
    return _LENGTH.pack(len(data)) + data


def write_table(part: Path, path: Path) -> None:
    """Write the batches of a part as Parquet. Raises OSError."""
    pa = arrow()
    writer = None
    with part.open("rb") as file:
        while head := file.read(_LENGTH.size):
            batch = unpacked(file.read(*_LENGTH.unpack(head)))
            if writer is None:
                writer = pa.parquet.ParquetWriter(path, batch.schema)
            writer.write_batch(batch)
    if writer is not None:
        writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())
