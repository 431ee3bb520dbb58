"""What a client sends, read with limits: URL, headers, chunks, and bodies that nobody reads."""

from enum import Enum, auto

from service.errors import HeadersTooLarge, ServiceError, UrlTooLong
from service.http.chunks import ChunkedBody
from service.http.request_heads import LINE_BYTES, MAX_HEADERS, Head, HeadReader, malformed
from service.settings import Settings

# Chunks read in the first turn and in each later one; a chunk takes a microsecond.
FIRST_CHUNKS = 32
TURN_CHUNKS = 256
# After an early answer, at most this much of the body's rest is read to keep the connection open.
DRAINED_BYTES = 64 * 1024
_HEAD_END = b"\r\n\r\n"


class State(Enum):
    """What the next byte belongs to."""

    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    NEXT = auto()  # the next request, which waits for the answer to this one
    BROKEN = auto()  # nothing: the request was refused


_IN_BODY = (State.BODY, State.CHUNKS)


class Received:
    """The bytes of a connection as requests: heads, and the pieces of their bodies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._max_url_bytes = settings.max_url_bytes
        # A head up to this size is within the limits of bytes and of lines (4 bytes at least).
        self._small_bytes = min(settings.max_url_bytes, settings.max_header_bytes, 4 * MAX_HEADERS)
        self._buffer: bytes | bytearray = b""
        self._heads = HeadReader()
        self._looked = 0  # bytes of the buffer that hold no end of a head
        self._rest = 0  # bytes to come of a body with Content-Length
        self._chunks = self._new_chunks()  # the body in State.CHUNKS
        self._turn = FIRST_CHUNKS  # chunks that may still be read in this turn
        self.state = State.HEAD
        self.awaits_continue = False  # the client may wait for "100 Continue"
        self.closes = False  # close after the next answer, whatever the request says

    @property
    def idle(self) -> bool:
        """Whether no byte of the next request has arrived."""
        return self.state is State.HEAD and not self._buffer

    @property
    def is_in_body(self) -> bool:
        """Whether a head is complete and its body is not."""
        return self.state in _IN_BODY

    @property
    def receives(self) -> bool:
        """Whether a request has begun and is not complete."""
        return self.state in _IN_BODY or (self.state is State.HEAD and bool(self._buffer))

    @property
    def is_cut(self) -> bool:
        """Whether received bytes wait for the next turn."""
        return self.state is State.CHUNKS and self._turn <= 0 and bool(self._buffer)

    @property
    def ahead_bytes(self) -> int:
        """Bytes received after the current request."""
        return len(self._buffer) if self.state is State.NEXT else 0

    @property
    def leaves_much(self) -> bool:
        """Whether more of the body is missing than is read after an early answer."""
        if self.state not in _IN_BODY:
            return False
        is_short = self.state is State.BODY and self._rest <= DRAINED_BYTES
        # A client that waits for "100 Continue" may or may not send the body.
        return not is_short or self.awaits_continue

    def begin_turn(self, chunks: int) -> None:
        """Allow this many more chunks."""
        self._turn = chunks

    def expect_stream(self) -> None:
        """Allow the body any number of chunks."""
        self._chunks.max_chunks = None

    def begin_next(self) -> None:
        """Go on to the next request: the current one is complete and has been answered."""
        self.state = State.HEAD
        self._looked = 0

    def receive(self, data: bytes) -> None:
        """Take bytes, which `next_event` then reads."""
        if not self._buffer:
            self._buffer = data
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        self._buffer += data

    def next_event(self) -> Head | bytes | None:
        """A head or the next piece of a body; None if more bytes or the next turn are needed.

        The piece may be empty at the end of the body. Raises the errors of 400, 413, 414 and 431.
        """
        if not self._buffer:
            return None
        try:
            if self.state is State.HEAD:
                return self._head()
            if self.state is State.BODY:
                return self._body()
            if self.state is State.CHUNKS and self._turn > 0:
                return self._chunked()
        except ServiceError:
            self.state = State.BROKEN
            self._buffer = b""
            raise
        return None

    def _head(self) -> Head | None:
        begun = self._buffer
        end = begun.find(_HEAD_END, max(0, self._looked - 3))
        size = len(begun) if end < 0 else end
        if size > self._small_bytes:
            self._check_size(size)
        if end < 0:
            self._check_begun()
            self._looked = len(begun)
            return None
        end += len(_HEAD_END)
        head = self._heads.read(bytes(begun[:end]))
        if len(head.target) > self._max_url_bytes:
            raise self._url_too_long()
        self._buffer = begun[end:]
        self.awaits_continue = head.expects_continue
        if head.length is None:
            self.state = State.CHUNKS
            self._chunks = self._new_chunks()
        else:
            self.state = State.BODY if head.length else State.NEXT
            self._rest = head.length
        return head

    def _new_chunks(self) -> ChunkedBody:
        return ChunkedBody(self._settings.max_body_chunks, self._settings.max_header_bytes)

    def _check_size(self, size: int) -> None:
        """Raise an error if the head's first `size` bytes are over a limit.

        Lines are counted before they are read, at half a microsecond each.
        """
        most = self._settings.max_header_bytes
        line = self._buffer.find(b"\r\n", 0, size)
        if (size if line < 0 else line) > self._max_url_bytes + LINE_BYTES:
            raise self._url_too_long()
        if 0 <= line < size - most:
            raise HeadersTooLarge(f"the headers of a request may have at most {most} bytes")
        if self._buffer.count(b"\n", 0, size) > MAX_HEADERS:
            raise HeadersTooLarge(f"a request may have at most {MAX_HEADERS} headers")

    def _check_begun(self) -> None:
        """Raise BadRequest for what cannot become a head, however it goes on."""
        begun = self._buffer
        # TLS, or an empty line. Or a bare line feed: its client may wait for an answer already.
        if begun[0] <= 0x20 or begun.count(b"\n", self._looked) != begun.count(
            b"\r\n", max(0, self._looked - 1)
        ):
            raise malformed()

    def _url_too_long(self) -> UrlTooLong:
        return UrlTooLong(f"a URL may have at most {self._max_url_bytes} bytes")

    def _body(self) -> bytes:
        self.awaits_continue = False
        buffer, rest = self._buffer, self._rest
        if len(buffer) <= rest:
            piece, self._buffer = bytes(buffer), b""
        else:
            piece, self._buffer = bytes(buffer[:rest]), buffer[rest:]
        self._rest -= len(piece)
        if not self._rest:
            self.state = State.NEXT
        return piece

    def _chunked(self) -> bytes | None:
        self.awaits_continue = False
        if not isinstance(self._buffer, bytearray):
            # Taking bytes off a bytearray's front costs nothing, however many follow.
            self._buffer = bytearray(self._buffer)
        piece, chunks = self._chunks.read(self._buffer, self._turn)
        self._turn -= chunks
        if self._chunks.is_complete:
            self.state = State.NEXT
            return piece
        return piece or None
