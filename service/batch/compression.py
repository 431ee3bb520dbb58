"""gzip and Zstandard: recognized by content, read as streams, written in whole members."""

import gzip
import io
import sys
import zlib
from typing import IO, Literal, TypeAlias, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression: TypeAlias = Literal["gzip", "zstd"]
SUFFIXES: dict[Compression | None, str] = {"gzip": ".gz", "zstd": ".zst", None: ""}
# What a damaged file raises while it is read.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# Frames that hold no data; parallel compressors write them first.
_SKIPPABLE = {bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60)}
_LEVELS = {"gzip": 6, "zstd": 3}


def compression_of(head: bytes) -> Compression | None:
    """The compression of a file that begins with these four bytes; None if it has none."""
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head[:4] == _ZSTD or head[:4] in _SKIPPABLE else None


def decompressed(raw: IO[bytes], compression: Compression | None) -> io.BufferedIOBase:
    """The decompressed content of an open file, with all its members."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if compression == "zstd":
        return cast("io.BufferedIOBase", zstd.ZstdFile(raw, mode="rb"))
    return cast("io.BufferedIOBase", raw)


def compressed(data: bytes, compression: Compression | None) -> bytes:
    """The data as a whole member or frame; the same data always gives the same bytes."""
    if not data or compression is None:
        return data
    if compression == "gzip":
        return gzip.compress(data, _LEVELS["gzip"], mtime=0)
    return zstd.compress(data, _LEVELS["zstd"])
