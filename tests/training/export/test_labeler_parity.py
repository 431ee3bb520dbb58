"""A labeler's graphs beside PyTorch: sound ones are accepted, broken ones are not."""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from service.bundle.manifest import Precision
from service.bundle.tokenization import Characters
from tests.labelers import LETTERS, SORTS, Sort, labels_of, tiny_labeler
from training.data.labelled import LabelledSplit
from training.errors import ExportError
from training.export.gate import PRECISIONS
from training.export.labeler_parity import (
    OnnxLabeler,
    Tempered,
    check_company,
    check_golden,
    check_int8,
    check_parity,
    golden_vectors,
)
from training.export.precision import MAX_DIFFERENCE, MAX_INT8_DIFFERENCE
from training.graphs.labeler import build_labeler
from training.networks.labeler import Labeler

TOKENIZER = Characters.of_characters(LETTERS)
both_precisions = pytest.mark.parametrize("precision", PRECISIONS)
# Labels of `bio` and of a `chain` have the graph of `plain` ones.
KINDS: list[tuple[Sort, str]] = [
    ("text", "rnn"),
    ("text", "gru"),
    ("text", "lstm"),
    ("several", "lstm"),
    ("forward", "rnn"),
    ("forward", "gru"),
    ("forward", "lstm"),
    ("plain", "lstm"),
    ("restore", "gru"),
]


@cache
def held_out() -> LabelledSplit:
    """Texts of many lengths; nobody asks for their labels here."""
    rng = np.random.default_rng(5)
    lengths = [9, 1, 14, 15, 30, 31, 2, 40, 7, 20]
    tokens = [rng.integers(3, len(TOKENIZER), n).astype(np.uint16) for n in lengths]
    return LabelledSplit("made", [TOKENIZER.decode(x) for x in tokens], tokens, [])


def made(sort: Sort, cell: str = "lstm") -> Tempered:
    return Tempered(tiny_labeler(sort, TOKENIZER, cell=cell), labels_of(sort))


def exported(model: Tempered, precision: Precision, network: Labeler | None = None) -> OnnxLabeler:
    """The graph of a model, or of another network in its place."""
    several = model.labels.several
    graph = build_labeler(network or model.network, precision, several=several)
    return OnnxLabeler.load(model, graph)


@pytest.mark.parametrize(("sort", "cell"), KINDS)
def test_the_graphs_are_the_models_numbers(sort: Sort, cell: str) -> None:
    model = made(sort, cell)
    golden = golden_vectors(model, held_out(), PRECISIONS)
    fp32, int8 = (exported(model, precision) for precision in PRECISIONS)
    whole = check_parity(model, fp32, held_out())
    assert whole.graph.mean <= MAX_DIFFERENCE / 3
    assert whole.graph.share < 0.5
    assert check_int8(model, int8, held_out()) <= MAX_INT8_DIFFERENCE
    check_golden(model, fp32, golden, "fp32")
    check_golden(model, int8, golden, "int8")


def swapped_directions(network: Labeler) -> None:
    layer = next(x for x in network.layers.modules() if hasattr(x, "forwards"))
    layer.forwards, layer.backwards = layer.backwards, layer.forwards


def other_weights(name: str) -> Callable[[Labeler], None]:
    """A mistake in one of the parameters."""

    def change(network: Labeler) -> None:
        with torch.no_grad():
            network.get_parameter(name).flatten()[0] += 0.5

    return change


def all_allowed(network: Labeler) -> None:
    assert network.allowed is not None
    network.allowed.fill_(value=True)


MISTAKES: list[tuple[Sort, Precision, Callable[[Labeler], None]]] = [
    ("text", "fp32", swapped_directions),
    ("text", "int8", swapped_directions),
    ("text", "fp32", other_weights("output.bias")),
    ("plain", "fp32", other_weights("layers.0.backwards.bias_ih")),
    ("several", "int8", other_weights("attention.key.bias")),
    ("several", "fp32", other_weights("attention.query")),
    ("restore", "fp32", all_allowed),
    ("restore", "int8", all_allowed),
    ("forward", "int8", other_weights("layers.1.weight_hh")),
]


@pytest.mark.parametrize(("sort", "precision", "mistake"), MISTAKES)
def test_a_graph_with_a_mistake_is_rejected(
    sort: Sort, precision: Precision, mistake: Callable[[Labeler], None]
) -> None:
    model = made(sort, "gru")
    network = copy.deepcopy(model.network)
    mistake(network)
    broken = exported(model, precision, network)
    check: Callable[..., object] = check_parity if precision == "fp32" else check_int8
    with pytest.raises(ExportError):
        check(model, broken, held_out())


@both_precisions
def test_log_softmax_instead_of_a_probability_for_each_label_is_rejected(
    precision: Precision,
) -> None:
    model = made("several")
    broken = OnnxLabeler.load(model, build_labeler(model.network, precision))
    with pytest.raises(ExportError):
        check_golden(model, broken, golden_vectors(model, held_out(), [precision]), precision)


def test_a_network_that_is_not_a_number_is_rejected() -> None:
    model = made("text")
    with torch.no_grad():
        model.network.output.bias[0] = torch.nan
    with pytest.raises(ExportError, match="not a number"):
        check_parity(model, exported(model, "fp32"), held_out())


class _Company(OnnxLabeler):
    """A graph whose numbers depend on how many texts it reads."""

    def logprobs(self, tokens, lengths):  # type: ignore[no-untyped-def]
        return super().logprobs(tokens, lengths) - np.float32(1e-6 * len(tokens))


def test_numbers_that_depend_on_the_other_texts_are_rejected() -> None:
    model = made("text")
    graph = exported(model, "fp32").graph
    with pytest.raises(ExportError, match="read beside a text"):
        check_company(model, _Company(graph, model), held_out())


def test_known_answers_are_the_likeliest_labels_of_texts_and_one_for_each_character() -> None:
    for sort in SORTS:
        model = made(sort)
        for vector in golden_vectors(model, held_out(), ["fp32"]):
            characters = len(vector.tokens) - (1 if sort == "forward" else 2)
            is_text = model.labels.scope == "text"
            assert len(vector.labels) == (len(model.labels.names) if is_text else characters)
            assert not is_text or vector.logprobs == sorted(vector.logprobs, reverse=True)
            assert vector.tolerance <= 2 * MAX_DIFFERENCE
