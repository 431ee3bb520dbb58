"""What single precision explains and what it does not: sound graphs pass, every bug fails."""

import copy
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from bench.mutations import mutations
from service.bundle.manifest import Precision
from tests.training.helpers import (
    pair_split_of,
    split_of,
    tiny_encoder_decoder,
    tiny_model,
    vocabulary,
)
from training.data.corpus import Split
from training.data.pairs import PairSplit
from training.errors import ExportError, Unverifiable
from training.export import encoder_decoder_parity
from training.export.encoder_decoder_parity import OnnxEncoderDecoder
from training.export.language_model import build_graphs, checked_scores, gate
from training.export.language_model_parity import (
    OnnxLanguageModel,
    agreement,
    check_golden,
    check_parity,
    golden_vectors,
    readings,
)
from training.export.precision import MAX_DIFFERENCE, Agreement, in_double, moved_copies
from training.graphs.decoder import build_decoder
from training.graphs.encoder import build_encoder
from training.graphs.language_model import build
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.language_model import LanguageModel

VOCAB = 13
CELLS = ("rnn", "gru", "lstm")


@cache
def held_out() -> Split:
    rng = np.random.default_rng(3)
    return split_of([rng.integers(4, VOCAB, 30).tolist() for _ in range(4)])


def made(
    cell: str, *, sharp: float = 1.0, recurrent: float = 1.0, hidden_size: int = 12
) -> LanguageModel:
    """Biases that are not zero; `sharp` scales its logits, `recurrent` what it makes of states."""
    torch.manual_seed(1)
    model = tiny_model(VOCAB, cell=cell, num_layers=2, hidden_size=hidden_size)
    with torch.no_grad():
        for layer in model.recurrent_layers:
            layer.bias_hh.uniform_(-0.5, 0.5)
            layer.bias_ih.uniform_(-0.5, 0.5)
            layer.weight_hh.mul_(recurrent)
        model.output.bias.uniform_(-0.5, 0.5)
        model.output.weight.mul_(sharp)
        model.output.bias.mul_(sharp)
    return model


def loaded(model: LanguageModel, graph: bytes) -> OnnxLanguageModel:
    return OnnxLanguageModel.load(graph, model.state_names)


def passes(agreements: Iterator[Agreement]) -> bool:
    """Whether a graph passes; a bug is seen at the first reading that shows it."""
    try:
        for so_far in agreements:
            if so_far.graph.share > 1.0:
                return False
        so_far.check()
    except ExportError:
        return False
    return True


# --- language models ----------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_sound_graph_passes_and_every_bug_fails(cell: str) -> None:
    model = made(cell, sharp=4.0)
    graph, found = build(model), list(readings(model, held_out()))
    assert passes(agreement(loaded(model, graph), found))
    bugs = dict(mutations(graph))
    assert len(bugs) > 12
    wrong = [x for x, data in bugs.items() if passes(agreement(loaded(model, data), found))]
    assert wrong == []


def test_a_sharp_model_passes_where_single_tokens_differ_by_more_than_the_mean_may() -> None:
    """Logits of a hundred have steps of 8e-6: two sound programs differ by that and more."""
    found = check_parity(model := made("lstm", sharp=60.0), loaded(model, build(model)), held_out())
    assert found.graph.worst > MAX_DIFFERENCE
    assert found.graph.mean < MAX_DIFFERENCE / 2
    assert found.graph.share < 0.5
    assert found.single.share < 0.5


def test_a_bug_in_a_sharp_model_fails_too() -> None:
    model = made("gru", sharp=60.0)
    found = list(readings(model, held_out()))
    for what, data in mutations(build(model)):
        assert not passes(agreement(loaded(model, data), found)), what


def test_a_chaotic_model_is_refused_with_what_can_be_done() -> None:
    model = made("rnn", sharp=60.0, recurrent=40.0)
    with pytest.raises(ExportError, match="PyTorch's own single precision differs") as caught:
        check_parity(model, loaded(model, build(model)), held_out())
    assert "lower training.learning_rate" in str(caught.value)


def with_nan(graph: bytes) -> bytes:
    proto = onnx.load_model_from_string(graph)
    (constant,) = (x for x in proto.graph.initializer if x.name == "output_bias")
    values = numpy_helper.to_array(constant).copy()
    values[-1] = np.nan
    constant.CopyFrom(numpy_helper.from_array(values, "output_bias"))
    data: bytes = proto.SerializeToString()
    return data


def test_no_number_fails_wherever_it_is() -> None:
    model = made("lstm")
    graph = build(model)
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(model, loaded(model, with_nan(graph)), held_out())
    with torch.no_grad():
        model.output.bias[5] = math.nan
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(model, loaded(model, graph), held_out())


