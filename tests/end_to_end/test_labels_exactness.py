"""Promise 2 for labels, bit for bit: a text's labels are its own, in whatever company."""

import asyncio
import concurrent.futures
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.labeler import LabelerBundle
from service.bundle.manifest import Precision
from service.bundle.store import write_bundle
from service.runtime.labeler import OnnxLabelerSession
from service.settings import Settings
from service.tasks.label_values import ClassifyOptions, TagOptions
from service.tasks.labeler import LabelerEngine
from tests.faults.test_model_changes import administered
from tests.labelers import SORTS, Sort, labeler_in_memory, tiny_labeler_files, unstripped

LETTERS = "abcdeiou ß\U0001f407"  # without combining marks, so that parts of texts are normalized
CELLS = ("rnn", "gru", "lstm")
KEY = "a key of the states"
Kind = tuple[Sort, str, Precision]


@cache
def bundle_of(sort: Sort, cell: str) -> LabelerBundle:
    manifest, files = tiny_labeler_files(sort, cell=cell)
    return labeler_in_memory(unstripped(manifest), files)


@cache
def session_of(kind: Kind) -> OnnxLabelerSession:
    sort, cell, precision = kind
    return OnnxLabelerSession(bundle_of(sort, cell), precision)


SHAPES: list[tuple[Sort, str]] = [(sort, "lstm") for sort in SORTS]
SHAPES += [("forward", "gru"), ("plain", "gru"), ("text", "rnn")]
kinds = st.tuples(st.sampled_from(SHAPES), st.sampled_from(["fp32", "int8"])).map(
    lambda drawn: (*drawn[0], drawn[1])
)
texts = st.builds(
    lambda text, times: (text * times)[:150], st.text(LETTERS, max_size=12), st.integers(1, 12)
)


class Running:
    """An engine, for as long as the context lasts."""

    def __init__(self, kind: Kind, threads: int = 1) -> None:
        sort, cell, precision = kind
        bundle = bundle_of(sort, cell)
        self._engine = LabelerEngine(
            bundle, session_of(kind), Settings(state_key=KEY), precision=precision, threads=threads
        )
        self._tags = bundle.manifest.labels.scope == "character"

    async def __aenter__(self) -> Self:
        self._engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.stop()
        assert all(scheduler.free for scheduler in self._engine.workers.schedulers)

    async def ask(self, asked: Sequence[str], **options: Any) -> list[Any]:
        """The labels of each text, with everything that can be asked."""
        if self._tags:
            return list(await self._engine.tag(asked, TagOptions(n=3, places=True, top=2)))
        steps = self._engine.reads_in_parts
        return list(await self._engine.classify(asked, ClassifyOptions(steps=steps, **options)))


async def alone(kind: Kind, texts: Sequence[str]) -> list[Any]:
    """The labels of each text, one after another."""
    async with Running(kind) as running:
        return [(await running.ask([text]))[0] for text in texts]


asked = st.tuples(
    st.lists(texts, min_size=1, max_size=6),
    st.integers(0, 12),  # turns of the event loop before it arrives
    st.none() | st.integers(0, 30),  # turns before it is given up
)


async def ask_all(kind: Kind, threads: int, requests: Sequence[Any]) -> list[Any]:
    """Every answer, None for those that are given up."""
    async with Running(kind, threads) as running:

        async def one(of: list[str], turns: int, patience: int | None) -> Any:
            for _ in range(turns):
                await asyncio.sleep(0)
            task = asyncio.create_task(running.ask(of))
            if patience is None:
                return await task
            for _ in range(patience):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return None if task.cancelled() else task.result()

        return await asyncio.gather(*(one(*request) for request in requests))


@settings(max_examples=15, deadline=None)
@given(kind=kinds, requests=st.lists(asked, min_size=1, max_size=5), threads=st.integers(1, 2))
def test_neither_company_nor_threads_nor_who_gives_up_shows_in_an_answer(
    kind: Kind, requests: list[Any], threads: int
) -> None:
    answers = asyncio.run(ask_all(kind, threads, requests))
    for (of, _, patience), found in zip(requests, answers, strict=True):
        if found is None:
            assert patience is not None
        else:
            assert found == asyncio.run(alone(kind, of))


@settings(max_examples=10, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    precision=st.sampled_from(["fp32", "int8"]),
    parts=st.lists(st.text(LETTERS, max_size=90), min_size=1, max_size=4),
)
def test_a_text_in_parts_has_the_labels_of_the_whole(
    cell: str, precision: Precision, parts: list[str]
) -> None:
    kind: Kind = ("forward", cell, precision)

    async def read() -> tuple[Any, list[Any]]:
        async with Running(kind) as running:
            (whole,) = await running.ask(["".join(parts)])
            found, state = [], None
            for part in parts:
                (result,) = await running.ask([part], state=state, return_state=True)
                state = result.state
                found.append(result)
            return whole, found

    whole, found = asyncio.run(read())
    assert found[-1].labels == whole.labels
    read_before = itertools.accumulate(map(len, parts), initial=0)
    steps = [
        replace(step, chars=step.chars + before)
        for result, before in zip(found, read_before, strict=False)
        for step in result.steps
    ]
    assert steps == whole.steps


def test_labels_stay_the_same_under_load_and_after_a_reload(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for sort in SORTS:
        write_bundle(folder, *tiny_labeler_files(sort))
    mixed = ["", "a bed", "a cab", "a bee in a cab " * 9, "\U0001f407", "\u05d0b", "ou" * 60]
    singles = itertools.cycle(mixed)
    bodies = []
    for sort in SORTS:
        path, options = "/classify", {}
        if bundle_of(sort, "lstm").manifest.labels.scope == "character":
            path, options = "/tag", {"n": 2, "places": True}
        some = itertools.islice(singles, 2)
        bodies += [
            (path, {"model": f"tiny-{sort}", "text": text, **options}) for text in (mixed, *some)
        ]
    with administered(folder, engine_threads=2, max_queue_requests=1000) as admin:

        def answer(number: int) -> bytes:
            path, body = bodies[number % len(bodies)]
            found = admin.http.post(path, json=body)
            assert found.status_code == 200, found.text
            return found.content

        expected = [answer(i) for i in range(len(bodies))]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = pool.map(answer, range(3 * len(bodies)))
            for sort in SORTS:
                assert admin.change(f"tiny-{sort}", "reload").status_code == 200
            assert list(asked) == 3 * expected
        assert [answer(i) for i in range(len(bodies))] == expected


@pytest.mark.parametrize("sort", SORTS)
def test_a_text_in_a_list_is_the_text_alone(sort: Sort) -> None:
    many = ["", "a bed", "a cab", "ou" * 60, "a bed in a cab", "ß", "a bee in a cab " * 9] * 14

    async def read() -> tuple[list[Any], list[Any]]:
        async with Running((sort, "lstm", "int8"), threads=2) as running:
            return await running.ask(many), [(await running.ask([x]))[0] for x in many[:7]]

    together, each = asyncio.run(read())
    assert together == each * 14
