"""Row 39: random requests of every kind, with clients that leave; `make soak` is the long run."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bench.soak_random import RandomTraffic
from bench.soak_tally import Tally
from bench.soak_wire import Models
from service.bundle.store import write_bundle
from service.runtime.allocator import MAX_ARENAS
from tests.bundles import tiny_encoder_decoder_files
from tests.end_to_end.server import Server, arenas_in, serve
from tests.faults.conftest import LIMITS
from tests.faults.support import eventually, goes_on, rows_in_use

CLIENTS, REQUESTS = 8, 25
# Kinds of which this few requests have many; what is answered depends on the seed alone.
MANY = {"/generate", "/generate streamed", "/score", "/score of NDJSON", "/score of text", "/v1"}
MANY |= {"/classify", "/tag"}


@pytest.fixture(scope="module")
def server(more_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = shutil.copytree(more_models, tmp_path_factory.mktemp("pairs") / "models")
    write_bundle(folder, *tiny_encoder_decoder_files())
    with serve(folder, **LIMITS | {"engine_threads": 2}) as running:
        yield running


def test_random_requests_are_answered_or_refused_and_leave_nothing_behind(server: Server) -> None:
    tally = Tally()
    process = Path(f"/proc/{server.process.pid}")

    async def traffic() -> RandomTraffic:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            models = Models(
                ("tiny-lstm", "tiny-gru"), ("tiny-pairs",), ("tiny-forward",), ("tiny-chain",)
            )
            found = RandomTraffic(server.url, session, tally, models)

            async def client(seed: int) -> None:
                rng = random.Random(seed)
                for _ in range(REQUESTS):
                    await found.ask(rng)

            await asyncio.gather(*map(client, range(CLIENTS)))
            return found

    before = len(list((process / "fd").iterdir()))
    found = asyncio.run(traffic())
    assert tally.requests == CLIENTS * REQUESTS
    assert not tally.wrong, tally.mistakes
    assert min(found.good[kind] for kind in MANY) > 0
    failed = [x for x in server.samples() if 'status="500"' in x or 'status="503"' in x]
    assert not failed
    eventually(lambda: rows_in_use(server) == 0)
    eventually(lambda: len(list((process / "fd").iterdir())) <= before + 2)
    assert arenas_in((process / "maps").read_text()) <= MAX_ARENAS
    goes_on(server)
