"""`python -m bench.infill`: fill gaps of held-out text, and compare the ways to do it.

Gaps are 1, 2, 5 or 10 characters, and their length is given; or one word, and only that it is
letters is given. Ways: a language model that continues the left side greedily; every fill of an
n-gram, exactly; `/infill` of the language model; that of a model trained to fill gaps (a cloze
model); and both together (`rescore`). Models are looked for in models/ and runs/models/, and the
rows of a missing cloze model are left out. Writes bench/results/infill.json.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.infill_exact import Automaton
from bench.infill_figures import Outcomes, difference, figures, outcomes, table
from bench.infill_gaps import SIZES, HeldOut, Size, held_out
from bench.infill_rows import Cloze, ExactNGram, Greedy, Infill, LeastEdits, Way
from bench.report import RESULTS, machine, say
from bench.server import ROOT
from service.bundle.store import MANIFEST_FILE, read_bundle
from service.settings import Settings
from service.tasks.engine import GENERATE, INFILL, PROPOSE, Ability, Able, Engine
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.proposing import DEFAULT_NUM_PROPOSALS
from training.evaluation import ngram

FOLDERS = (ROOT / "models", ROOT / "runs" / "models")


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models of one text, by name."""

    language_model: str
    ngram: str
    cloze: str


MODELS: Mapping[str, Models] = {
    "alice": Models(language_model="alice-lstm", ngram="alice-ngram", cloze="alice-cloze"),
    "austen": Models(language_model="austen", ngram="austen-ngram", cloze="austen-cloze"),
}

GREEDY, EXACT = "left side alone, greedy", "n-gram, every fill"
NGRAM, FORWARD = "n-gram, /infill", "language model, /infill"
EDITS = "the same, least expected edits"
CLOZE, BOTH = "cloze model, /infill", "cloze model, rescored by the language model"
# What is compared with what, on the same gaps.
PAIRS = ((FORWARD, GREEDY), (EDITS, FORWARD), (BOTH, FORWARD), (BOTH, CLOZE), (NGRAM, EXACT))


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, print the tables and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--gaps", type=int, default=100, help="of each size")
    names = [size.name for size in SIZES]
    parser.add_argument("--sizes", nargs="+", choices=names, default=names)
    parser.add_argument("--proposals", type=int, default=DEFAULT_NUM_PROPOSALS)
    parser.add_argument("--models", type=Path, action="append", default=[], metavar="FOLDER")
    options = parser.parse_args(arguments)
    folders = [*options.models, *FOLDERS]
    sizes = [
        replace(size, num_proposals=options.proposals)
        for size in SIZES
        if size.name in options.sizes
    ]
    texts = {name: asyncio.run(_rows(name, options.gaps, sizes, folders)) for name in options.texts}
    if len(texts) == len(MODELS) and len(sizes) == len(SIZES):
        document = {"machine": machine(), "texts": texts}
        (RESULTS / "infill.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


async def _rows(
    name: str, count: int, sizes: Sequence[Size], folders: Sequence[Path]
) -> dict[str, object]:
    """The figures of one text; prints them as they come."""
    text = held_out(name)
    rows = []
    compared = []
    async with _ways(text, MODELS[name], folders) as ways:
        for size in sizes:
            gaps = size.gaps(text.test, count)
            found = {way: await outcomes(ways[way], gaps, size) for way in ways}
            rows += [figures(way, size, found[way]) for way in ways]
            say(f"{name}\n{table(rows[-len(ways) :])}")
            compared += list(_compared(size, found))
    return {"rows": [asdict(row) for row in rows], "compared": compared}


def _compared(size: Size, found: Mapping[str, Outcomes]) -> Iterator[dict[str, object]]:
    """What the benchmark is about: paired differences of error rates."""
    for mine, other in PAIRS:
        if mine in found and other in found:
            value, error = difference(found[mine], found[other])
            say(f"{mine} - {other}: {100 * value:+.2f} +- {100 * error:.2f} % of characters")
            yield {"size": size.name, "way": mine, "against": other, "value": value, "se": error}


@asynccontextmanager
async def _ways(
    text: HeldOut, models: Models, folders: Sequence[Path]
) -> AsyncIterator[Mapping[str, Way]]:
    """The ways by name, in the order of the table."""
    counted = ngram.fit(text.train.ids, text.train.starts, len(text.vocab), text.order)[-1]
    async with AsyncExitStack() as stack:
        language_model, served, cloze = [
            await stack.enter_async_context(_running(name, folders))
            for name in (models.language_model, models.ngram, models.cloze)
        ]
        if language_model is None or served is None:
            raise SystemExit(1)
        infills = _able(INFILL, language_model)
        forward = Infill(infills)
        ways: dict[str, Way] = {
            GREEDY: Greedy(_able(GENERATE, language_model), infills),
            EXACT: ExactNGram(Automaton(counted), text.vocab),
            NGRAM: Infill(_able(INFILL, served)),
            FORWARD: forward,
            EDITS: LeastEdits(forward),
        }
        if cloze is not None:
            ways[CLOZE] = Cloze(_able(INFILL, cloze))
            ways[BOTH] = Infill(infills, _able(PROPOSE, cloze))
        yield ways


@asynccontextmanager
async def _running(name: str, folders: Sequence[Path]) -> AsyncIterator[Engine | None]:
    """The engine of a bundle; None, with a message, if no folder has it."""
    found = [folder / name for folder in folders if (folder / name / MANIFEST_FILE).exists()]
    if not found:
        say(f"{name}: no such bundle; training/configs/{name}.toml trains it")
        yield None
        return
    engine = open_engine(read_bundle(found[0]), Surroundings(settings=Settings(), threads=1))
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _able(ability: Ability[Able], engine: Engine) -> Able:
    found = ability.of(engine)
    if found is None:
        raise TypeError(f"{engine.manifest.name} lacks an ability that this row needs")
    return found


if __name__ == "__main__":
    sys.exit(main())
