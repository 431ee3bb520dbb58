"""States over HTTP: `/generate` and `/score` go on from one as if they had never stopped."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from service.app import create_app
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import AppClient, FakeSession, eventually
from tests.service.conftest import CELLS, SETTINGS
from tests.service.events import parsed

EOS = "\ue002"
NO_END = {EOS: -1000.0}
STATES = [
    {"name": "hash", "dtype": "float32", "shape": [1]},
    {"name": "count", "dtype": "float32", "shape": [2, 2]},
]
KEY = "a key of enough characters"

# Without the combining mark: a text in two parts is normalized in two parts.
texts = st.text(ALPHABET.replace("\u0301", ""), max_size=30)
models = st.sampled_from([f"tiny-{cell}" for cell in CELLS])


def choice_of(client: AppClient, **body: Any) -> Any:
    """The one choice of an answer."""
    (result,) = client.ask("/generate", **body)["results"]
    (choice,) = result["choices"]
    return choice


def scored(client: AppClient, **body: Any) -> Any:
    (result,) = client.ask("/score", **body)["results"]
    return result


# --- generate -------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    model=models,
    prompt=texts,
    pieces=st.lists(st.integers(0, 12) | st.integers(120, 140), min_size=2, max_size=4),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.8, 3.0]),
            "top_p": st.sampled_from([0.9, 1.0]),
            "logprobs": st.none() | st.integers(0, 2),
        }
    ),
    seed=st.integers(0, 2**63 - 1),
    stream=st.booleans(),
)
def test_pieces_are_what_one_call_gives(  # noqa: PLR0917
    client: AppClient,
    model: str,
    prompt: str,
    pieces: list[int],
    options: dict[str, Any],
    seed: int,
    stream: bool,
) -> None:
    body = {"model": model, "logit_bias": NO_END, **options}
    begin: dict[str, Any] = {"prompt": prompt, "seed": seed}
    whole = choice_of(client, **body, **begin, max_tokens=sum(pieces), return_state=True)
    text, state = "", None
    told: list[Any] = []
    for length in pieces:
        asked = {**body, **begin, "max_tokens": length, "return_state": True}
        choice = choice_of(client, **asked)
        state = end_of(client, **asked)["choices"][0]["state"] if stream else choice["state"]
        text += choice["text"]
        told += choice["logprobs"] or []
        assert choice["seed"] == seed
        begin = {"state": state}
    assert text == whole["text"]
    assert told == (whole["logprobs"] or [])
    assert unsigned(state) == unsigned(whole["state"])


def end_of(client: AppClient, **body: Any) -> Any:
    """Data of the last event."""
    answer = client.post("/generate", json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    done = parsed(answer.content)[-1]
    assert done.name == "done"
    return json.loads(done.data)


def unsigned(state: Any) -> bytes:
    """A state without when it was made, and without what is signed of that."""
    assert isinstance(state, str)
    raw = base64.urlsafe_b64decode(state + "=" * (-len(state) % 4))
    return raw[:33] + raw[41:-32]


@settings(max_examples=25, deadline=None)
@given(model=models, first=texts, second=texts, n=st.integers(1, 3), echo=st.booleans())
def test_a_prompt_after_a_state_is_one_prompt(  # noqa: PLR0917
    client: AppClient, model: str, first: str, second: str, n: int, echo: bool
) -> None:
    body = {"model": model, "max_tokens": 6, "n": n, "seed": 3, "echo": echo, "logprobs": 2}
    prompts = [second, "", second + "ab"]
    whole = client.ask("/generate", **body, prompt=[first + x for x in prompts])
    state = scored(client, model=model, text=first, return_state=True)["state"]
    answer = client.ask("/generate", **body, prompt=prompts, state=state)
    for one, other in zip(whole["results"], answer["results"], strict=True):
        for long, short in zip(one["choices"], other["choices"], strict=True):
            echoed = len(first) if echo else 0
            assert short["text"] == long["text"][echoed:]
            assert short["logprobs"] == long["logprobs"][echoed:]
            assert short["finish_reason"] == long["finish_reason"]
    assert answer["usage"]["prompt_tokens"] == 2 * len(second) + 2
    streamed = end_of(client, **body, prompt=prompts, state=state)
    assert streamed["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    places = [(x["index"], x["choice"]) for x in streamed["choices"]]
    assert places == [(i, k) for i in range(3) for k in range(n)]


def test_every_choice_goes_on_with_its_own_noise(client: AppClient, model: str) -> None:
    body = {"model": model, "logit_bias": NO_END, "return_state": True}
    ask = {**body, "prompt": "ab", "n": 3, "seed": 8}
    long = client.ask("/generate", **ask, max_tokens=20)["results"][0]["choices"]
    short = client.ask("/generate", **ask, max_tokens=9)["results"][0]["choices"]
    assert len({x["text"] for x in long}) == 3
    for one, other in zip(long, short, strict=True):
        rest = choice_of(client, **body, state=other["state"], max_tokens=11)
        assert other["text"] + rest["text"] == one["text"]
        assert unsigned(rest["state"]) == unsigned(one["state"])
        # More choices: the first is the same, the others begin there with other noise.
        more = client.ask("/generate", **body, state=other["state"], max_tokens=11, n=3)
        first, *others = more["results"][0]["choices"]
        assert first["text"] == rest["text"]
        assert len({first["text"], *(x["text"] for x in others)}) == 3
        # And each of those goes on as itself, too.
        piece = client.ask("/generate", **body, state=other["state"], max_tokens=4, n=3)
        for whole, part in zip(others, piece["results"][0]["choices"][1:], strict=True):
            end = choice_of(client, **body, state=part["state"], max_tokens=7)
            assert part["text"] + end["text"] == whole["text"]


def test_a_seed_begins_fresh_noise(client: AppClient, model: str) -> None:
    # Without the combining mark here, too: a prompt is normalized, what is generated is not.
    biases = {**NO_END, "\u0301": -1000.0}
    body = {"model": model, "max_tokens": 12, "temperature": 2.0, "logit_bias": biases}
    made = choice_of(client, **body, prompt="ab", seed=8, return_state=True)
    state = made["state"]
    again = [choice_of(client, **body, state=state, seed=seed)["text"] for seed in (1, 2, 1)]
    assert again[0] == again[2] != again[1]
    # What was generated is a text like any other: only the noise of its own choice is its own.
    plain = choice_of(client, **body, prompt="ab" + made["text"], seed=1)
    assert plain["text"] == again[0]


def test_no_tokens_leave_the_state_of_the_prompt(client: AppClient, model: str) -> None:
    body = {"model": model, "prompt": "ab", "seed": 8, "n": 2, "return_state": True}
    plain = client.ask("/generate", **body, max_tokens=0)["results"][0]["choices"]
    streamed = end_of(client, **body, max_tokens=0)["choices"]
    read = scored(client, model=model, text="ab", return_state=True)["state"]
    for one, other in zip(plain, streamed, strict=True):
        assert unsigned(one["state"]) == unsigned(other["state"])
        # A score's is the same but for the noise, of which it has none.
        assert unsigned(one["state"])[66:] == unsigned(read)[66:]
    long = client.ask("/generate", **body, max_tokens=9)["results"][0]["choices"]
    for one, whole in zip(plain, long, strict=True):
        rest = choice_of(client, model=model, state=one["state"], max_tokens=9)
        assert rest["text"] == whole["text"]


def test_nothing_follows_the_end_of_a_text(client: AppClient, model: str) -> None:
    ends = {"model": model, "prompt": "ab", "logit_bias": {EOS: 1000.0}, "return_state": True}
    choice = choice_of(client, **ends, max_tokens=5)
    assert (choice["text"], choice["finish_reason"], choice["state"]) == ("", "stop", None)
    assert end_of(client, **ends, max_tokens=5)["choices"][0]["state"] is None


def test_a_state_stands_after_the_stop_string_that_ended_the_text(
    client: AppClient, model: str
) -> None:
    body = {"model": model, "seed": 3, "logit_bias": NO_END, "temperature": 3.0}
    whole = choice_of(client, **body, prompt="a", max_tokens=40)["text"]
    stop = whole[10:13]
    cut = choice_of(client, **body, prompt="a", max_tokens=40, stop=stop, return_state=True)
    assert cut["text"] == whole[: whole.index(stop)]
    del body["seed"]
    done = len(cut["text"]) + len(stop)
    rest = choice_of(client, **body, state=cut["state"], max_tokens=40 - done)
    assert cut["text"] + stop + rest["text"] == whole


def test_nobody_gets_a_state_unasked(client: AppClient, model: str) -> None:
    assert choice_of(client, model=model, prompt="a", max_tokens=3)["state"] is None
    assert scored(client, model=model, text="a")["state"] is None
    events = end_of(client, model=model, prompt="a", max_tokens=3)
    assert events["choices"][0]["state"] is None


# --- score ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    model=models,
    first=texts,
    rest=st.lists(texts, min_size=1, max_size=5),
    eos=st.booleans(),
    context=texts,
)
def test_a_score_after_a_state_is_the_rest_of_the_score(  # noqa: PLR0917
    client: AppClient, model: str, first: str, rest: list[str], eos: bool, context: str
) -> None:
    body = {"model": model, "tokens": True, "top_logprobs": 2}
    begin = scored(client, **body, text=first, context=context, return_state=True)
    whole = client.ask("/score", **body, text=[first + x for x in rest], context=context, eos=eos)
    answer = client.ask("/score", **body, text=rest, state=begin["state"], eos=eos)
    for text, long, short in zip(rest, whole["results"], answer["results"], strict=True):
        assert begin["tokens"] + short["tokens"] == long["tokens"]
        assert short["chars"] == len(text)
        assert (short["bos"], short["eos"]) == (False, eos)
        terms = [x["logprob"] for x in short["tokens"]]
        total = 0.0
        for term in terms:  # one by one, in order
            total += term
        assert short["logprob"] == total
    assert answer["usage"]["prompt_tokens"] == sum(map(len, rest))
    plain = client.ask("/score", model=model, text=rest, state=begin["state"], eos=eos)
    for one, other in zip(plain["results"], answer["results"], strict=True):
        assert {**one, "tokens": other["tokens"]} == other


@settings(max_examples=25, deadline=None)
@given(model=models, parts=st.lists(texts, min_size=1, max_size=5))
def test_a_state_does_not_tell_how_its_text_was_read(
    client: AppClient, model: str, parts: list[str]
) -> None:
    whole = scored(client, model=model, text="".join(parts), return_state=True)["state"]
    state = None
    for text in parts:
        body = {"model": model, "text": text, "return_state": True, "state": state}
        state = scored(client, **body)["state"]
    assert unsigned(state) == unsigned(whole)


def test_continuations_are_ranked_in_one_batched_call() -> None:
    session = FakeSession(vocab_size=4 + len(ALPHABET))
    with serving(session) as client:
        state = scored(client, text="the white ", return_state=True)["state"]
        session.runs.clear()
        answer = client.ask("/score", state=state, text=["rabbit", "radish", "rabble"])
        assert [(run.kind, run.rows) for run in session.runs] == [("pick", 3)]
        alone = [scored(client, text="the white " + x) for x in ("rabbit", "radish", "rabble")]
        start = scored(client, text="the white ")["logprob"]
        for one, other in zip(answer["results"], alone, strict=True):
            assert one["logprob"] == pytest.approx(other["logprob"] - start, abs=1e-9)
        session.runs.clear()
        letters = client.ask("/score", state=state, text=["r", "a", ""])
        assert session.runs == []  # the state says what comes next
        assert letters["results"][0]["logprob"] != letters["results"][1]["logprob"]
        assert letters["results"][2]["logprob"] == 0.0


def test_what_continuations_begin_with_is_read_once() -> None:
    session = FakeSession(vocab_size=4 + len(ALPHABET))
    shared = "he took a watch out of its "
    with serving(session) as client:
        state = scored(client, text="the rabbit: ", return_state=True)["state"]
        ends = [shared + x for x in ("pocket", "waistcoat", "pocket, and looked")]
        session.runs.clear()
        answer = client.ask("/score", state=state, text=ends, tokens=True)
        assert max(run.time for run in session.runs[1:]) < len(shared)
        # A prefix ends where what is counted after it differs: a character before its end.
        assert answer["usage"]["cached_tokens"] == 2 * (len(shared) - 1)
    with serving(FakeSession(vocab_size=4 + len(ALPHABET)), prefix_cache_bytes=0) as client:
        alone = [scored(client, state=state, text=x, tokens=True) for x in ends]
    assert answer["results"] == alone


def test_the_prefix_cache_does_not_take_a_text_after_a_state_for_one_from_its_beginning() -> None:
    text = "the queen of hearts she made some tarts"
    with serving(FakeSession(vocab_size=4 + len(ALPHABET))) as client:
        # Known without bos, too.
        client.ask("/score", text="x", context=text, bos=False)
        known = {"prompt": text, "max_tokens": 8, "seed": 1, "logprobs": 0}
        before = choice_of(client, **known)
        state = scored(client, text="alice ", return_state=True)["state"]
        after = choice_of(client, **known, state=state)
        assert after["logprobs"] != before["logprobs"]
        assert after == choice_of(client, **known, state=state)
        assert before == choice_of(client, **known)
        other = scored(client, text="A", return_state=True)["state"]
        assert choice_of(client, **known, state=other) not in (before, after)
    with serving(FakeSession(vocab_size=4 + len(ALPHABET)), prefix_cache_bytes=0) as client:
        assert choice_of(client, **known, state=state) == after


@pytest.mark.parametrize(
    ("body", "stands"),
    [
        ({"text": ""}, True),
        ({"text": "", "context": "abc"}, True),
        ({"text": "a", "bos": False}, True),
        ({"text": "", "bos": False}, False),
        ({"text": "abc", "eos": True}, False),
    ],
)
def test_there_is_a_state_wherever_something_was_read_and_can_follow(
    client: AppClient, model: str, body: dict[str, Any], stands: bool
) -> None:
    result = scored(client, model=model, **body, return_state=True, tokens=True)
    plain = scored(client, model=model, **body, tokens=True)
    assert result == {**plain, "state": result["state"]}
    assert (result["state"] is not None) == stands


# --- what is refused ------------------------------------------------------------------------------


def engine_of(session: FakeSession, **settings: Any) -> LanguageModelEngine:
    bundle = in_memory(*plain_files("fake", ALPHABET, states=STATES))
    return LanguageModelEngine(bundle, session, Settings(**settings), precision="fp32")


def serving(session: FakeSession, **settings: Any) -> AppClient:
    settings = {"state_key": KEY} | settings
    return AppClient(create_app(Settings(**settings), [engine_of(session, **settings)]))


@pytest.fixture(scope="module")
def fake() -> Iterator[AppClient]:
    with serving(FakeSession(vocab_size=4 + len(ALPHABET)), max_states=4) as running:
        yield running


def mistake(response: httpx.Response) -> tuple[str, str]:
    """Where the one mistake is, and what is said of it."""
    assert response.status_code == 422, response.text
    ((found),) = response.json()["errors"]
    return found["pointer"], found["detail"]


@pytest.mark.parametrize(
    ("path", "change", "pointer"),
    [
        ("/generate", {"presence_penalty": 0.1}, "/presence_penalty"),
        ("/generate", {"frequency_penalty": -0.1}, "/frequency_penalty"),
        ("/generate", {"state": 1}, "/state"),
        ("/generate", {"return_state": "true"}, "/return_state"),
        ("/generate", {"n": 5, "return_state": True}, "/return_state"),
        ("/generate", {"prompt": ["a"] * 5, "return_state": True}, "/return_state"),
        ("/score", {"text": ["a"] * 5, "return_state": True}, "/return_state"),
        ("/score", {"text": "a", "context": "b"}, "/context"),
        ("/score", {"text": "a", "context": ["b"]}, "/context"),
        ("/score", {"text": "a", "bos": True}, "/bos"),
        ("/score", {"text": "a", "state": ["a"]}, "/state"),
    ],
)
def test_what_does_not_go_with_a_state_is_refused(
    fake: AppClient, path: str, change: dict[str, Any], pointer: str
) -> None:
    state = scored(fake, text="abc", return_state=True)["state"]
    response = fake.post(path, json={"state": state} | change)
    assert mistake(response)[0] == pointer
    assert state not in response.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/score"])
def test_forged_foreign_and_stale_states_are_refused(
    models_dir: Path, path: str, stream: bool
) -> None:
    made: dict[str, str] = {}
    extra = {"stream": True} if stream and path == "/generate" else {}
    text = {"text": "abc"} if path == "/score" else {}
    chosen: dict[str, Any] = {"models_dir": models_dir, "state_key": KEY, "engine_threads": 1}
    for precision in ("fp32", "int8"):
        with AppClient(create_app(Settings(**chosen, precision=precision))) as client:
            made[precision] = scored(client, model="tiny-gru", text="ab", return_state=True)[
                "state"
            ]
    lstm_is_longer = "a state of tiny-gru has"
    with AppClient(create_app(Settings(**chosen, precision="int8"))) as client:
        state = made["int8"]
        longer = scored(client, model="tiny-lstm", text="ab", return_state=True)["state"]
        rnn = scored(client, model="tiny-rnn", text="ab", return_state=True)["state"]
        forged = state[:100] + ("A" if state[100] != "A" else "B") + state[101:]
        expected = {
            state[:-1]: "not a valid state",
            forged: "not a valid state",
            "": "not a valid state",
            "ünlesbar": "not a valid state",
            made["fp32"]: "the state was made in another precision; tiny-gru is served in int8",
            rnn: "the state does not belong to tiny-gru as it is served here",
            longer: lstm_is_longer,
        }
        for sent, words in expected.items():
            body = {"model": "tiny-gru", "state": sent, **text, **extra}
            response = client.post(path, json=body)
            pointer, detail = mistake(response)
            assert pointer == "/state"
            assert detail.startswith(words)
            assert not sent or sent not in response.text
        assert client.post(path, json={"model": "tiny-gru", "state": state, **text}).is_success
    others: list[tuple[dict[str, Any], str]] = [
        ({"state_key": "another key of enough length"}, "not a valid state"),
        ({"state_max_age_s": 1e-6}, "the state is too old"),
    ]
    for change, words in others:
        settings = Settings(**(chosen | {"precision": "int8"} | change))
        with AppClient(create_app(settings)) as client:
            response = client.post(path, json={"model": "tiny-gru", "state": state, **text})
            assert mistake(response)[1].startswith(words)


def test_without_a_key_one_is_drawn_for_all_models_of_a_process(models_dir: Path) -> None:
    chosen = Settings(models_dir=models_dir, engine_threads=1)
    with AppClient(create_app(chosen)) as client:
        state = scored(client, model="tiny-gru", text="ab", return_state=True)["state"]
        rnn = scored(client, model="tiny-rnn", text="ab", return_state=True)["state"]
        assert scored(client, model="tiny-gru", text="c", state=state)["chars"] == 1
        response = client.post("/score", json={"model": "tiny-gru", "text": "c", "state": rnn})
        assert mistake(response)[1].startswith("the state does not belong to tiny-gru")
    with AppClient(create_app(chosen)) as client:
        response = client.post("/score", json={"model": "tiny-gru", "text": "c", "state": state})
        assert mistake(response)[1].startswith("not a valid state")


def test_the_key_is_nowhere_to_be_seen() -> None:
    chosen = Settings(state_key=SecretStr(KEY))
    assert KEY not in repr(chosen) + str(chosen) + chosen.model_dump_json()
    assert chosen.signing_key() == chosen.state_key
    drawn = [Settings().signing_key().get_secret_value() for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert min(map(len, drawn)) >= 32


def test_going_on_at_the_same_time_is_going_on_alone(client: AppClient, model: str) -> None:
    body = {"model": model, "max_tokens": 30, "logit_bias": NO_END}
    states = [
        choice_of(client, **body, prompt="ab", seed=seed, return_state=True)["state"]
        for seed in range(6)
    ]
    alone = [choice_of(client, **body, state=state) for state in states]
    together = client.together("/generate", [{**body, "state": state} for state in states])
    assert [x.json()["results"][0]["choices"][0] for x in together] == alone


def test_a_client_that_goes_in_a_last_read_frees_its_row(client: AppClient) -> None:
    async def leave(http: httpx.AsyncClient) -> None:
        body = {"model": "tiny-gru", "prompt": "a", "max_tokens": 2, "return_state": True}
        for turns in range(40):
            task = asyncio.create_task(http.post("/generate", json=body))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    client.run(leave)
    engines = client.app.state.registry.engines.values()
    schedulers = [scheduler for engine in engines for scheduler in engine.workers.schedulers]
    eventually(lambda: all(scheduler.free for scheduler in schedulers))


assert set(SETTINGS) == {"int8", "fp32"}  # `client` serves both
