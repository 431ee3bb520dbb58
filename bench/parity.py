"""`python -m bench.parity`: check which models pass the export's checks, and that no bug does.

Trains models of every cell, size and attention, from untrained to diverged (once: the weights are
kept in bench/.work/parity). Compares each with PyTorch in double precision, as `training export`
does. Then does the same with mutated graphs, all of which must be rejected. Prints a table and
writes bench/results/parity.json. Needs ../shared/data/tinyshakespeare.txt.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bench import parity_models
from bench.mutations import mutations
from bench.parity_models import pair_recipes, pairs_of, recipes, text_of
from bench.report import RESULTS, machine, say
from service.bundle.manifest import Precision
from service.bundle.text import Vocabulary
from training.data.corpus import Split
from training.data.pairs import PairSplit
from training.errors import ExportError, Unverifiable
from training.export import (
    encoder_decoder,
    encoder_decoder_parity,
    language_model,
    language_model_parity,
)
from training.export.encoder_decoder_parity import OnnxEncoderDecoder
from training.export.gate import PRECISIONS
from training.export.language_model_parity import OnnxLanguageModel
from training.export.manifest_parts import Graphs
from training.export.precision import MARGIN, Agreement
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Row:
    """One model: distances in nats, and as shares of the distance allowed at the token."""

    name: str
    verdict: str  # "exports", or why it does not
    int8: str
    graph_mean: float
    torch_mean: float
    graph_worst: float
    torch_worst: float
    graph_share: float
    torch_share: float
    allowed: float  # at the median token
    caught: int
    mutations: int
    missed: list[str]
    without_effect: int  # mutations of inactive parts, such as a convolution that never fires
    least_share: float  # the share of the mutation closest to passing


def main() -> int:
    """Print the table and write bench/results/parity.json; return 1 if a mutation passed."""
    torch.set_num_threads(1)
    rows = []
    for row in _rows(sys.argv[1] if len(sys.argv) > 1 else ""):
        rows.append(row)
        say(line_of(row))
    say(summary(rows))
    document = {"machine": machine(), "margin": MARGIN, "rows": [asdict(row) for row in rows]}
    RESULTS.mkdir(exist_ok=True)
    if len(sys.argv) == 1:
        (RESULTS / "parity.json").write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(row.missed for row in rows) else 0


def line_of(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row.name:<46}{row.graph_mean:>9.1e}{row.torch_mean:>9.1e}{row.graph_worst:>9.1e}"
        f"{row.torch_worst:>9.1e}{row.allowed:>9.1e}{row.graph_share:>6.2f}{row.torch_share:>6.2f}"
        f"{row.caught:>4}/{row.mutations}{row.least_share:>10.3g}  {row.verdict}; {row.int8}"
        + "".join(f"\n    missed: {x}" for x in row.missed)
    )


def summary(rows: Sequence[Row]) -> str:
    """A summary of the table in a few lines."""
    lines = [f"{len(rows)} models, margin {MARGIN:g}"]
    lines += [f"{count} {verdict}" for verdict, count in Counter(x.verdict for x in rows).items()]
    exported = [row for row in rows if row.verdict == "exports"]
    if exported:
        lines.append(
            f"exported: worst share {max(x.graph_share for x in exported):.2f} (graph), "
            f"{max(x.torch_share for x in exported):.2f} (PyTorch); "
            f"worst mean {max(x.graph_mean for x in exported):.1e}"
        )
    caught, all_of_them = sum(x.caught for x in rows), sum(x.mutations for x in rows)
    idle = sum(x.without_effect for x in rows)
    lines.append(f"bugs caught: {caught} of {all_of_them}; {idle} more had no effect at all")
    return "\n".join(lines)


def _rows(chosen: str) -> Iterator[Row]:
    for recipe in recipes():
        if chosen in recipe.name:
            vocab, train, held_out = text_of(recipe)
            model = parity_models.language_model(recipe, vocab, train)
            yield _language_model_row(recipe.name, model, held_out, vocab)
    vocab_size, pairs, held_out_pairs = pairs_of()
    for pair_recipe in pair_recipes():
        if chosen in pair_recipe.name:
            trained = parity_models.encoder_decoder(pair_recipe, vocab_size, pairs)
            yield _encoder_decoder_row(pair_recipe.name, trained, held_out_pairs)


def _language_model_row(name: str, model: LanguageModel, held_out: Split, vocab: Vocabulary) -> Row:
    found = list(language_model_parity.readings(model, held_out))
    golden = language_model_parity.golden_vectors(model, held_out, vocab, PRECISIONS)
    graphs = language_model.build_graphs(model)

    def loaded(graphs: Graphs, precision: Precision) -> OnnxLanguageModel:
        return OnnxLanguageModel.load(graphs[precision, "sequence"], model.state_names)

    def check_eight_bits() -> float:
        int8 = loaded(graphs, "int8")
        difference = language_model_parity.check_int8(model, int8, graphs["int8", "step"], held_out)
        language_model_parity.check_golden(model, int8, golden, "int8")
        return difference

    return _row(
        name,
        graphs,
        lambda graphs: language_model_parity.agreement(loaded(graphs, "fp32"), found),
        lambda: language_model_parity.check_golden(model, loaded(graphs, "fp32"), golden, "fp32"),
        check_eight_bits,
        allowed=float(np.median(np.concatenate([x.exact.allowed.ravel() for x in found]))),
    )


def _encoder_decoder_row(name: str, model: EncoderDecoder, held_out: PairSplit) -> Row:
    found = list(encoder_decoder_parity.readings(model, held_out))
    golden = encoder_decoder_parity.golden_vectors(model, held_out, PRECISIONS)
    graphs = encoder_decoder.build_graphs(model)

    def loaded(graphs: Graphs, precision: Precision) -> OnnxEncoderDecoder:
        return OnnxEncoderDecoder.load(
            model, graphs[precision, "encoder"], graphs[precision, "decoder"]
        )

    def finish() -> None:
        encoder_decoder_parity.check_company(loaded(graphs, "fp32"), held_out)
        encoder_decoder_parity.check_golden(model, loaded(graphs, "fp32"), golden, "fp32")

    def check_eight_bits() -> float:
        int8 = loaded(graphs, "int8")
        difference = encoder_decoder_parity.check_int8(model, int8, held_out)
        encoder_decoder_parity.check_golden(model, int8, golden, "int8")
        return difference

    return _row(
        name,
        graphs,
        lambda graphs: encoder_decoder_parity.agreement(loaded(graphs, "fp32"), found),
        finish,
        check_eight_bits,
        allowed=float(np.median(np.concatenate([x.exact.allowed.ravel() for x in found]))),
    )


def _row(
    name: str,
    graphs: Graphs,
    agree: Callable[[Graphs], Iterator[Agreement]],
    finish: Callable[[], None],
    check_eight_bits: Callable[[], float],
    *,
    allowed: float,
) -> Row:
    *_, sound = agree(graphs)
    verdict, int8 = "exports", "no int8: fp32 is refused"
    try:
        sound.check()
        finish()
    except ExportError as error:
        verdict = f"refused: {str(error).partition(';')[0]}"
    else:
        int8 = _int8(check_eight_bits)
    shares: dict[str, float] = {}
    without_effect = 0
    for precision, role in graphs:
        if precision == "fp32":
            for what, data in mutations(graphs[precision, role]):
                share = _share(agree({**graphs, (precision, role): data}), sound)
                if share is None:
                    without_effect += 1
                else:
                    shares[f"{role}: {what}"] = share
    missed = [what for what, share in shares.items() if not share > 1.0]
    return Row(
        name,
        verdict,
        int8,
        sound.graph.mean,
        sound.single.mean,
        sound.graph.worst,
        sound.single.worst,
        sound.graph.share,
        sound.single.share,
        allowed,
        len(shares) - len(missed),
        len(shares),
        missed,
        without_effect,
        min(shares.values()),
    )


def _share(agreements: Iterator[Agreement], sound: Agreement) -> float | None:
    """The distance of a mutated graph as a multiple of the allowed one; infinite if it is rejected.

    Stops at the first reading above 1. None if all results equal those of the sound graph.
    """
    share = 0.0
    try:
        for so_far in agreements:
            share = so_far.graph.share
            if share > 1.0:
                return share
        if so_far.graph == sound.graph:
            return None
        so_far.check()
    except ExportError:
        return math.inf
    return share


def _int8(check: Callable[[], float]) -> str:
    try:
        return f"int8 {check():.1e}"
    except Unverifiable as why:
        return f"no int8: {why}"
    except ExportError as error:
        return f"int8 WRONG: {error}"


if __name__ == "__main__":
    sys.exit(main())
