"""Constrained generation: what is written obeys its rule, and nobody else sees a difference."""

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.decoding.cache_budget import CacheBudget
from service.decoding.constraints import (
    MAX_WAITING,
    AllOf,
    AllowedChars,
    Choices,
    Constraint,
    ConstraintCompiler,
    MustContain,
    Pattern,
    Rule,
    check_size,
    compile_rule,
)
from service.decoding.rows import ReadRow, WriteRow
from service.decoding.sampling import NOISE_BLOCK, SamplingParams, noise_block
from service.decoding.spelling import Writing
from service.decoding.write_batch import WriteBatch
from service.errors import InvalidRequest, QueueFull
from service.http.option_names import pointer_of
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.settings import Settings
from service.tasks.generation import Generation
from service.tasks.text_model import TextModel
from service.tasks.values import GenerateOptions
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import AppClient, FakeSession, eventually, sample
from tests.service.events import parsed
from tests.service.regexes import all_texts, regexes

EOS = "\ue002"
LETTERS = "abcdefgh"  # ids 4 to 11, the whole vocabulary of a FakeSession
TOKENS = ("\ue000", "\ue001", EOS, "\ue003", *LETTERS)
WRITING = Writing.of_characters(TOKENS)
LONGEST = 4
TEXTS = all_texts(LETTERS, LONGEST)

several = settings(max_examples=60, deadline=None)

HOWS = [
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=50.0, top_k=3),
    SamplingParams(top_p=0.0),
    SamplingParams(top_p=0.3, min_p=0.2),
    SamplingParams(logit_bias=((4, -1000.0), (5, -1000.0), (EOS_ID, 1000.0))),
    SamplingParams(frequency_penalty=90.0, presence_penalty=90.0, temperature=1e-9),
]
RULES: list[Rule] = [
    Pattern("a|b"),
    Pattern("[a-d]*"),
    Pattern("(?:ab|ba)+c?"),
    Pattern("[^a]{2,}a"),
    Pattern(".{2}"),
    Choices(("abc", "abd", "b", "hhhh", "b")),
    Choices(("", "a")),
    AllowedChars("ach?"),
    MustContain(("ab", "ba")),
    MustContain(("aba", "b")),
    AllOf((Pattern("[a-c]*"), MustContain(("ca", "a")))),
    AllOf((Choices(("abc", "cab", "b")), AllowedChars("abc"), MustContain(("ab",)))),
]


def compiled(rule: Rule, **changes: Any) -> Constraint:
    settings = Settings(**changes)
    check_size(rule, settings)
    return compile_rule(rule, WRITING, settings)


def matching(rule: Rule) -> set[str]:
    """What obeys a rule, as anybody would say it, of the short texts."""
    match rule:
        case Pattern(regex):
            return {text for text in TEXTS if re.fullmatch(regex, text)}
        case Choices(texts):
            return set(texts)
        case AllowedChars(characters):
            return {text for text in TEXTS if set(text) <= set(characters)}
        case MustContain(words):
            return {text for text in TEXTS if all(word in text for word in words)}
        case AllOf(rules):
            return set.intersection(*map(matching, rules))


def prompt(ids: Sequence[int]) -> ReadRow:
    tokens = np.array([BOS_ID, *ids], np.uint16)
    return ReadRow(tokens, np.full_like(tokens, PAD_ID), wants_continuation=True)


def writer(
    choice: int,
    constraint: Constraint | None,
    *,
    how: SamplingParams = SamplingParams(),
    max_tokens: int = LONGEST,
    top: int | None = None,
) -> WriteRow:
    return WriteRow(
        params=how,
        seed=1,
        choice=choice,
        max_tokens=max_tokens,
        constraint=constraint,
        detail_top=top,
    )


