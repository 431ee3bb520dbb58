"""`python -m bench.adapt RUN [ORDER]`: what an output layer that adapts gains, by its rank.

Fits, exports into memory and measures on the held-out split: not adapting, adapting with the whole
matrix and with 128, 64, 32 and 16 directions, each beside the size of a row's state. ORDER mixes an
n-gram of the same text in.
"""

import math
import sys
import time
from pathlib import Path

from bench.report import say
from training.config import AdaptConfig, NGramConfig
from training.data import corpus as corpora
from training.export.adapting import OnnxAdapting, adapting_graphs
from training.export.language_model import build_graphs
from training.export.language_model_parity import OnnxLanguageModel, onnx_score
from training.export.mixture import of_networks
from training.export.sessions import open_session
from training.loop.language_model import load_best

RANKS = (None, 128, 64, 32, 16)


def main(arguments: list[str]) -> int:
    """Print the table."""
    run = Path(arguments[0])
    _, model, _ = load_best(run)
    corpus = corpora.load(run / "corpus")
    ngram = NGramConfig(order=int(arguments[1])) if len(arguments) > 1 else None
    say(f"{run.name} on its {corpus.held_out_name} split, fp32")
    say("rank  nats     bits     state  rate     decay   factor  fitted in")
    for rank in RANKS:
        started = time.perf_counter()
        parts = of_networks([model], ngram, corpus, AdaptConfig(rank=rank))
        seconds = time.perf_counter() - started
        whole, adaptation = parts.model, parts.adaptation
        own = build_graphs(whole, adapting=True)["fp32", "sequence"]
        if rank is RANKS[0]:
            static = onnx_score(
                OnnxLanguageModel.load(own, whole.state_names), whole, corpus.held_out
            )
            say(f"none  {static.loss:.4f}   {static.bits_per_char:.4f}")
        record = parts.adapt_record()
        if adaptation is None or record is None:
            say(f"{rank or 'all'}: gains too little")
            continue
        shapes = {state.name: state.shape for state in record.states}
        graph = adapting_graphs(whole, adaptation)["fp32", "adapt"]
        pair = OnnxAdapting(whole, shapes, open_session(own), open_session(graph))
        score = onnx_score(pair, pair, corpus.held_out)
        size_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
        say(
            f"{rank or 'all':<5} {score.loss:.4f}   {score.bits_per_char:.4f}  "
            f"{size_bytes / 1000:4.0f} kB  {adaptation.rate:.5f}  {adaptation.decay:.0e}  "
            f"{adaptation.scales[0]:.3f}   {seconds:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
