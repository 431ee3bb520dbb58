"""`python -m bench.stages`: measure where one engine thread spends the time of a beam search.

The words and the model are those of `bench.translate`. Prints the round with the least processor
time.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.report import say
from bench.translate import BEAM, CONFIG, WORK
from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.store import read_bundle
from service.bundle.text import EOS_ID
from service.decoding.search import Search
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.settings import Settings
from training.config import EncoderDecoderConfig, load_config
from training.data.pairs import prepare_pairs
from training.export.encoder_decoder import export

WORDS = 256  # one thread's share of the 512
Result = TypeVar("Result")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/g2p-en"))
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    config = load_config(CONFIG)
    if not isinstance(config, EncoderDecoderConfig):
        raise TypeError(CONFIG)
    corpus = prepare_pairs(config.data, CONFIG.resolve().parent)
    bundle = read_bundle(export(options.run, corpus, WORK / "pairs"))
    if not isinstance(bundle, EncoderDecoderBundle):
        raise TypeError(bundle)
    known = list(corpus.tests[0].references)
    words = [known[i] for i in np.random.default_rng(0).choice(len(known), WORDS, replace=False)]
    session = _Timed(bundle)
    rounds = [_search(bundle, session, words) for _ in range(1 + options.rounds)]
    total, steps, stages = min(rounds[1:], key=lambda x: x[0])
    rest = total - sum(stages.values())
    shown = ", ".join(f"{name} {1e3 * t:.0f}" for name, t in (*stages.items(), ("Python", rest)))
    say(f"{WORDS} words, beam {BEAM}, {steps} steps: {1e3 * total:.0f} ms ({shown})")
    return 0


class _Timed(OnnxEncoderDecoderSession):
    """A session that measures the time of its runs."""

    def __init__(self, bundle: EncoderDecoderBundle) -> None:
        self.stages = {"encoder": 0.0, "decoder": 0.0}
        super().__init__(bundle, "int8")

    def encode(self, *args: Any) -> Any:
        """Encode, and count the time."""
        return self._timed("encoder", lambda: super(_Timed, self).encode(*args))

    def step(self, *args: Any, attention: bool) -> Any:
        """Run a step, and count the time."""
        return self._timed("decoder", lambda: super(_Timed, self).step(*args, attention=attention))

    def _timed(self, stage: str, run: Callable[[], Result]) -> Result:
        begin = time.thread_time()
        result = run()
        self.stages[stage] += time.thread_time() - begin
        return result


def _search(
    bundle: EncoderDecoderBundle, session: _Timed, words: list[str]
) -> tuple[float, int, dict[str, float]]:
    """The processor seconds of a search, its steps, and the processor seconds of its stages."""
    runner = EncoderDecoderRunner(session, name="bench")
    limits = bundle.manifest.limits
    sources = [np.array([*bundle.source.encode(word), EOS_ID], np.uint16) for word in words]
    sources.sort(key=len, reverse=True)
    waiting = [Search(x, BEAM, limits.max_tokens(len(x))) for x in sources]
    most = Settings().max_search_rows
    session.stages = dict.fromkeys(session.stages, 0.0)
    steps, begin = 0, time.thread_time()
    while waiting or not runner.free:
        room = (most - runner.used_rows) // BEAM
        runner.admit(waiting[:room])
        waiting = waiting[room:]
        runner.run()
        steps += 1
    return time.thread_time() - begin, steps, dict(session.stages)


if __name__ == "__main__":
    raise SystemExit(main())