def written_alone(
    row: WriteRow, ids: Sequence[int], wanted: set[str]
) -> tuple[list[int], str | None]:
    """What a row writes: by listing every text that obeys, one token at a time."""
    session = FakeSession()
    states = session.initial_states(1)
    for id_ in [BOS_ID, *ids]:
        read, states = session.read(np.array([[id_]]), np.array([1], np.int32), states)
    tokens: list[int] = []
    text, state = "", 0
    while len(tokens) < row.max_tokens:
        assert row.constraint is not None
        logprobs = read[0, 0].copy()
        reachable = [x for x in wanted if len(x) <= row.max_tokens and x.startswith(text)]
        for i, letter in enumerate(LETTERS):
            if not any(x.startswith(text + letter) for x in reachable):
                logprobs[4 + i] = -np.inf
        if text not in wanted:
            logprobs[EOS_ID] = -np.inf
        uniform = noise_block(row.seed, row.choice, 0)[len(tokens) : len(tokens) + 1]
        counts = np.bincount(np.array(tokens, np.int64), minlength=session.vocab_size)
        token = int(sample(logprobs[None], [row.params], uniform, counts[None])[0])
        tokens.append(token)
        if token == EOS_ID:
            return tokens, "stop"
        text += LETTERS[token - 4]
        state = row.constraint.after_one(state, token)
        if row.constraint.is_closed[state]:
            return tokens, "stop"
        read, states = session.read(np.array([[token]]), np.array([1], np.int32), states)
    return tokens, "length"


def step(runner: LanguageModelRunner) -> None:
    for _, error in runner.run():
        assert error is None


@several
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(RULES),
            st.sampled_from(HOWS),
            st.lists(st.integers(4, 11), max_size=3),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_every_row_writes_what_its_rule_lets_it_write_alone(
    arrivals: list[tuple[int, Rule, SamplingParams, list[int]]],
) -> None:
    """Rows join at different times, some reading their prompts in the steps of others."""
    constraints = {rule: compiled(rule) for rule in RULES}
    runner = LanguageModelRunner(FakeSession(), 4, name="fake")
    works = []
    for i, (steps_before, rule, how, ids) in enumerate(arrivals):
        for _ in range(steps_before):
            step(runner)
        row = writer(i, constraints[rule], how=how)
        works.append(TextWork(prompt(ids), [row]))
        runner.admit([works[-1]])
    while not runner.free:
        step(runner)
    for (_, rule, _, ids), work in zip(arrivals, works, strict=True):
        (row,) = work.write
        wanted = matching(rule)
        assert (row.tokens, row.finish_reason) == written_alone(row, ids, wanted)
        text = "".join(LETTERS[x - 4] for x in row.tokens[: len(row.tokens) - row.stop_tokens])
        assert text in wanted


@several
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, *RULES]), st.sampled_from(HOWS)),
        min_size=1,
        max_size=9,
    )
)
def test_rows_without_a_rule_see_nothing_of_those_with_one(
    arrivals: list[tuple[int, Rule | None, SamplingParams]],
) -> None:
    """Also their details, to the bit, and whatever rows leave and move meanwhile."""

    def run(*, with_rules: bool) -> list[tuple[list[int], list[bytes], str | None]]:
        runner = LanguageModelRunner(FakeSession(), 4, name="fake")
        free = []
        for i, (steps_before, rule, how) in enumerate(arrivals):
            for _ in range(steps_before):
                step(runner)
            constraint = None if rule is None else compiled(rule)
            row = writer(i, constraint, how=how, max_tokens=9, top=2)
            if rule is None or with_rules:
                runner.admit([TextWork(prompt([4, 5]), [row])])
            if rule is None:
                free.append(row)
        while not runner.free:
            step(runner)
        told = [[x.logprob.tobytes() + x.top_ids.tobytes() for x in row.details] for row in free]
        return [
            (row.tokens, details, row.finish_reason)
            for row, details in zip(free, told, strict=True)
        ]

    assert run(with_rules=True) == run(with_rules=False)


