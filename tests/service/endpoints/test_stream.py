"""`POST /generate` with `stream: true`: the events say what the plain answer says."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import ALPHABET
from tests.fakes import AppClient
from tests.service.events import Event, parsed

EOS = "\ue002"


def events(client: AppClient, **body: Any) -> list[Event]:
    answer = client.post("/generate", json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    return parsed(answer.content)


def texts(tokens: list[Any]) -> dict[tuple[int, int], str]:
    """Each choice's text, from its events."""
    found: dict[tuple[int, int], str] = {}
    for token in tokens:
        key = (token["index"], token["choice"])
        assert token["offset"] == len(found.get(key, ""))
        found[key] = found.get(key, "") + token["text"]
    return found


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.text(ALPHABET, max_size=8), min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(0, 40),
            "n": st.integers(1, 3),
            "seed": st.integers(0, 1000),
            "echo": st.booleans(),
            "logprobs": st.none() | st.integers(0, 3),
            "stop": st.lists(st.text(ALPHABET[:4], min_size=1, max_size=3), max_size=3),
            "temperature": st.sampled_from([0.0, 0.7, 3.0]),
        }
    ),
)
def test_the_events_say_what_the_plain_answer_says(
    client: AppClient, prompts: list[str], options: dict[str, Any]
) -> None:
    body = {"model": "tiny-lstm", "prompt": prompts, **options}
    plain = client.ask("/generate", **body)
    *told, done = events(client, **body)
    tokens = [json.loads(event.data) for event in told]
    assert {event.name for event in told} <= {"token"}
    assert done.name == "done"
    end = json.loads(done.data)
    assert {k: end["usage"][k] for k in ("prompt_tokens", "completion_tokens")} == {
        k: plain["usage"][k] for k in ("prompt_tokens", "completion_tokens")
    }
    ends = {(x["index"], x["choice"]): x for x in end["choices"]}
    found = texts(tokens)
    for i, result in enumerate(plain["results"]):
        for k, choice in enumerate(result["choices"]):
            own = [x for x in tokens if (x["index"], x["choice"]) == (i, k)]
            assert found.get((i, k), "") == choice["text"]
            assert ends[i, k]["finish_reason"] == choice["finish_reason"]
            assert ends[i, k]["seed"] == choice["seed"]
            if choice["logprobs"] is not None:
                kept = [{key: x[key] for key in ("token", "logprob", "top")} for x in own]
                assert kept == choice["logprobs"]


def test_what_could_become_a_stop_string_is_held_back(client: AppClient, model: str) -> None:
    plain = client.ask("/generate", model=model, prompt="a", max_tokens=60, seed=3, temperature=3.0)
    text = plain["results"][0]["choices"][0]["text"]
    assert len(text) > 12
    stop = text[6:10]
    tokens = [
        json.loads(event.data)
        for event in events(
            client, model=model, prompt="a", max_tokens=60, seed=3, temperature=3.0, stop=stop
        )[:-1]
    ]
    whole = "".join(token["text"] for token in tokens)
    assert whole == text[: text.index(stop)]
    # The tokens of the stop string are told, with their probabilities, but have no text.
    assert [token["token"] for token in tokens if not token["text"]] == list(stop)


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (422, {"max_tokens": -1}),
        (422, {"max_tokens": 10**7}),
        (404, {"model": "nothing"}),
        (422, {"stop": [""]}),
    ],
)
def test_mistakes_are_problems_and_not_streams(
    client: AppClient, model: str, status: int, change: dict[str, Any]
) -> None:
    body = {"model": model, "prompt": "a", "stream": True} | change
    answer = client.post("/generate", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
