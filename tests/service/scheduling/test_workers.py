"""Who gets the work: lone pieces meet in one worker, lists are dealt out to all."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.translations import TranslateOptions
from tests.bundles import encoder_decoder_in_memory, tiny_encoder_decoder_files
from tests.fakes import FakeEncoderDecoderSession, Gate, eventually

WIDE = TranslateOptions(beam_size=32)


def loads_of(*asked: tuple[int, TranslateOptions]) -> list[int]:
    """Rows of each of two workers, after requests with so many sources each."""
    gate = Gate()
    bundle = encoder_decoder_in_memory(*tiny_encoder_decoder_files("gru"))
    session = FakeEncoderDecoderSession(gate=gate)
    engine = EncoderDecoderEngine(bundle, session, Settings(), precision="fp32", threads=2)
    found: list[int] = []

    async def work() -> None:
        engine.start()
        loop = asyncio.get_running_loop()
        tasks = []
        rows = 0
        for place, (sources, options) in enumerate(asked):
            call: Coroutine[Any, Any, Any] = engine.translate(
                ["ab"] * sources, [""] * sources, options
            )
            tasks.append(loop.create_task(call))
            rows += sources * options.width
            # Between queue and runner a worker's rows are counted nowhere for a moment.
            await asyncio.to_thread(eventually, partial(has_rows, engine, rows))
            if not place:
                await asyncio.to_thread(gate.wait)
        found.extend(loads(engine))
        gate.open()
        await asyncio.gather(*tasks)
        await engine.stop()

    asyncio.run(work())
    return found


def has_rows(engine: EncoderDecoderEngine, rows: int) -> bool:
    return sum(loads(engine)) == rows


def loads(engine: EncoderDecoderEngine) -> list[int]:
    return [scheduler.load for scheduler in engine.workers.schedulers]


def test_lone_sources_share_a_worker_and_its_steps() -> None:
    assert loads_of(*[(1, TranslateOptions(beam_size=5))] * 4) == [20, 0]


def test_lone_sources_share_no_more_rows_than_one_worker_is_for() -> None:
    assert loads_of(*[(1, WIDE)] * 10) == [256, 64]


def test_a_list_is_dealt_out_to_all_workers() -> None:
    assert loads_of((6, TranslateOptions(beam_size=5))) == [15, 15]
    assert loads_of((1, WIDE), (3, WIDE)) == [64, 64]