def test_a_rule_is_kept_over_blocks_of_noise() -> None:
    """A text longer than a block; and rows whose places change."""
    constraint = compiled(Pattern("(?:abcd)+"))
    length = NOISE_BLOCK * 4 + 4
    runner = LanguageModelRunner(FakeSession(), 4, name="fake")
    rows = [writer(i, constraint, max_tokens=length - 4 * i) for i in range(3)]
    rows += [writer(i, compiled(Choices(("a" * (5 + i),)))) for i in range(3)]
    for row in rows[3:]:
        row.max_tokens = 20
    for row in rows:
        row.params = SamplingParams(logit_bias=((EOS_ID, -1000.0),))
        runner.admit([TextWork(prompt([4]), [row])])
    while not runner.free:
        step(runner)
    for i, row in enumerate(rows[:3]):
        assert row.tokens == [4, 5, 6, 7] * (len(row.tokens) // 4)
        assert (len(row.tokens), row.finish_reason) == (length - 4 * i, "length")
    assert [len(row.tokens) for row in rows[3:]] == [5, 6, 7]


def test_what_is_told_of_a_token_is_the_models_own() -> None:
    """Masked, not conditioned: its log-probability is not divided by that of what is allowed."""
    session = FakeSession()
    read = prompt([4, 5])
    runner = LanguageModelRunner(session, 4, name="fake")
    row = writer(0, compiled(Choices(("g",))), top=2)
    runner.admit([TextWork(read, [row])])
    while not runner.free:
        step(runner)
    assert read.continuation is not None
    own = read.continuation.logprobs
    (details,) = row.details
    assert row.tokens == [10]
    assert details.logprob[0] == own[10] < 0.0
    assert details.top_ids[0].tolist() == np.argsort(-own, kind="stable")[:2].tolist()
    assert details.rank[0] == 1 + (own > own[10]).sum()


# --- tables ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(regex=regexes)
@example(regex="(?:a[^\\s\\S]|b)c")
def test_the_tables_know_what_matches_how_far_it_is_and_what_can_follow(regex: str) -> None:
    letters = "abé"
    tokens = (*TOKENS[:4], *letters)
    compiled_regex = re.compile(regex)
    texts = all_texts(letters, 4)
    wanted = {text for text in texts if compiled_regex.fullmatch(text)}
    try:
        constraint = compile_rule(Pattern(regex), Writing.of_characters(tokens), Settings())
    except InvalidRequest:
        assert not wanted
        return
    for text in texts:
        ids = [tokens.index(x) for x in text]
        assert constraint.matches(ids) == (text in wanted)
    for text in all_texts(letters, 2):
        state = 0
        for character in text:
            state = constraint.after_one(state, tokens.index(character))
        further = {len(x) - len(text) for x in wanted if x.startswith(text)}
        distance = int(constraint.distance[state])
        # Of what takes longer than the texts here, no more is known than that.
        assert distance == min(further) if further else distance > 4 - len(text)
        if constraint.is_closed[state]:
            assert further == {0}
        elif further == {0}:
            ways = constraint.following[state, :-1]
            assert constraint.distance[ways].min() >= 4 - len(text)


def test_the_tokens_that_are_allowed_leave_enough_for_a_match() -> None:
    constraint = compiled(Pattern("a|bcd*e"))
    states = np.zeros(4, np.int64)
    allowed = constraint.allowed(states, np.array([1, 2, 3, 50]))
    found = [{TOKENS[i] for i in np.flatnonzero(row)} for row in allowed]
    assert found == [{"a"}, {"a"}, {"a", "b"}, {"a", "b"}]
    assert constraint.shortest == 1


def test_pad_bos_unk_and_their_printed_forms_are_never_allowed() -> None:
    constraint = compiled(Pattern("(?s).*"))
    (allowed,) = constraint.allowed(np.zeros(1, np.int64), np.array([9]))
    assert allowed.tolist() == [False, False, True, False] + [True] * 8
    with pytest.raises(InvalidRequest):
        compiled(Pattern("[\ue000-\ue003]"))


@pytest.mark.parametrize(
    ("rule", "changes", "pointer", "words"),
    [
        (Pattern("a" * 11), {"max_pattern_chars": 10}, "/pattern", "at most 10"),
        (Pattern("a{9}"), {"max_pattern_states": 9}, "/pattern", "at most 9 states"),
        (Pattern("a{9}"), {"max_pattern_steps": 9}, "/pattern", "too many steps"),
        (Pattern("aZ|Z"), {}, "/pattern", "no text of the model's characters matches it"),
        (Choices(("a", "b", "c")), {"max_choices": 2}, "/choices", "at most 2"),
        (Choices(("aa", "aa")), {"max_choices_chars": 3}, "/choices", "at most 3"),
        (Choices(("a", "abZ")), {}, "/choices/1", "the character at position 2"),
        (Choices(("a", EOS)), {}, "/choices/1", "the character at position 0"),
        (AllowedChars("XYZ"), {}, "/allowed_chars", "the model writes none of these"),
        (AllowedChars(""), {}, "/allowed_chars", "the model writes none of these"),
        (AllowedChars("abcd"), {"max_choices_chars": 3}, "/allowed_chars", "at most 3"),
        (MustContain(("a", "b")), {"max_choices": 1}, "/must_contain", "at most 1"),
        (MustContain(("aa", "bb")), {"max_choices_chars": 3}, "/must_contain", "at most 3"),
        (MustContain(("a", "")), {}, "/must_contain/1", "must not be empty"),
        (MustContain(("a", "abZ")), {}, "/must_contain/1", "the character at position 2"),
        (MustContain(("abcd",)), {"max_pattern_states": 4}, "/must_contain", "at most 4 states"),
        (MustContain(("a", "b", "c")), {"max_pattern_states": 7}, "/must_contain", "at most 7"),
        (MustContain(("ab", "c")), {"max_pattern_steps": 9}, "/must_contain", "too many steps"),
        (
            AllOf((Pattern("[a-d]*"), MustContain(("f",)))),
            {},
            "/must_contain",
            "together with the other rules",
        ),
        (
            AllOf((Pattern("(?:.{3})*"), MustContain(("abc",)))),
            {"max_pattern_states": 8},
            "/must_contain",
            "at most 8 states",
        ),
    ],
)
def test_a_rule_that_cannot_be_obeyed_or_is_too_large_is_refused(
    rule: Rule, changes: dict[str, Any], pointer: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        compiled(rule, **changes)
    assert [pointer_of(x) for x in refused.value.errors] == [pointer]
    assert words in refused.value.detail
    assert "Z" not in refused.value.detail


# --- the cache ------------------------------------------------------------------------------------


def test_constraints_are_kept_within_their_bytes_the_last_used_longest() -> None:
    async def run() -> None:
        one = compiled(Pattern("a{10}"))
        budget = CacheBudget(6000)
        compiler = ConstraintCompiler(WRITING, Settings(), budget)
        assert 2 * one.size_bytes < 6000
        first = await compiler.compiled(Pattern("a{10}"))
        assert await compiler.compiled(Pattern("a{10}")) is first
        for letter in "bcdefg":
            await compiler.compiled(Pattern(f"{letter}{{10}}"))
            assert await compiler.compiled(Pattern("a{10}")) is first
            assert 0 < budget.size_bytes <= 6000
        for letter in "bcdefg":
            await compiler.compiled(Pattern(f"{letter}{{10}}"))
        assert await compiler.compiled(Pattern("a{10}")) is not first

    asyncio.run(run())


def test_without_a_cache_nothing_is_kept() -> None:
    async def run() -> None:
        budget = CacheBudget(0)
        compiler = ConstraintCompiler(WRITING, Settings(), budget)
        first = await compiler.compiled(Choices(("a",)))
        assert budget.size_bytes == 0
        assert await compiler.compiled(Choices(("a",))) is not first

    asyncio.run(run())


def test_few_compile_at_a_time_few_wait_and_one_pattern_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    begun: list[Rule] = []

    def slow(rule: Rule, writing: Writing, settings: Settings) -> Constraint:
        begun.append(rule)
        assert gate.wait(20)
        return compile_rule(rule, writing, settings)

    monkeypatch.setattr("service.decoding.constraints.compile_rule", slow)

    async def run() -> None:
        compiler = ConstraintCompiler(WRITING, Settings(), CacheBudget(2**20))
        rules = [Pattern("a*"), Pattern("b*")] * (MAX_WAITING // 2)
        waiting = [asyncio.create_task(compiler.compiled(rule)) for rule in rules]
        await asyncio.to_thread(eventually, lambda: bool(begun))
        assert begun == [Pattern("a*")]
        with pytest.raises(QueueFull) as refused:
            await compiler.compiled(Pattern("c*"))
        assert refused.value.headers == {"Retry-After": "1"}
        waiting[-1].cancel()
        gate.set()
        found = await asyncio.gather(*waiting[:-1])
        assert begun == [Pattern("a*"), Pattern("b*")]
        assert len({id(x) for x in found}) == 2
        # What is known waits for nobody, and room is there again.
        assert await compiler.compiled(Pattern("a*")) is found[0]
        await compiler.compiled(Pattern("c*"))

    asyncio.run(run())


# --- over HTTP ------------------------------------------------------------------------------------


def generate(client: AppClient, **body: Any) -> list[Any]:
    answer = client.ask("/generate", **{"model": "tiny-gru", "prompt": "the ", **body})
    return [choice for result in answer["results"] for choice in result["choices"]]


@settings(max_examples=25, deadline=None)
@given(
    regex=regexes,
    options=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**40),
            "max_tokens": st.integers(1, 12),
            "temperature": st.sampled_from([0.0, 0.8, 40.0]),
            "top_p": st.sampled_from([0.0, 0.5, 1.0]),
            "n": st.integers(1, 3),
            "echo": st.booleans(),
            "logit_bias": st.sampled_from([{}, {EOS: 1000.0}, {EOS: -1000.0, "a": -1000.0}]),
        }
    ),
)
def test_the_text_always_matches(client: AppClient, regex: str, options: dict[str, Any]) -> None:
    body = {"model": "tiny-lstm", "prompt": "the ", "pattern": regex, **options}
    response = client.post("/generate", json=body)
    if response.status_code == 422:
        # It needs more characters than there are tokens, or ones that the model has not.
        assert not any(re.fullmatch(regex, x) for x in all_texts("ab Cé", 1))
        return
    assert response.status_code == 200
    for choice in response.json()["results"][0]["choices"]:
        text = choice["text"].removeprefix("the ") if options["echo"] else choice["text"]
        assert re.fullmatch(regex, text)
        assert choice["matched"] is True


