"""h11 with bounds on what a client sends: heads, chunks, and bodies that nobody reads."""

import re
from collections.abc import Callable
from typing import Any

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

from service.errors import BadRequest, BodyTooLarge, HeadersTooLarge, ServiceError, UrlTooLong
from service.settings import Settings

# Chunks that are read as they come, 5 microseconds each, and in each turn after that.
FIRST_CHUNKS = 8
TURN_CHUNKS = 64
MAX_HEADERS = 256
_HEAD_END = re.compile(rb"\n\r?\n")
# The rest of a body that was answered before its end: so much is read, to keep the connection.
DRAINED_BYTES = 64 * 1024


class ReceivingConnection(h11.Connection):
    """The server's side of a connection.

    `check` is asked about every head and may answer with the error to refuse it with.
    """

    def __init__(
        self, settings: Settings, check: Callable[[h11.Request], ServiceError | None]
    ) -> None:
        self._settings = settings
        self._check_more = check
        whole = settings.max_url_bytes + settings.max_header_bytes
        super().__init__(h11.SERVER, whole)
        self._line = 0  # bytes of a request line that has not ended
        self._bytes = 0  # of a head that has not ended
        self._rest: int | None = None  # of a body whose length was declared
        self._chunks = 0  # of a body
        self._turn = FIRST_CHUNKS  # chunks that may still be read in this turn
        self._max_chunks: int | None = settings.max_body_chunks
        self.closes = False  # after the next answer, whatever is asked
        self.refusal: ServiceError | None = None

    @property
    def awaits_head(self) -> bool:
        """Whether the next byte belongs to a request's head."""
        return self.their_state is h11.IDLE

    @property
    def idle(self) -> bool:
        """Whether no byte of a request has come."""
        return self.their_state is h11.IDLE and not self._bytes

    @property
    def began_body(self) -> bool:
        """Whether a head has come, and its body has not ended."""
        return self.their_state is h11.SEND_BODY

    @property
    def receives(self) -> bool:
        """Whether something of a request is still to come."""
        return self.began_body or (self.awaits_head and bool(self._bytes))

    @property
    def is_cut(self) -> bool:
        """Whether something that has come waits for the next turn."""
        return self.began_body and self._turn <= 0 and bool(self._receive_buffer)

    def runs_ahead(self, limit: int) -> bool:
        """Whether a request is whole, and what has come behind it is within the limit."""
        is_whole = self.their_state not in {h11.IDLE, h11.SEND_BODY, h11.ERROR}
        return is_whole and len(self._receive_buffer) < limit

    def begin_turn(self, chunks: int) -> None:
        """Read so many chunks more."""
        self._turn = chunks

    def expect_stream(self) -> None:
        """The body may have any number of chunks."""
        self._max_chunks = None

    def receive_data(self, data: bytes) -> None:
        """Count what a head takes, then h11's own."""
        if self.awaits_head:
            if self._line == self._bytes:
                self._line += (data.find(b"\n") + 1) or len(data)
            self._bytes += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """h11's next event. Raises RemoteProtocolError for what is over a limit, too."""
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
        """h11's bytes. An answer to a body that has not come says that the connection closes."""
        if isinstance(event, h11.Response) and (self.closes or self._leaves_much()):
            headers = [(name, value) for name, value in event.headers if name != b"connection"]
            headers.append((b"connection", b"close"))
            event = h11.Response(
                status_code=event.status_code, headers=headers, reason=event.reason
            )
        return super().send(event)

    def count_chunk(self) -> bool:
        """Count a chunk; whether the turn has room for another. Raises RemoteProtocolError."""
        self._chunks += 1
        self._turn -= 1
        if self._max_chunks is not None and self._chunks > self._max_chunks:
            limit = self._max_chunks
            self._refuse(
                BodyTooLarge(f"a body may come in {limit} chunks at most; send larger ones")
            )
        return self._turn > 0

    def _leaves_much(self) -> bool:
        if not self.began_body:
            return False
        is_short = self._rest is not None and self._rest <= DRAINED_BYTES
        # Who waits for "100 Continue" does not say whether the body comes.
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
            # Two lengths: what one reads as a body another reads as the next request.
            self._refuse(BadRequest("Content-Length and Transfer-Encoding exclude each other"))
        refusal = self._check_more(request)
        if refusal is not None:
            self._refuse(refusal)
        self._chunks = 0
        self._max_chunks = self._settings.max_body_chunks
        lengths = [value for name, value in request.headers if name == b"content-length"]
        # h11 has checked them: one, of 20 digits at most.
        self._rest = int(lengths[0]) if lengths else None

    def _check_lines(self, begun: bytes) -> None:
        """Refuse a head of very many lines before it is parsed, at 3 microseconds a line."""
        end = _HEAD_END.search(begun)
        if begun.count(b"\n", 0, len(begun) if end is None else end.start()) > MAX_HEADERS:
            self._refuse(HeadersTooLarge(f"a request may have {MAX_HEADERS} headers at most"))

    def _too_large(self, line: int) -> ServiceError:
        if line > self._settings.max_url_bytes:
            return UrlTooLong(f"a URL may have {self._settings.max_url_bytes} bytes at most")
        limit = self._settings.max_header_bytes
        return HeadersTooLarge(f"the headers of a request may have {limit} bytes at most")

    def _refuse(self, error: ServiceError) -> None:
        self.refusal = error
        raise h11.RemoteProtocolError(error.detail, error.status)


class _ManyChunks(ChunkedReader):
    """h11's reader of chunks, which gives all those of a turn as one piece.

    An event for each chunk costs five times what reading it costs.
    """

    def __init__(self, connection: ReceivingConnection) -> None:
        super().__init__()
        self._connection = connection
        self._behind: h11.EndOfMessage | None = None

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """What the chunks that are there hold together, then the end; None where more is needed."""
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
