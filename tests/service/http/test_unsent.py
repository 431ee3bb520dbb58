"""What waits to be sent: one bound for all connections, and who goes when it is reached."""

import asyncio
from collections.abc import Callable

import pytest

from service.http import unsent
from service.http.unsent import Outlet, Unsent


class FullTransport(asyncio.Transport):
    """Takes a slice, and is full until its client reads."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.is_aborted = False
        self.outlet: Outlet

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return FakeSocket() if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += len(data)
        self.outlet.pause()

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class FakeSocket:
    family = 0

    def setsockopt(self, *_: int) -> None:
        pass


def outlet(shared: Unsent, timeout_s: float = 60.0) -> tuple[Outlet, FullTransport]:
    transport = FullTransport()
    made = Outlet(
        transport,
        shared,
        timeout_s=timeout_s,
        on_full=_nothing,
        on_drained=_nothing,
        on_given_up=_nothing,
        lingers=lambda: False,
    )
    transport.outlet = made
    return made, transport


def _nothing() -> None:
    pass


def in_loop(main: Callable[[], None]) -> None:
    async def run() -> None:
        main()

    asyncio.run(run())


def test_an_answer_has_room_within_the_bound_or_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "_STALLED_S", 60.0)

    def main() -> None:
        shared = Unsent(1_000_000)
        assert shared.has_room(5_000_000)
        first, transport = outlet(shared)
        first.write(bytes(700_000))
        assert shared.bytes == 700_000 - unsent.SLICE_BYTES
        assert shared.has_room(300_000)
        assert not shared.has_room(400_000)
        while not transport.is_aborted and transport.sent < 700_000:
            first.resume()
        first.resume()
        assert shared.bytes == 0
        assert shared.has_room(400_000)

    in_loop(main)


def test_who_has_stalled_for_longest_goes_for_who_needs_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsent, "_STALLED_S", 0.0)

    def main() -> None:
        shared = Unsent(1_000_000)
        pairs = [outlet(shared) for _ in range(2)]
        for made, _ in pairs:
            made.write(bytes(400_000))
        pairs[0][0].resume()  # its client has read something since
        assert shared.has_room(400_000)
        assert [transport.is_aborted for _, transport in pairs] == [False, True]
        assert shared.bytes == 400_000 - 2 * unsent.SLICE_BYTES

    in_loop(main)


def test_a_client_that_takes_nothing_in_its_time_is_given_up() -> None:
    async def main() -> bool:
        made, transport = outlet(Unsent(1_000_000), timeout_s=0.02)
        made.write(bytes(200_000))
        made.close()
        await asyncio.sleep(0.1)
        return transport.is_aborted

    assert asyncio.run(main())