def test_texts_of_choices_and_of_allowed_characters(client: AppClient) -> None:
    wanted = ["the queen", "a rabbit", "a rabbi", "tea\n"]
    found = {
        x["text"] for seed in range(6) for x in generate(client, choices=wanted, n=8, seed=seed)
    }
    assert found <= set(wanted)
    assert len(found) > 1
    for given_as in ("ab \u05d0", ["a", "b", " ", "\u05d0"]):
        for choice in generate(client, allowed_chars=given_as, n=8, seed=1):
            assert set(choice["text"]) <= set("ab ")
            assert choice["matched"]


def test_a_text_ends_at_once_where_nothing_can_follow(client: AppClient) -> None:
    answer = client.ask(
        "/generate", model="tiny-lstm", prompt="x", pattern="ab?c{3}", max_tokens=5, logprobs=0
    )
    (choice,) = answer["results"][0]["choices"]
    assert choice["text"] in {"accc", "abccc"}
    assert choice["finish_reason"] == "stop"
    assert [x["token"] for x in choice["logprobs"]] == list(choice["text"])
    assert answer["usage"]["completion_tokens"] == len(choice["text"])


def test_the_empty_text_is_a_match_without_a_token(client: AppClient) -> None:
    for options in ({"pattern": "", "max_tokens": 5}, {"choices": [""], "max_tokens": 0}):
        (choice,) = generate(client, seed=1, **options)
        assert choice == {
            "text": "",
            "finish_reason": "stop",
            "seed": 1,
            "matched": True,
            "logprobs": None,
            "state": None,
        }
    (choice,) = generate(client, pattern="a*", max_tokens=0)
    assert (choice["finish_reason"], choice["matched"]) == ("length", True)


