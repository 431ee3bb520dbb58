"""`adapt`: answers that depend on the text alone, in any pieces, beside anything; its handles."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bundle.language_model import MAX_ADAPT_BYTES, Adapt
from service.bundle.manifest import StateTensor
from service.runtime.adapting import language_model_sessions
from service.settings import Settings
from service.tasks.handles import MAX_ADAPTED_CHARS
from service.tasks.language_model import MAX_SHARED_BYTES, LanguageModelEngine
from tests.adapting_bundles import adapting_bundle
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import AppClient, FakeSession

VOCAB_SIZE = 4 + len(ALPHABET)
STATES = [
    {"name": "hash", "dtype": "float32", "shape": [1]},
    {"name": "count", "dtype": "float32", "shape": [2, 2]},
]
LONG = "as it was said before, "  # long enough for the cache
NO_END = {"\ue002": -1000.0}

# Without the combining mark: a text in two parts is normalized in two parts.
models = st.sampled_from(["adapting", "tiny-lstm"])
texts = st.text(ALPHABET.replace("\u0301", ""), min_size=1, max_size=30)


def adapt_of(*shape: int) -> Adapt:
    return Adapt(
        states=[StateTensor(name="learned", dtype="float32", shape=list(shape))],
        rank=None,
        rate=0.01,
        decay=0.0,
        weights=[1.0],
        temperatures=[1.0],
    )


def engine_of(name: str, adapt: Adapt | None, **settings: Any) -> LanguageModelEngine:
    manifest, files = plain_files(name, ALPHABET, states=STATES)
    bundle = in_memory(manifest.model_copy(update={"adapt": adapt}), files)
    return LanguageModelEngine(
        bundle,
        FakeSession(vocab_size=VOCAB_SIZE),
        Settings(**settings),
        precision="fp32",
        adapting=None if adapt is None else FakeSession(vocab_size=VOCAB_SIZE, adapts=True),
    )


def real_engine(**settings: Any) -> LanguageModelEngine:
    """`tiny-lstm` in onnxruntime."""
    bundle = adapting_bundle("lstm", rank=5)
    session, adapting = language_model_sessions(bundle, "int8")
    return LanguageModelEngine(
        bundle, session, Settings(**settings), precision="int8", adapting=adapting
    )


def serving(**settings: Any) -> AppClient:
    settings = {"state_key": "a key of enough characters"} | settings
    engines = [
        engine_of("adapting", adapt_of(VOCAB_SIZE), **settings),
        engine_of("plain", None, **settings),
        real_engine(**settings),
    ]
    return AppClient(create_app(Settings(**settings), engines))


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def uncached() -> Iterator[AppClient]:
    with serving(prefix_cache_bytes=0) as running:
        yield running


def scored(client: AppClient, text: str, **body: Any) -> Any:
    body = {"model": "adapting", "adapt": True} | body
    (result,) = client.ask("/score", text=text, **body)["results"]
    return result


def choice_of(client: AppClient, prompt: str, **body: Any) -> Any:
    body = {"model": "adapting", "adapt": True, "seed": 3} | body
    (result,) = client.ask("/generate", prompt=prompt, **body)["results"]
    (choice,) = result["choices"]
    return choice


def refusal(client: AppClient, path: str, **body: Any) -> tuple[str, str]:
    """Where the one mistake is, and what is said of it."""
    response = client.post(path, json=body)
    assert response.status_code == 422, response.text
    (mistake,) = response.json()["errors"]
    return mistake["pointer"], mistake["detail"]


# --- one text, one answer -------------------------------------------------------------------------


def test_a_model_that_adapts_says_so_and_answers_otherwise(client: AppClient) -> None:
    answers = [
        client.ask("/score", model="adapting", text="abcabc", adapt=adapt)
        for adapt in (False, True)
    ]
    assert [answer["adapt"] for answer in answers] == [False, True]
    one, other = (answer["results"][0]["logprob"] for answer in answers)
    assert one != other


@settings(max_examples=20)
@given(model=models, text=texts, one=texts, other=texts)
def test_a_prefix_is_scored_before_anything_is_learned_from_what_follows(
    client: AppClient, model: str, text: str, one: str, other: str
) -> None:
    of_one, of_other, alone = (
        [x["logprob"] for x in scored(client, text + rest, model=model, tokens=True)["tokens"]]
        for rest in (one, other, "")
    )
    assert of_one[: len(alone)] == of_other[: len(alone)] == alone


@settings(max_examples=20)
@given(model=models, text=texts, cuts=st.lists(st.integers(0, 30), max_size=3))
def test_a_text_in_pieces_has_the_score_of_the_whole(
    client: AppClient, model: str, text: str, cuts: list[int]
) -> None:
    options = {"model": model, "tokens": True}
    whole = scored(client, text, **options)
    state, logprobs, begin = None, [], 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        piece = scored(client, text[begin:end], state=state, return_state=True, **options)
        logprobs += [x["logprob"] for x in piece["tokens"]]
        # A text of no characters before any other leaves the state after bos.
        state, begin = piece["state"], end
    assert logprobs == [x["logprob"] for x in whole["tokens"]]


@settings(max_examples=10)
@given(model=models, text=texts, every=st.integers(1, 9))
def test_a_streamed_total_is_the_score(
    client: AppClient, model: str, text: str, every: int
) -> None:
    query = f"model={model}&adapt=true&mode=total&every={every}"
    response = client.post(
        f"/score?{query}", content=text.encode(), headers={"Content-Type": "text/plain"}
    )
    *_, last = map(json.loads, response.text.splitlines())
    assert (last["done"], last["logprob"]) == (
        True,
        scored(client, text, model=model)["logprob"],
    )


@settings(max_examples=10)
@given(model=models, prompt=texts, pieces=st.lists(st.integers(1, 40), min_size=2, max_size=3))
def test_a_text_written_in_pieces_is_the_one_written_at_once(
    client: AppClient, model: str, prompt: str, pieces: list[int]
) -> None:
    options = {"model": model, "return_state": True, "logprobs": 1, "logit_bias": NO_END}
    whole = choice_of(client, prompt, max_tokens=sum(pieces), **options)
    first = choice_of(client, prompt, max_tokens=pieces[0], **options)
    text, state = first["text"], first["state"]
    for length in pieces[1:]:
        more = choice_of(client, "", max_tokens=length, state=state, seed=None, **options)
        text, state = text + more["text"], more["state"]
    assert text == whole["text"]


@pytest.mark.parametrize("model", ["adapting", "tiny-lstm"])
def test_a_text_that_was_written_has_the_scores_that_it_was_written_with(
    client: AppClient, model: str
) -> None:
    # A combining mark that was written need not stand alone where it is read.
    options: dict[str, Any] = {"logprobs": 0, "logit_bias": NO_END | {"\u0301": -1000.0}}
    choice = choice_of(client, "abc", model=model, max_tokens=60, **options)
    read = scored(client, "abc" + choice["text"], model=model, tokens=True)["tokens"]
    written = [x["logprob"] for x in choice["logprobs"]]
    assert [x["logprob"] for x in read[3:]] == written


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"seed": 5, "prompt": "abc", "max_tokens": 40, "n": 3}),
    ("/generate", {"seed": 5, "prompt": [LONG + "x", LONG + "y"], "max_tokens": 9, "echo": True}),
    ("/generate", {"seed": 5, "prompt": "b", "max_tokens": 30, "stop": ["a", "e"], "logprobs": 2}),
    ("/generate", {"seed": 5, "prompt": "b", "max_tokens": 30, "pattern": "[a-f]{3,20}"}),
    ("/generate", {"seed": 5, "prompt": "b", "max_tokens": 30, "presence_penalty": 1.0}),
    (
        "/generate",
        {"seed": 5, "prompt": "b", "max_tokens": 30, "frequency_penalty": 0.5, "echo": True},
    ),
    ("/score", {"text": ["abc" * 30, "b", ""], "tokens": True, "top_logprobs": 2}),
    ("/score", {"text": [LONG + "x", LONG + "y"], "context": LONG, "eos": True}),
]


@pytest.mark.parametrize("model", ["adapting", "tiny-lstm"])
def test_answers_beside_each_other_are_the_answers_alone(
    client: AppClient, uncached: AppClient, model: str
) -> None:
    """Adapting or not, whatever the options, and whatever the cache has of the other kind."""
    asked = [
        (path, {"model": model, "adapt": adapt} | body)
        for adapt in (True, False)
        for path, body in BODIES
    ]
    alone = [uncached.ask(path, **body)["results"] for path, body in asked]
    for _ in range(2):  # the second time the cache is full
        for path in ("/generate", "/score"):
            bodies = [body for of_path, body in asked if of_path == path]
            wanted = [x for x, (of_path, _) in zip(alone, asked, strict=True) if of_path == path]
            answers = [response.json()["results"] for response in client.together(path, bodies)]
            assert [*map(_numbers, answers)] == [*map(_numbers, wanted)]


def _numbers(results: Any) -> Any:
    """Without the counts of what was cached, which differ."""
    return [{k: v for k, v in x.items() if k != "cached_tokens"} for x in results]


def test_what_was_read_while_adapting_is_cached_for_itself() -> None:
    with serving() as client:
        for adapt in (False, True):
            read = [
                client.ask("/generate", model="adapting", prompt=LONG, max_tokens=1, adapt=adapt)
                for _ in range(2)
            ]
            cached = [answer["usage"]["cached_tokens"] for answer in read]
            assert cached == [0, len(LONG)]


def test_a_request_that_adapts_holds_few_prefixes() -> None:
    size = MAX_SHARED_BYTES // 4
    engine = engine_of("adapting", adapt_of(VOCAB_SIZE))
    assert engine._reads[True]._most_shared == MAX_SHARED_BYTES // (4 * VOCAB_SIZE)
    engine = engine_of("adapting", adapt_of(size // 8, 1))
    assert engine._reads[True]._most_shared == 8
    assert engine._reads[False]._most_shared is None


@pytest.mark.parametrize("most", [1, 2, 5])
def test_fewer_shared_prefixes_change_no_answer(uncached: AppClient, most: int) -> None:
    prompts = [LONG * i + end for i in range(1, 4) for end in "abc"]
    body = {"model": "adapting", "adapt": True, "prompt": prompts, "seed": 1, "max_tokens": 4}
    wanted = uncached.ask("/generate", **body)
    engine = engine_of("adapting", adapt_of(VOCAB_SIZE), prefix_cache_bytes=0)
    engine._reads[True]._most_shared = most
    with AppClient(create_app(Settings(), [engine])) as client:
        answer = client.ask("/generate", **body)
    assert answer["results"] == wanted["results"]
    assert answer["usage"]["cached_tokens"] <= wanted["usage"]["cached_tokens"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", {"prompt": "a"}), ("/score", {"text": "a"})]
)
def test_a_model_that_cannot_adapt_says_how_to_make_one(
    client: AppClient, path: str, body: dict[str, Any]
) -> None:
    pointer, detail = refusal(client, path, model="plain", adapt=True, **body)
    assert pointer == "/adapt"
    assert "[adapt]" in detail


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", {"prompt": "a"}), ("/score", {"text": "a"})]
)
@pytest.mark.parametrize("adapt", [False, True])
def test_a_state_of_one_kind_is_refused_by_the_other(
    client: AppClient, path: str, body: dict[str, Any], adapt: bool
) -> None:
    body = {"model": "adapting"} | body
    state = scored(client, "abc", adapt=adapt, return_state=True)["state"]
    pointer, detail = refusal(client, path, state=state, adapt=not adapt, **body)
    made, send = ("with", "send it") if adapt else ("without", "leave adapt out")
    assert pointer == "/state"
    assert detail == f"the state was made {made} adapt: true; {send} here, too"


def engine_with_handles(chars: int) -> LanguageModelEngine:
    """One whose handles have about so many characters while it adapts."""
    return engine_of("adapting", adapt_of(chars * 3 // 4 // 4))


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", {"prompt": "a"}), ("/score", {"text": "a"})]
)
def test_a_handle_that_would_be_too_large_says_by_how_much(path: str, body: dict[str, Any]) -> None:
    engine = engine_with_handles(MAX_ADAPTED_CHARS + 1000)
    with AppClient(create_app(Settings(), [engine])) as client:
        pointer, detail = refusal(client, path, adapt=True, return_state=True, **body)
        assert client.post(path, json={"return_state": True} | body).status_code == 200
    chars = engine._model.seals[True].handle_chars
    assert pointer == "/return_state"
    assert f"has {chars} characters, {chars - MAX_ADAPTED_CHARS} more" in detail


def test_states_of_rows_that_adapt_are_bounded() -> None:
    floats = MAX_ADAPT_BYTES // 4
    assert adapt_of(floats).size_bytes == MAX_ADAPT_BYTES
    with pytest.raises(ValueError, match="a lower rank"):
        adapt_of(floats + 1)
