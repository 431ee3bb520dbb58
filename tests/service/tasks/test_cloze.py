"""A model that fills blanks: its numbers are PyTorch's, and what it compares is what was asked."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.infill import BLANK
from service.bundle.text import BOS_ID, EOS_ID
from service.decoding.constraints import AllowedChars, Pattern
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.engine import INFILL, PROPOSE, SCORE, TRANSLATE
from service.tasks.infill_values import Blanks, Infilled, InfillOptions, Proposal
from service.tasks.kinds import Surroundings, open_engine
from tests.bundles import (
    CLOZE,
    encoder_decoder_in_memory,
    tiny_cloze_files,
    tiny_encoder_decoder,
)

CHARACTERS = "abc \n"
BUNDLE = encoder_decoder_in_memory(*tiny_cloze_files(characters=CHARACTERS))
MODEL = tiny_encoder_decoder(len(BUNDLE.source), len(BUNDLE.target), cell="lstm")


async def _asked(
    texts: Sequence[Blanks],
    options: InfillOptions,
    settings: Settings,
    bundle: EncoderDecoderBundle = BUNDLE,
) -> Any:
    engine = open_engine(bundle, Surroundings(settings=settings, threads=1))
    infills, proposes = INFILL.of(engine), PROPOSE.of(engine)
    assert infills is not None
    assert proposes is not None
    engine.start()
    try:
        return await infills.infill(texts, options), await proposes.propose(texts, options)
    finally:
        await engine.stop()


def ask(
    *texts: tuple[str, ...],
    settings: dict[str, Any] | None = None,
    bundle: EncoderDecoderBundle = BUNDLE,
    **options: Any,
) -> list[Infilled]:
    """The fills of some texts, in fp32."""
    chosen = Settings(precision="fp32", **(settings or {}))
    blanks = [Blanks(pieces) for pieces in texts]
    found: list[Infilled]
    found, _ = asyncio.run(_asked(blanks, InfillOptions(**options), chosen, bundle))
    return found


@cache
def in_pytorch(source: str, target: str) -> float:
    """log q(target | source), by the network itself."""
    ids = [*BUNDLE.source.encode(source).tolist(), EOS_ID]
    wanted = [*BUNDLE.target.encode(target).tolist(), EOS_ID]
    with torch.no_grad():
        tokens = torch.tensor([[BOS_ID, *wanted[:-1]]])
        logits = MODEL(torch.tensor([ids]), torch.tensor([len(ids)]), tokens)
    logprobs = torch.log_softmax(logits.double(), dim=2)[0]
    return float(sum(logprobs[i, token] for i, token in enumerate(wanted)))


def posteriors(logprobs: Sequence[float]) -> list[float]:
    shares = np.exp(np.array(logprobs) - max(logprobs))
    return [float(x) for x in shares / shares.sum()]


def test_a_bundle_that_fills_blanks_does_that_alone() -> None:
    engine = open_engine(BUNDLE, Surroundings(settings=Settings(), threads=1))
    assert set(engine.abilities) == {INFILL, PROPOSE}
    assert (TRANSLATE.of(engine), SCORE.of(engine)) == (None, None)


def test_candidates_have_the_numbers_of_pytorch() -> None:
    candidates = ("a", "ab", "c ", "a", "bbbb")  # one of them twice
    (found,) = ask(("ab ", " ca"), candidates=candidates, num_fills=9, bos=False)
    source = CLOZE.source(("ab ", " ca"), begins=False, ends=False)
    wanted = {text: in_pytorch(source, text) for text in candidates}
    assert {fill.texts: fill.logprob for fill in found.fills} == {
        (text,): pytest.approx(logprob, abs=1e-5 * (len(text) + 1))
        for text, logprob in wanted.items()
    }
    assert found.compared == 4
    assert [x.posterior for x in found.fills] == pytest.approx(
        posteriors(sorted(wanted.values(), reverse=True)), abs=1e-5
    )
    assert [x.suffix_logprob for x in found.fills] == [None] * 4
    assert (found.found_mass, found.completion_tokens) == (None, 0)


def test_of_several_blanks_every_combination_is_compared() -> None:
    pieces = ("a", "b", "c")
    (found,) = ask(pieces, candidates=("a", "b c"), num_fills=9, bos=True, eos=True)
    source = CLOZE.source(pieces, begins=True, ends=True)
    wanted = {x: in_pytorch(source, BLANK.join(x)) for x in product(("a", "b c"), repeat=2)}
    assert {x.texts: x.logprob for x in found.fills} == pytest.approx(wanted, abs=1e-4)
    assert math.fsum(x.posterior for x in found.fills) == pytest.approx(1.0)


def test_the_edges_of_the_document_change_the_numbers() -> None:
    numbers = {
        ask(("a", "b"), candidates=("c",), bos=bos, eos=eos)[0].fills[0].logprob
        for bos in (False, True)
        for eos in (False, True)
    }
    assert len(numbers) == 4


def test_one_character_is_searched_whole() -> None:
    (found,) = ask(("ab", "ba"), length=1, num_fills=9, num_proposals=5)
    (scored,) = ask(("ab", "ba"), candidates=tuple(CHARACTERS), num_fills=9)
    assert [x.texts for x in found.fills] == [x.texts for x in scored.fills]
    assert [x.posterior for x in found.fills] == pytest.approx(
        [x.posterior for x in scored.fills], abs=1e-6
    )
    mass = math.fsum(math.exp(x.logprob) for x in found.fills)
    assert found.found_mass == pytest.approx(mass)


def test_a_wide_beam_finds_the_likeliest_texts_of_two_blanks() -> None:
    pieces = ("ca", " ", "bb")
    (found,) = ask(pieces, length=1, num_fills=4, num_proposals=25)
    (scored,) = ask(pieces, candidates=tuple(CHARACTERS), num_fills=4)
    assert found.compared == 25
    assert [x.texts for x in found.fills] == [x.texts for x in scored.fills]


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"length": 3}, lambda text: len(text) == 3),
        ({"max_tokens": 2}, lambda text: 1 <= len(text) <= 2),
        ({"rule": Pattern("[ab]c*")}, lambda text: text[0] in "ab" and set(text[1:]) <= {"c"}),
        ({"rule": AllowedChars("c ")}, lambda text: set(text) <= set("c ")),
        ({}, lambda text: 1 <= len(text) <= CLOZE.max_chars),
    ],
)
def test_open_blanks_hold_what_was_asked_for(options: dict[str, Any], fits: Any) -> None:
    for pieces in (("a", "b"), ("a", "b", "c")):
        (found,) = ask(pieces, num_fills=20, **options)
        assert found.fills
        assert all(fits(text) for fill in found.fills for text in fill.texts)
        assert len({fill.texts for fill in found.fills}) == len(found.fills)


def test_a_blank_may_have_to_repeat_itself() -> None:
    infill = CLOZE.model_copy(update={"max_chars": 30})
    manifest = BUNDLE.manifest.model_copy(update={"infill": infill})
    repeated = replace(BUNDLE, manifest=manifest)
    (found,) = ask(("b", "b"), rule=Pattern("a*"), length=30, bundle=repeated)
    assert [x.texts for x in found.fills] == [("a" * 30,)]
    assert found.fills[0].posterior == pytest.approx(1.0)


def test_proposals_are_the_fills_in_the_same_order() -> None:
    async def both() -> tuple[list[Infilled], list[list[Proposal]]]:
        texts = [Blanks(("ab", "c")), Blanks(("a", "b", "c"))]
        options = InfillOptions(num_fills=6, num_proposals=6)
        found: tuple[list[Infilled], list[list[Proposal]]]
        found = await _asked(texts, options, Settings())
        return found

    results, proposals = asyncio.run(both())
    for result, proposed in zip(results, proposals, strict=True):
        assert [(x.texts, x.logprob) for x in result.fills] == [
            (x.texts, x.logprob) for x in proposed
        ]


def test_blanks_further_apart_than_the_model_reads_know_nothing_of_each_other() -> None:
    far = "b" * (CLOZE.context + 1)
    (both,) = ask(("a", far, "c"), candidates=("a", "cc", " "), num_fills=3, bos=False)
    (first,) = ask(("a", far), candidates=("a", "cc", " "), num_fills=1, bos=False)
    (second,) = ask((far, "c"), candidates=("a", "cc", " "), num_fills=1, bos=False)
    best = both.fills[0]
    assert best.texts == (*first.fills[0].texts, *second.fills[0].texts)
    assert best.logprob == pytest.approx(first.fills[0].logprob + second.fills[0].logprob)
    assert best.posterior == pytest.approx(first.fills[0].posterior * second.fills[0].posterior)
    assert (both.compared, len(both.fills)) == (9, 3)


def test_only_the_context_is_read() -> None:
    near = "abc" * 4
    (whole,) = ask((f"ccc{near}", f"{near}bbb"), candidates=("a", "b"), bos=False)
    (part,) = ask((near, near), candidates=("a", "b"), bos=False)
    assert whole.fills == part.fills


def test_a_text_gets_the_same_bits_alone_and_among_others() -> None:
    texts = (("ab", "c"), ("", "abcabc"), ("a", "b", "c"))
    together = ask(*texts, num_proposals=4)
    assert together == [ask(text, num_proposals=4)[0] for text in texts]


def test_marks_and_strange_characters_of_a_text_are_unknown() -> None:
    (found,) = ask((f"a{BLANK}", "é"), candidates=("a",))
    assert (found.unknown.count, found.unknown.positions) == (2, (1, 2))
    (skipped,) = ask((f"a{BLANK}", "éb"), candidates=("a",), unknown="skip")
    assert skipped.fills == ask(("a", "b"), candidates=("a",))[0].fills
    with pytest.raises(InvalidRequest, match="not in the model's vocabulary"):
        ask(("a", "é"), candidates=("a",), unknown="error")


@pytest.mark.parametrize(
    ("pieces", "options", "option", "message"),
    [
        (("a", "b"), {"length": 5}, "length", "at most 4"),
        (("a", "b"), {"length": 3, "max_tokens": 2}, "length", "at most 2"),
        (("a", "b"), {"num_proposals": 33}, "num_proposals", "at most 32"),
        (("a", "b"), {"num_fills": 2000}, "num_fills", "at most 1024"),
        (("a", "b"), {"candidates": ("a", "")}, "candidates", "must not be empty"),
        (("a", "b"), {"candidates": ("a",) * 2000}, "candidates", "at most 1024"),
        (("a",), {}, "text", "1 to 32 blanks"),
        (("a", "b", "c", "d"), {}, "text", "at most 2 blanks that have at most 12 characters"),
        (("a", "b"), {"rule": Pattern("a{5}")}, "pattern", "no text of 1 to 4 characters"),
        (("a", "b"), {"rule": Pattern("x")}, "pattern", "no text"),
    ],
)
def test_what_it_cannot_do_is_refused_by_the_option(
    pieces: tuple[str, ...], options: dict[str, Any], option: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        ask(pieces, **options)
    assert [x.option for x in caught.value.errors] == [option]


def test_a_search_too_large_for_the_service_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="num_proposals · max_tokens"):
        ask(("a", "b"), settings={"max_cost_tokens": 20}, num_proposals=5)
    with pytest.raises(InvalidRequest, match="for each combination of candidates"):
        ask(("a", "b"), settings={"max_queue_tokens": 20}, candidates=("a", "b", "c"))