def test_a_match_is_reached_with_the_last_token_there_is(client: AppClient) -> None:
    """Greedy would go on with anything; the mask brings it home in time."""
    for max_tokens in range(4, 12):
        (choice,) = generate(
            client, pattern=r"[a-z ]*\.[A-C]{3}", max_tokens=max_tokens, temperature=0
        )
        assert re.fullmatch(r"[a-z ]*\.[A-C]{3}", choice["text"])


def test_too_few_tokens_for_any_match_are_refused_with_the_number(client: AppClient) -> None:
    body = {"model": "tiny-gru", "prompt": "", "pattern": "a{20,30}|b{15}"}
    response = client.post("/generate", json={**body, "max_tokens": 14})
    assert response.status_code == 422
    (mistake,) = response.json()["errors"]
    assert mistake["pointer"] == "/max_tokens"
    assert "15" in mistake["detail"]
    assert client.post("/generate", json={**body, "max_tokens": 15}).status_code == 200


def test_a_stop_string_still_ends_the_text_and_matched_says_how_it_stands(
    client: AppClient,
) -> None:
    (cut,) = generate(client, pattern="abcabc", stop="ca", temperature=0)
    assert (cut["text"], cut["finish_reason"], cut["matched"]) == ("ab", "stop", False)
    (cut,) = generate(client, pattern="ab(?:cab)?", stop="ca", logit_bias={EOS: -1000.0})
    assert (cut["text"], cut["finish_reason"], cut["matched"]) == ("ab", "stop", True)
    (free,) = generate(client, stop="ca", max_tokens=3)
    assert free["matched"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "[a-z]+ [a-z]{2,4}", "n": 3},
        {"choices": ["abc", "abd", ""], "n": 3, "stop": ["bd", "c"]},
        {"allowed_chars": "ab", "echo": True, "stop": "ba"},
        {"pattern": "", "echo": True},
        {"max_tokens": 5},
    ],
)
def test_a_stream_says_whether_the_text_matched(client: AppClient, options: dict[str, Any]) -> None:
    for seed in range(4):
        body = {"model": "tiny-rnn", "prompt": "the ", "max_tokens": 12, "seed": seed, **options}
        plain = client.ask("/generate", **body)["results"][0]["choices"]
        events = parsed(client.post("/generate", json={**body, "stream": True}).content)
        ends = json.loads(events[-1].data)["choices"]
        kept = [[x["finish_reason"], x["matched"]] for x in plain]
        assert [[x["finish_reason"], x["matched"]] for x in ends] == kept


