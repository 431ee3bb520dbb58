"""Work in rounds: a plan yields what to run next, and resumes once that has been run.

A plan computes and never waits, so it needs no event loop. The plans of several texts run together,
so that their rows share model runs.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from service.runtime.threads import off_loop
from service.scheduling.language_model import TextWork

Result = TypeVar("Result")

Plan: TypeAlias = Generator[Sequence[TextWork], None, Result]
Run: TypeAlias = Callable[[Sequence[TextWork]], Awaitable[None]]


async def run_together(
    plans: Sequence[Plan[Result]], run: Run, *, rows: int, round_size: int
) -> list[Result]:
    """The result of each plan. All plans do each round together, in runs of at most `rows` works.

    `round_size` is what a round of one plan costs, in characters of work on text.
    """
    results: dict[int, Result] = {}
    waiting = dict(enumerate(plans))
    while waiting:
        works: list[TextWork] = []

        def advance(works: list[TextWork] = works) -> None:
            for i, plan in list(waiting.items()):
                try:
                    works += next(plan)
                except StopIteration as end:
                    results[i] = end.value
                    del waiting[i]

        await off_loop(round_size * len(waiting), advance)
        for start in range(0, len(works), rows):
            await run(works[start : start + rows])
    return [results[i] for i in range(len(plans))]