def test_copies_are_moved_by_no_more_than_single_precisions_steps() -> None:
    exact = in_double(tiny_model(VOCAB, hidden_size=8, embedding_dim=8, tie_embeddings=True))
    copies = moved_copies(exact)
    for copied in copies:
        assert copied.output.weight is copied.embedding.weight
        for before, after in zip(exact.parameters(), copied.parameters(), strict=True):
            moved = (after / before - 1.0)[before != 0.0].abs()
            assert (moved <= 3.01 * 2.0**-23).all()
    first, second = (x.output.weight for x in copies[:2])
    assert not torch.equal(first, second)
    again = moved_copies(exact)[0].output.weight
    assert torch.equal(first, again)  # a check that drew anew would pass one day and fail another


# --- known answers, and eight bits --------------------------------------------------------------


PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def test_known_answers_are_held_as_closely_as_the_model_allows() -> None:
    plain, sharp = (
        golden_vectors(made("lstm", sharp=x), held_out(), vocabulary(VOCAB), ["fp32"])
        for x in (1.0, 2000.0)
    )
    assert {x.tolerance for x in plain} == {MAX_DIFFERENCE}
    assert max(x.tolerance for x in sharp) > 10 * MAX_DIFFERENCE
    model = made("lstm", sharp=2000.0)
    check_golden(model, loaded(model, build(model)), sharp, "fp32")
    with pytest.raises(ExportError, match=r"a known answer is missed by \d"):
        check_golden(model, loaded(model, build(made("lstm", sharp=1999.0))), sharp, "fp32")


def test_int8_graphs_that_nobody_can_verify_are_left_out_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One step of a state, taken otherwise, becomes other states in a few tokens."""
    model = made("rnn", sharp=4.0, recurrent=1.35, hidden_size=48)
    # What another machine's roundings do: its sums are off by a few steps.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.recurrent_layers:
            layer.bias_ih.add_(torch.empty_like(layer.bias_ih).uniform_(-4e-7, 4e-7))
    rounded = {kind: x for kind, x in build_graphs(other).items() if kind[0] == "int8"}
    golden = golden_vectors(model, held_out(), vocabulary(VOCAB), PRECISIONS)
    scores = checked_scores(model, {**build_graphs(model), **rounded}, held_out(), golden)
    assert list(scores) == ["fp32"]
    assert gate(scores) == "fp32"
    assert "the bundle has no int8 graphs: a text differs from" in caplog.text
    assert "rounding decides single steps of its states" in caplog.text


def test_int8_graphs_that_are_wrong_are_an_error_and_no_reason_to_leave_them_out() -> None:
    model, other = made("gru"), made("gru", recurrent=1.1)
    golden = golden_vectors(model, held_out(), vocabulary(VOCAB), PRECISIONS)
    graphs = build_graphs(model)
    assert list(checked_scores(model, graphs, held_out(), golden)) == ["fp32", "int8"]
    wrong = {kind: x for kind, x in build_graphs(other).items() if kind[0] == "int8"}
    with pytest.raises(ExportError, match="That is a fault of the export") as caught:
        checked_scores(model, {**graphs, **wrong}, held_out(), golden)
    assert not isinstance(caught.value, Unverifiable)


# --- encoder-decoders ---------------------------------------------------------------------------

SOURCE_VOCAB, TARGET_VOCAB = 12, 11


@cache
def held_out_pairs() -> PairSplit:
    rng = np.random.default_rng(4)
    return pair_split_of(
        [
            (rng.integers(3, SOURCE_VOCAB, s).tolist(), rng.integers(3, TARGET_VOCAB, t).tolist())
            for s, t in [(0, 0), (5, 4), (9, 7), (14, 3), (17, 8)]
        ]
    )


def made_pairs(**options: Any) -> EncoderDecoder:
    torch.manual_seed(1)
    return tiny_encoder_decoder(SOURCE_VOCAB, TARGET_VOCAB, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "attention": "general", "input_feeding": True},
        {"cell": "gru", "attention": "additive", "encoder": "crnn"},
        {"cell": "rnn", "attention": "dot", "hidden_size": 12},
    ],
    ids=lambda x: x["cell"],
)
def test_sound_graphs_of_pairs_pass_and_every_bug_fails(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(encoder_decoder_parity, "_PARITY_SHAPES", ((5, 1), (17, 3)))
    model = made_pairs(**options)
    graphs = {"encoder": build_encoder(model, "fp32"), "decoder": build_decoder(model, "fp32")}
    sound = OnnxEncoderDecoder.load(model, **graphs)
    found = encoder_decoder_parity.check_parity(model, sound, held_out_pairs())
    assert 0.0 < found.graph.share < 0.5
    read = list(encoder_decoder_parity.readings(model, held_out_pairs()))
    missed, tried = [], 0
    for role, graph in graphs.items():
        for what, data in mutations(graph):
            tried += 1
            wrong = OnnxEncoderDecoder.load(model, **{**graphs, role: data})
            if passes(encoder_decoder_parity.agreement(wrong, read)):
                missed.append(f"{role}: {what}")
    assert tried > 20
    assert missed == []
