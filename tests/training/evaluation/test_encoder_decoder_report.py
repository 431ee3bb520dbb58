"""The floors beside an encoder-decoder, and the table that shows them all."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.encoder_decoder import EncoderDecoderMeasurement, EncoderDecoderMetrics
from tests.training.helpers import tiny_encoder_decoder_document
from training.config import EncoderDecoderConfig
from training.data.pairs import PairSplit
from training.evaluation.encoder_decoder_report import NearestSource, baselines, table

texts = st.text("ab ", min_size=1, max_size=6)


def split_of(pairs: Sequence[tuple[str, str]], name: str = "train") -> PairSplit:
    ids = [np.array([4], np.uint16) for _ in pairs]
    return PairSplit(name, pairs, ids, ids)


def jaccard(one: str, other: str) -> float:
    """Of the trigrams of the texts between line ends, as it is defined."""
    grams = [{f"\n{x}\n"[i : i + 3] for i in range(len(x))} for x in (one, other)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


# --- the nearest source -------------------------------------------------------------------------


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12), texts)
def test_the_nearest_source_has_the_largest_jaccard_index(
    pairs: list[tuple[str, str]], source: str
) -> None:
    train = split_of(pairs)
    scores = [jaccard(source, known) for known in train.references]
    nearest = list(train.references)[scores.index(max(scores))]
    assert NearestSource(train).target(source) == train.references[nearest][0]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12))
def test_a_source_of_its_own_is_nearest_to_itself_or_its_like(pairs: list[tuple[str, str]]) -> None:
    train = split_of(pairs)
    nearest = NearestSource(train)
    for source in train.references:
        targets = [y[0] for x, y in train.references.items() if jaccard(source, x) == 1.0]
        assert nearest.target(source) == targets[0]


def test_a_source_like_none_has_the_first_ones_target() -> None:
    train = split_of([("one", "eins"), ("two", "zwei")])
    assert NearestSource(train).target("???") == "eins"


def test_the_ends_of_a_text_count() -> None:
    nearest = NearestSource(split_of([("xxab", "end"), ("abxx", "start")]))
    assert nearest.target("abyy") == "start"
    assert nearest.target("yyab") == "end"


# --- baselines ----------------------------------------------------------------------------------


def test_the_floors_are_a_copy_and_the_nearest_sources_target() -> None:
    config = EncoderDecoderConfig.model_validate(tiny_encoder_decoder_document())
    nearest = NearestSource(split_of([("12 apples", "12 Äpfel"), ("pears", "Birnen")]))
    split = split_of(
        [("same", "same"), ("13 apples", "12 Äpfel"), ("same", "the same, in other words")], "test"
    )
    copy, near = baselines(config, split, nearest)
    assert (copy.name, near.name) == ("copy", "nearest source")
    assert copy.kind == near.kind == "baseline"
    assert (copy.values["exact_match"], near.values["exact_match"]) == (0.5, 0.5)
    assert set(copy.values) >= {"word_error_rate", "symbol_error_rate", "bleu", "chrf"}


def test_symbols_have_no_bleu() -> None:
    document = tiny_encoder_decoder_document(data={"target": {"tokenization": "whitespace"}})
    config = EncoderDecoderConfig.model_validate(document)
    split = split_of([("a b", "A B C D")])
    copy, near = baselines(config, split, NearestSource(split))
    assert set(copy.values) == {"exact_match", "word_error_rate", "symbol_error_rate"}
    assert (copy.values["symbol_error_rate"], near.values["symbol_error_rate"]) == (1.0, 0.0)


# --- the table ----------------------------------------------------------------------------------


def test_a_table_has_a_part_for_each_split_and_a_line_for_each_measurement() -> None:
    values = {"loss": 0.25, "exact_match": 0.5}
    metrics = [
        EncoderDecoderMetrics(
            split=split,
            pairs=1234,
            sources=1000,
            measurements=[
                EncoderDecoderMeasurement(name="beam 5", kind="model", values=values),
                EncoderDecoderMeasurement(
                    name="copy", kind="baseline", values={"exact_match": 0.125}
                ),
            ],
        )
        for split in ("test", "names")
    ]
    lines = table(metrics).splitlines()
    assert lines[:4] == [
        "test: 1,000 sources, 1,234 pairs",
        " " * 18 + f"{'loss':>19}{'exact_match':>19}",
        f"{'beam 5':<18}{'0.2500':>19}{'0.5000':>19}",
        f"{'copy':<18}{'':>19}{'0.1250':>19}",
    ]
    # 0.5 of 1,000 draws: sqrt(0.25 / 1,004).
    assert lines[4].startswith("beam 5: exact_match 0.5000 ± 0.0158 (")
    assert lines[5].startswith("names: ")
    assert lines[6:] == lines[1:5]


def test_no_measurements_are_an_empty_table() -> None:
    assert table([]) == ""


@pytest.mark.parametrize("text", ["x", "xy", "xyz"])
def test_short_sources_have_trigrams_too(text: str) -> None:
    train = split_of([("other", "no"), (text, "yes")])
    assert NearestSource(train).target(text) == "yes"
