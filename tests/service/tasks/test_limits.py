"""Engines check all that they are asked, before any work, and name the option."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from service.tasks.values import GenerateOptions, ScoreOptions
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import FakeSession

LIMITS: dict[str, Any] = {
    "max_inputs": 2,
    "max_n": 3,
    "max_stop": 2,
    "max_stop_chars": 4,
    "max_tokens": 20,
    "max_cost_tokens": 50,
    "max_prompt_chars": 10,
    "max_details": 60,
    "max_states": 1,
    "max_queue_tokens": 30,
}


@pytest.fixture
def engine() -> Iterator[LanguageModelEngine]:
    session = FakeSession(vocab_size=4 + len(ALPHABET))
    bundle = in_memory(*plain_files("fake", ALPHABET))
    yield LanguageModelEngine(bundle, session, Settings(**LIMITS), precision="fp32")
    assert session.runs == []


def generate(**options: Any) -> GenerateOptions:
    return GenerateOptions(**{"max_tokens": 1} | options)


@pytest.mark.parametrize(
    ("prompts", "asked", "option", "limit"),
    [
        (["a"] * 3, generate(), "prompt", 2),
        (["a" * 11], generate(), "prompt", 10),
        (["a"], generate(n=4), "n", 3),
        (["a"], generate(stop=("a", "b", "c")), "stop", 2),
        (["a"], generate(stop=("a" * 5,)), "stop", 4),
        (["a"], generate(stop=("",)), "stop", 4),
        (["a"], generate(max_tokens=21), "max_tokens", 20),
        (["a"], generate(max_tokens=17, n=3), "max_tokens", 50),
        (["a"], generate(max_tokens=16, logprobs=0), "logprobs", 60),
        (["a"], generate(max_tokens=1, n=2, return_state=True), "return_state", 1),
    ],
)
def test_what_is_asked_of_generate_is_within_the_limits(
    engine: LanguageModelEngine,
    prompts: list[str],
    asked: GenerateOptions,
    option: str,
    limit: int,
) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{limit}\b") as refused:
        asyncio.run(engine.generate(prompts, asked))
    assert [x.option for x in refused.value.errors] == [option]


@pytest.mark.parametrize(
    ("texts", "asked", "option", "limit"),
    [
        (["a"] * 3, ScoreOptions(), "text", 2),
        (["a" * 31], ScoreOptions(), "text", 30),
        (["a" * 16], ScoreOptions(tokens=True), "text", 60),
        (["a"] * 2, ScoreOptions(return_state=True), "return_state", 1),
    ],
)
def test_what_is_asked_of_score_is_within_the_limits(
    engine: LanguageModelEngine,
    texts: list[str],
    asked: ScoreOptions,
    option: str,
    limit: int,
) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{limit}\b") as refused:
        asyncio.run(engine.score(texts, asked))
    assert [x.option for x in refused.value.errors] == [option]
