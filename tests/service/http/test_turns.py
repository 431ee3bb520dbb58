"""Work that may wait: in order, a little each round, and nobody beside it waits."""

import asyncio
import time

from service.http.turns import Turns


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    async def main() -> list[int]:
        turns, done = Turns(), []

        async def ask(number: int) -> None:
            await turns.take()
            done.append(number)

        waiting = [asyncio.create_task(ask(i)) for i in range(3)]
        await asyncio.sleep(0)
        turns.call(lambda: done.append(3))
        await asyncio.gather(*waiting)
        return done

    # The last is called in the round that begins with the third's turn, or in the one after it.
    assert asyncio.run(main()) in ([0, 1, 2, 3], [0, 1, 3, 2])


def test_a_round_does_a_little_and_others_run_between() -> None:
    async def main() -> int:
        turns, left = Turns(), 40

        def work() -> None:
            nonlocal left
            time.sleep(0.0006)
            left -= 1

        for _ in range(left):
            turns.call(work)
        rounds = 0
        while left:
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    assert asyncio.run(main()) >= 15


def test_who_leaves_or_fails_holds_nobody_up() -> None:
    async def main() -> bool:
        turns = Turns()

        def fail() -> None:
            raise ValueError("a bug")

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        leaving = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        leaving.cancel()
        turns.call(fail)
        await asyncio.wait_for(turns.take(), 5)
        return leaving.cancelled()

    assert asyncio.run(main())
