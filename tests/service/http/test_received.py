"""Chunks read many at a time: the same body as one by one, within the bound, in turns."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.received import TURN_CHUNKS, ReceivingConnection
from service.settings import Settings

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in parts) + b"0\r\nX-Trailer: 1\r\n\r\n"


def connection(max_chunks: int = 10_000) -> ReceivingConnection:
    return ReceivingConnection(Settings(max_body_chunks=max_chunks), lambda _: None)


def read(receiving: ReceivingConnection) -> list[bytes]:
    """The pieces of the body that are there, over as many turns as they take."""
    pieces = []
    while True:
        receiving.begin_turn(TURN_CHUNKS)
        while (event := receiving.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            if isinstance(event, h11.EndOfMessage):
                return pieces
        if not receiving.is_cut:
            return pieces


@given(
    parts=st.lists(st.binary(min_size=1, max_size=9), max_size=200),
    cuts=st.lists(st.integers(0, 3000), max_size=10),
)
def test_any_chunks_in_any_pieces_are_the_same_body(parts: list[bytes], cuts: list[int]) -> None:
    data = HEAD + chunked(parts)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    receiving = connection()
    found: list[bytes] = []
    for begin, end in itertools.pairwise(places):
        receiving.receive_data(data[begin:end])
        found += read(receiving)
    assert b"".join(found) == b"".join(parts)
    assert receiving.their_state is h11.DONE


def test_a_turn_reads_so_many_chunks_as_one_piece() -> None:
    receiving = connection()
    receiving.receive_data(HEAD + b"1\r\na\r\n" * 1000)
    assert isinstance(receiving.next_event(), h11.Request)
    receiving.begin_turn(TURN_CHUNKS)
    piece = receiving.next_event()
    assert bytes(piece.data) == b"a" * TURN_CHUNKS
    assert receiving.next_event() is h11.NEED_DATA
    assert receiving.is_cut
    assert b"".join(read(receiving)) == b"a" * (1000 - TURN_CHUNKS)


def test_chunks_over_the_bound_are_refused_unless_they_are_a_streams() -> None:
    data = HEAD + b"1\r\na\r\n" * 11
    receiving = connection(10)
    receiving.receive_data(data)
    with pytest.raises(h11.RemoteProtocolError):
        read(receiving)
    assert receiving.refusal is not None
    assert (receiving.refusal.status, "10 chunks" in receiving.refusal.detail) == (413, True)
    stream = connection(10)
    stream.receive_data(HEAD)
    read(stream)
    stream.expect_stream()
    stream.receive_data(data.removeprefix(HEAD))
    assert b"".join(read(stream)) == b"a" * 11


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        ("Content-Length: 0", False),
        ("Content-Length: 65536", False),
        ("Content-Length: 65537", True),
        ("Content-Length: 10\r\nExpect: 100-continue", True),
        ("Transfer-Encoding: chunked", True),
    ],
)
def test_an_answer_before_the_body_says_whether_the_connection_stays(
    head: str, closes: bool
) -> None:
    receiving = connection()
    receiving.receive_data(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
    read(receiving)
    told = receiving.send(h11.Response(status_code=401, headers=[("content-length", "0")]))
    assert (b"connection: close" in told.lower()) == closes