def test_requests_with_rules_are_answered_together_as_alone(client: AppClient) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"pattern": "[a-z ]+[.!?]"},
        {"pattern": "[A-C]{1,30}"},
        {"choices": ["alice", "the queen", "queens"]},
        {"allowed_chars": "abcdef "},
    ]
    bodies = [
        {
            "model": "tiny-lstm",
            "prompt": "abc " * (i % 4),
            "max_tokens": 40,
            "seed": i,
            "logprobs": 2,
            "temperature": [0.0, 1.0, 2.0][i % 3],
            **kinds[i % 5],
        }
        for i in range(30)
    ]
    alone = [client.ask("/generate", **body)["results"] for body in bodies]
    together = [x.json()["results"] for x in client.together("/generate", bodies)]
    assert together == alone


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"pattern": "a", "choices": ["a"]}, ""),
        ({"pattern": "a", "allowed_chars": "a"}, ""),
        ({"choices": ["a"], "allowed_chars": ""}, ""),
        ({"choices": []}, "/choices"),
        ({"choices": "a"}, "/choices"),
        ({"choices": ["a", "QMARKER"]}, "/choices/1"),
        ({"allowed_chars": ["ab"]}, "/allowed_chars/0"),
        ({"allowed_chars": []}, "/allowed_chars"),
        ({"pattern": 5}, "/pattern"),
        ({"pattern": "(QMARKER"}, "/pattern"),
        ({"pattern": r"(?P<QMARKER>a)(?P=QMARKER)"}, "/pattern"),
        ({"pattern": "QMARKER"}, "/pattern"),
        ({"pattern": "(a|b)*a(a|b){30}"}, "/pattern"),
        ({"pattern": "a" * 1025}, "/pattern"),
        ({"choices": ["a"] * 1025}, "/choices"),
        ({"allowed_chars": "a" * 8193}, "/allowed_chars"),
        ({"pattern": "a{1025}", "max_tokens": 1000}, "/max_tokens"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_where_it_stands(
    client: AppClient, options: dict[str, Any], pointer: str
) -> None:
    body = {"model": "tiny-gru", "prompt": "a", **options}
    for stream in (False, True):
        response = client.post("/generate", json={**body, "stream": stream})
        assert response.status_code == 422
        assert response.headers["Content-Type"] == "application/problem+json"
        assert pointer in [x["pointer"] for x in response.json()["errors"]]
        assert "QMARKER" not in response.text


def test_the_tables_of_waiting_requests_count_in_the_queue() -> None:
    """Else a full queue could hold a table of megabytes in every row; inputs share one."""
    bundle = in_memory(*plain_files("fake", ALPHABET))
    model = TextModel.of(bundle, "fp32", Settings())
    constraint = compile_rule(
        Pattern("(?:b[a-z])*"), Writing.of_characters(bundle.vocab.tokens), Settings()
    )
    options = GenerateOptions(max_tokens=7, n=2)
    free, held = (Generation(model, ["ab", "abc"], options, x) for x in (None, constraint))
    free.read()
    held.read()
    assert constraint.cells == 3 * 3  # with the dead state, and the class that is never allowed
    before, after = (sum(x.queued_tokens for x in each.works) for each in (free, held))
    assert after == before + constraint.cells


def test_a_batch_without_rules_computes_no_mask() -> None:
    batch = WriteBatch(FakeSession(), 2)
    runner_row = writer(0, None)
    read = prompt([4])
    runner = LanguageModelRunner(FakeSession(), 2, name="fake")
    runner.admit([TextWork(read, [writer(1, None, max_tokens=1)])])
    while not runner.free:
        step(runner)
    assert read.continuation is not None
    batch.add(runner_row, read.continuation)
    batch.sample()
    assert batch._constrained == []
