"""h11 with limits on what a client sends: URL, headers, chunks, and bodies that nobody reads."""

import re
from collections.abc import Callable
from typing import Any

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

from service.errors import BadRequest, BodyTooLarge, HeadersTooLarge, ServiceError, UrlTooLong
from service.settings import Settings

# Chunks read in the first turn and in each later one; a chunk takes 5 microseconds.
FIRST_CHUNKS = 8
TURN_CHUNKS = 64
MAX_HEADERS = 256
_HEAD_END = re.compile(rb"\n\r?\n")
# After an early answer, at most this much of the body's rest is read to keep the connection open.
DRAINED_BYTES = 64 * 1024


class ReceivingConnection(h11.Connection):
    """The server's side of a connection.

    `check` is called with every request head; the error that it returns rejects the request.
    """

    def __init__(
        self, settings: Settings, check: Callable[[h11.Request], ServiceError | None]
    ) -> None:
        self._settings = settings
        self._check_more = check
        whole = settings.max_url_bytes + settings.max_header_bytes
        super().__init__(h11.SERVER, whole)
        self._line = 0  # bytes received of the current request line
        self._bytes = 0  # bytes received of the current head
        self._rest: int | None = None  # bytes to come of a body with Content-Length
        self._chunks = 0  # received of the current body
        self._turn = FIRST_CHUNKS  # chunks that may still be read in this turn
        self._max_chunks: int | None = settings.max_body_chunks
        self.closes = False  # close after the next answer, whatever the request says
        self.refusal: ServiceError | None = None

    @property
    def awaits_head(self) -> bool:
        """Whether the next byte belongs to a request's head."""
        return self.their_state is h11.IDLE

    @property
    def idle(self) -> bool:
        """Whether no byte of the next request has arrived."""
        return self.their_state is h11.IDLE and not self._bytes

    @property
    def began_body(self) -> bool:
        """Whether a head is complete and its body is not."""
        return self.their_state is h11.SEND_BODY

    @property
    def receives(self) -> bool:
        """Whether a request has begun and is not complete."""
        return self.began_body or (self.awaits_head and bool(self._bytes))

    @property
    def is_cut(self) -> bool:
        """Whether received bytes wait for the next turn."""
        return self.began_body and self._turn <= 0 and bool(self._receive_buffer)

    def runs_ahead(self, limit: int) -> bool:
        """Whether the request is complete and the bytes after it are within the limit."""
        is_whole = self.their_state not in {h11.IDLE, h11.SEND_BODY, h11.ERROR}
        return is_whole and len(self._receive_buffer) < limit

    def begin_turn(self, chunks: int) -> None:
        """Allow this many more chunks."""
        self._turn = chunks

    def expect_stream(self) -> None:
        """Allow the body any number of chunks."""
        self._max_chunks = None

    def receive_data(self, data: bytes) -> None:
        """Count the bytes of the head, then pass them to h11."""
        if self.awaits_head:
            if self._line == self._bytes:
                self._line += (data.find(b"\n") + 1) or len(data)
            self._bytes += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """h11's next event. Also raises RemoteProtocolError for a request over a limit."""
        if self.is_cut:
            return h11.NEED_DATA
        if self.awaits_head and self._receive_buffer:
            self._check_lines(bytes(self._receive_buffer))
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal = self._too_large(self._line)
            raise
        if isinstance(event, h11.Request):
            self._bytes = self._line = 0
            self._check(event)
        elif isinstance(event, h11.Data) and self._rest is not None:
            self._rest -= len(event.data)
        return event

    def send(self, event: Any) -> Any:
        """h11's bytes; an answer sent before a long body has ended gets `Connection: close`."""
        if isinstance(event, h11.Response) and (self.closes or self._leaves_much()):
            headers = [(name, value) for name, value in event.headers if name != b"connection"]
            headers.append((b"connection", b"close"))
            event = h11.Response(
                status_code=event.status_code, headers=headers, reason=event.reason
            )
        return super().send(event)

    def count_chunk(self) -> bool:
        """Count a chunk; true if this turn may read another. Raises RemoteProtocolError."""
        self._chunks += 1
        self._turn -= 1
        if self._max_chunks is not None and self._chunks > self._max_chunks:
            limit = self._max_chunks
            self._refuse(BodyTooLarge(f"a body may have at most {limit} chunks; send larger ones"))
        return self._turn > 0

    def _leaves_much(self) -> bool:
        if not self.began_body:
            return False
        is_short = self._rest is not None and self._rest <= DRAINED_BYTES
        # A client that waits for "100 Continue" may or may not send the body.
        return not is_short or self.client_is_waiting_for_100_continue

    def _get_io_object(self, role: Any, event: Any, io_dict: Any) -> Any:
        made = super()._get_io_object(role, event, io_dict)
        return _ManyChunks(self) if isinstance(made, ChunkedReader) else made

    def _check(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        if len(request.target) > self._settings.max_url_bytes:
            self._refuse(self._too_large(len(request.target)))
        if size > self._settings.max_header_bytes:
            self._refuse(self._too_large(0))
        if b"content-length" in names and b"transfer-encoding" in names:
            # Request smuggling: a proxy may take for a request what is a body here, or vice versa.
            self._refuse(
                BadRequest("send either Content-Length or Transfer-Encoding, but not both")
            )
        refusal = self._check_more(request)
        if refusal is not None:
            self._refuse(refusal)
        self._chunks = 0
        self._max_chunks = self._settings.max_body_chunks
        lengths = [value for name, value in request.headers if name == b"content-length"]
        # h11 has checked that there is at most one, with at most 20 digits.
        self._rest = int(lengths[0]) if lengths else None

    def _check_lines(self, begun: bytes) -> None:
        """Reject a head with too many lines before parsing it (3 microseconds a line)."""
        end = _HEAD_END.search(begun)
        if begun.count(b"\n", 0, len(begun) if end is None else end.start()) > MAX_HEADERS:
            self._refuse(HeadersTooLarge(f"a request may have at most {MAX_HEADERS} headers"))

    def _too_large(self, line: int) -> ServiceError:
        if line > self._settings.max_url_bytes:
            return UrlTooLong(f"a URL may have at most {self._settings.max_url_bytes} bytes")
        limit = self._settings.max_header_bytes
        return HeadersTooLarge(f"the headers of a request may have at most {limit} bytes")

    def _refuse(self, error: ServiceError) -> None:
        self.refusal = error
        raise h11.RemoteProtocolError(error.detail, error.status)


class _ManyChunks(ChunkedReader):
    """h11's chunk reader, which returns all chunks of a turn as one piece.

    One event a chunk would cost five times as much as reading the chunk.
    """

    def __init__(self, connection: ReceivingConnection) -> None:
        super().__init__()
        self._connection = connection
        self._behind: h11.EndOfMessage | None = None

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """The data of the chunks that have arrived, then the end; None if more bytes are needed."""
        if self._behind is not None:
            return self._behind
        parts: list[bytes] = []
        event = super().__call__(buf)
        while isinstance(event, h11.Data):
            parts.append(event.data)
            if event.chunk_start and not self._connection.count_chunk():
                break
            event = super().__call__(buf)
        if not parts:
            return event
        if isinstance(event, h11.EndOfMessage):
            self._behind = event
        return h11.Data(data=b"".join(parts))
