"""The bytes of an input file: decompressed, as UTF-8 without a byte order mark."""

import codecs
from types import TracebackType
from typing import Self

from service.batch.compression import DAMAGED, decompressed
from service.batch.errors import DamagedFile
from service.batch.files import InputFile

_READ_BYTES = 2**18
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class InputStream:
    """Offsets count the bytes that `read` returns."""

    def __init__(self, file: InputFile) -> None:
        """Raises DamagedFile and OSError."""
        self._raw = file.path.open("rb")
        self._stream = decompressed(self._raw, file.compression)
        self._is_plain = file.compression is None
        self._decoder: codecs.IncrementalDecoder | None = None
        head = b""
        while len(head) < 3 and (more := self._read()):
            head += more
        encoding = _UTF_16.get(head[:2])
        if encoding is not None:
            self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
            head = head[2:]
        self._mark_bytes = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        self._head = self._recoded(head[self._mark_bytes :])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._raw.close()

    @property
    def position(self) -> int:
        """Bytes of the file itself that have been read."""
        return self._raw.tell()

    def read(self) -> bytes:
        """The next bytes; none at the end. Raises DamagedFile."""
        if self._head:
            head, self._head = self._head, b""
            return head
        while data := self._read():
            if recoded := self._recoded(data):
                return recoded
        return b""

    def skip(self, offset: int) -> bytes:
        """Continue at an offset; returns the bytes already read beyond it. Raises DamagedFile."""
        if self._is_plain and self._decoder is None:
            self._raw.seek(self._mark_bytes + offset)
            self._head = b""
            return b""
        while data := self.read():
            if len(data) >= offset:
                return data[offset:]
            offset -= len(data)
        return b""

    def _recoded(self, data: bytes) -> bytes:
        if self._decoder is None:
            return data
        # A lone surrogate is kept, and its line is rejected later.
        return self._decoder.decode(data).encode("utf-8", "surrogatepass")

    def _read(self) -> bytes:
        try:
            return self._stream.read1(_READ_BYTES)
        except DAMAGED as error:
            raise DamagedFile(str(error)) from error
