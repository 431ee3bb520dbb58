"""How connections are shared out among processes, here two acceptors in one event loop."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.processes.acceptor import Acceptor, ConnectionCounts


class Held(asyncio.Protocol):
    """A connection that is among those of its process until it is lost."""

    def __init__(self, held: set[asyncio.Protocol]) -> None:
        self._held = held

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self._held.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._held.discard(self)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_connections_go_to_the_process_that_has_fewer() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:

            def connect(count: int) -> None:
                for _ in range(count):
                    stack.enter_context(socket.create_connection(listening.getsockname()))

            counts = ConnectionCounts(2)
            held: list[set[asyncio.Protocol]] = [set(), set()]
            # As after a fork: another descriptor of the same socket.
            shared = [listening, stack.enter_context(listening.dup())]
            first, second = (
                Acceptor([shared[i]], partial(Held, held[i]), held[i], counts, i) for i in range(2)
            )
            first.start()
            second.start()
            connect(12)
            await until(lambda: len(held[0]) + len(held[1]) == 12)
            assert [len(x) for x in held] == [6, 6]
            # Nobody waits for one that has ended.
            second.close()
            connect(3)
            await until(lambda: len(held[0]) == 9)
            first.close()
            stack.close()
            await until(lambda: not any(held))

    asyncio.run(main())


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_somebody_always_takes_a_connection(connections: list[int]) -> None:
    counts = ConnectionCounts(len(connections))
    for place, count in enumerate(connections):
        counts.show(place, count)
    goes_first = [not counts.has_more(place, x) for place, x in enumerate(connections)]
    assert goes_first[connections.index(min(connections))]
    # Nobody with more goes first where one with fewer waits.
    ordered = sorted(zip(connections, goes_first, strict=True))
    assert all(a or not b for (_, a), (_, b) in pairwise(ordered))
