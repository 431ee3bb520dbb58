"""`POST /generate`: what is continued, how it ends, and that a seed is a text."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import ALPHABET
from tests.fakes import AppClient
from tests.service.events import parsed

EOS = "\ue002"
AWKWARD = "one\r\ntwo\r \x00\x85\u2028 cafe\u0301 7\u05d0\u202e\U0010ffff\ue000\ue002 "


def generate(client: AppClient, model: str, prompt: str | list[str], **options: Any) -> Any:
    return client.ask("/generate", model=model, prompt=prompt, **options)


def choices(client: AppClient, model: str, prompt: str, **options: Any) -> Any:
    (result,) = generate(client, model, prompt, **options)["results"]
    return result["choices"]


def one(client: AppClient, model: str, prompt: str, **options: Any) -> Any:
    (choice,) = choices(client, model, prompt, **options)
    return choice


def long_text(client: AppClient, model: str, max_tokens: int) -> Any:
    """A choice that its length ended."""
    for seed in range(200):
        choice = one(client, model, "a", max_tokens=max_tokens, seed=seed)
        if choice["finish_reason"] == "length":
            return choice
    raise AssertionError("every seed ends early")


def test_a_text_of_the_given_length_is_written(client: AppClient, model: str) -> None:
    choice = long_text(client, model, 20)
    assert len(choice["text"]) == 20
    assert set(choice["text"]) <= set(ALPHABET)
    assert choice["logprobs"] is None


def test_eos_ends_a_text_and_is_counted_but_not_shown(client: AppClient, model: str) -> None:
    answers = [
        generate(client, model, "a", max_tokens=200, seed=seed, logprobs=0) for seed in range(20)
    ]
    ended = 0
    for answer in answers:
        choice = answer["results"][0]["choices"][0]
        tokens = [x["token"] for x in choice["logprobs"]]
        assert answer["usage"]["completion_tokens"] == len(tokens)
        if choice["finish_reason"] == "stop":
            ended += 1
            assert tokens[-1] == EOS
            assert "".join(tokens[:-1]) == choice["text"]
        else:
            assert "".join(tokens) == choice["text"]
        assert EOS not in choice["text"]
    assert ended


def test_no_tokens_is_the_empty_text(client: AppClient, model: str) -> None:
    answer = generate(client, model, ["abc", ""], max_tokens=0, n=2, seed=5, logprobs=3)
    empty = {
        "text": "",
        "finish_reason": "length",
        "seed": 5,
        "matched": None,
        "logprobs": [],
        "state": None,
    }
    assert answer["results"] == [{"choices": [empty, empty], "unknown": [], "unknown_chars": 0}] * 2
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 0)


def test_the_same_seed_is_the_same_text_alone_and_in_a_list_of_256(
    client: AppClient, model: str
) -> None:
    prompts = [("the queen of hearts \U0001f407\r\n" * 4)[i % 5 : i % 60] for i in range(256)]
    options: dict[str, Any] = {"max_tokens": 12, "seed": 77, "temperature": 0.9}
    listed = generate(client, model, prompts, **options)["results"]
    for i in range(0, 256, 19):
        assert listed[i]["choices"] == choices(client, model, prompts[i], **options)
    assert len({x["choices"][0]["text"] for x in listed}) > 30


def test_a_seed_that_is_drawn_is_told_and_gives_the_text_again(
    client: AppClient, model: str
) -> None:
    first, second = (one(client, model, "the ", max_tokens=30) for _ in range(2))
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] < 2**53  # survives readers that hold numbers as doubles
    assert one(client, model, "the ", max_tokens=30, seed=first["seed"]) == first


def test_choices_differ_and_the_first_does_not_depend_on_their_number(
    client: AppClient, model: str
) -> None:
    several = choices(client, model, "the ", n=5, max_tokens=25, seed=3)
    assert len({x["text"] for x in several}) == 5
    assert {x["seed"] for x in several} == {3}
    assert choices(client, model, "the ", n=2, max_tokens=25, seed=3) == several[:2]


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_at_both_ends_are_taken(client: AppClient, model: str, seed: int) -> None:
    assert one(client, model, "a", seed=seed, max_tokens=3)["seed"] == seed


def test_temperature_zero_is_the_same_for_every_seed_and_every_choice(
    client: AppClient, model: str
) -> None:
    texts = {
        choice["text"]
        for seed in (1, 2)
        for choice in choices(client, model, "the ", n=3, seed=seed, temperature=0, max_tokens=20)
    }
    assert len(texts) == 1
    greedy = one(client, model, "the ", seed=9, top_k=1, temperature=7.0, max_tokens=20)
    assert {greedy["text"]} == texts


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-9},
        {"temperature": 1e9},
        {"temperature": 5e-324},
        {"top_p": 0},
        {"top_p": 1},
        {"min_p": 1},
        {"top_k": 10**9},
        {"top_k": 1},
        {"temperature": 1e9, "top_k": 2, "top_p": 1e-300, "min_p": 1e-300},
    ],
)
def test_extremes_give_a_text(client: AppClient, model: str, options: dict[str, float]) -> None:
    choice = one(client, model, "the ", max_tokens=10, seed=1, logprobs=1, **options)
    assert all(math.isfinite(x["logprob"]) for x in choice["logprobs"])
    assert one(client, model, "the ", max_tokens=10, seed=1, logprobs=1, **options) == choice


def test_a_bias_decides_what_is_written(client: AppClient, model: str) -> None:
    """However the row samples, and U+E002 ends the text."""
    bias = {"q": 1000.0, EOS: -1000.0}
    for options in ({}, {"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-9}):
        choice = one(client, model, "the ", max_tokens=7, seed=1, logit_bias=bias, **options)
        assert (choice["text"], choice["finish_reason"]) == ("q" * 7, "length")
    ended = one(client, model, "the ", max_tokens=7, seed=1, logit_bias={EOS: 1000.0})
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")


def test_a_penalty_keeps_a_choice_from_what_it_has_and_not_from_its_prompt(
    client: AppClient, model: str
) -> None:
    options = {"max_tokens": 30, "seed": 4, "logit_bias": {EOS: -1000.0}, "n": 3}
    for penalty in ("presence_penalty", "frequency_penalty"):
        for choice in choices(client, model, "the ", **options, **{penalty: 100.0}):
            assert len(set(choice["text"])) == 30
        for choice in choices(client, model, "the ", **options, **{penalty: -100.0}):
            assert len(set(choice["text"])) == 1
    # In the prompt and not in the choice: a penalty does not know of it.
    first = {"max_tokens": 1, "seed": 4, "logit_bias": {"q": 50.0}}
    assert one(client, model, "qqqq", **first, presence_penalty=100.0)["text"] == "q"


def test_the_logprobs_are_the_models_own_before_bias_and_penalties(
    client: AppClient, model: str
) -> None:
    choice = one(client, model, "the ", max_tokens=5, logprobs=2, logit_bias={"q": 1000.0})
    assert choice["text"] == "qqqqq"
    (scored,) = client.ask("/score", model=model, text="qqqqq", context="the ", tokens=True)[
        "results"
    ]
    assert [x["logprob"] for x in choice["logprobs"]] == [x["logprob"] for x in scored["tokens"]]


def test_top_k_beyond_the_vocabulary_cuts_nothing(client: AppClient, model: str) -> None:
    plain = one(client, model, "the ", max_tokens=40, seed=1, top_p=1.0)
    cut = [
        one(client, model, "the ", max_tokens=40, seed=1, top_k=10**9),
        one(client, model, "the ", max_tokens=40, seed=1, top_k=4 + len(ALPHABET)),
    ]
    assert cut[0] == cut[1]
    assert cut[0]["seed"] == plain["seed"]


def test_an_echo_is_byte_for_byte_what_came(client: AppClient, model: str) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "seed": 2, "n": 2}
    plain = choices(client, model, AWKWARD, **options)
    echoed = choices(client, model, AWKWARD, echo=True, **options)
    assert [x["text"] for x in echoed] == [AWKWARD + x["text"] for x in plain]
    assert choices(client, model, "", echo=True, **options) == choices(client, model, "", **options)


def test_line_ends_in_a_prompt_are_read_as_one(client: AppClient, model: str) -> None:
    texts = {one(client, model, f"a{end}b", seed=1)["text"] for end in ("\n", "\r\n", "\r")}
    assert len(texts) == 1


def test_the_logprobs_are_those_that_score_gives(client: AppClient, model: str) -> None:
    prompt = "the white "
    choice = long_text(client, model, 15)
    choice = one(
        client, model, prompt, max_tokens=15, seed=choice["seed"], logprobs=4, temperature=2.5
    )
    body = {"context": prompt, "text": choice["text"], "tokens": True, "top_logprobs": 4}
    if choice["finish_reason"] == "stop":
        body["eos"] = True
    scored = client.ask("/score", model=model, **body)["results"][0]
    shown = [{x: token[x] for x in ("token", "logprob", "top")} for token in scored["tokens"]]
    assert choice["logprobs"] == shown
    assert all(len(token["top"]) == 4 for token in choice["logprobs"])


def test_an_echo_with_logprobs_tells_of_the_prompt_too(client: AppClient, model: str) -> None:
    prompt = "caf\u00e9\r\n7"
    choice = one(client, model, prompt, max_tokens=5, seed=4, logprobs=2, echo=True)
    plain = one(client, model, prompt, max_tokens=5, seed=4, logprobs=2)
    scored = client.ask("/score", model=model, text=prompt, tokens=True, top_logprobs=2)
    told = scored["results"][0]["tokens"]
    before = [{x: token[x] for x in ("token", "logprob", "top")} for token in told]
    assert choice["logprobs"] == before + plain["logprobs"]
    assert "".join(x["token"] for x in choice["logprobs"][:6]) == "caf\u00e9\n\ue003"


def test_no_alternatives_is_not_no_logprobs(client: AppClient, model: str) -> None:
    choice = one(client, model, "a", max_tokens=3, seed=1, logprobs=0)
    assert [token["top"] for token in choice["logprobs"]] == [[]] * len(choice["logprobs"])
    assert choice["logprobs"]


def test_a_stop_string_is_cut_off_and_counted(client: AppClient, model: str) -> None:
    whole = long_text(client, model, 30)
    stop = whole["text"][10:13]
    end = whole["text"].index(stop)
    answer = generate(client, model, "a", max_tokens=30, seed=whole["seed"], stop=stop, logprobs=0)
    choice = answer["results"][0]["choices"][0]
    assert choice["text"] == whole["text"][:end]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == end + 3
    assert "".join(x["token"] for x in choice["logprobs"]) == whole["text"][: end + 3]


def test_the_first_stop_string_that_ends_wins(client: AppClient, model: str) -> None:
    whole = long_text(client, model, 30)
    text = whole["text"]
    stops = [text[20:22], text[8:11], "zzzz", "\u05d0"]
    ends = [text.index(x) + len(x) for x in stops[:2]]
    first = stops[ends.index(min(ends))]
    choice = one(client, model, "a", max_tokens=30, seed=whole["seed"], stop=stops)
    assert choice["text"] == text[: text.index(first)]


def test_a_stop_string_in_the_prompt_ends_nothing(client: AppClient, model: str) -> None:
    whole = long_text(client, model, 5)
    stop = "a" + whole["text"][0]
    expected = whole["text"].split(stop)[0]
    choice = one(client, model, "a", max_tokens=5, seed=whole["seed"], stop=stop)
    assert choice["text"] == expected


def test_a_stop_string_that_the_model_cannot_write_ends_nothing(
    client: AppClient, model: str
) -> None:
    whole = long_text(client, model, 20)
    stops = ["\u05d0", "7", "\ue002", "a\ue003"]
    choice = one(client, model, "a", max_tokens=20, seed=whole["seed"], stop=stops)
    assert choice == whole


def test_a_stop_string_is_normalized_as_texts_are(client: AppClient, model: str) -> None:
    for seed in range(300):
        whole = one(client, model, "a", max_tokens=40, seed=seed)["text"]
        if "\n" in whole:
            break
    choice = one(client, model, "a", max_tokens=40, seed=seed, stop="\r\n")
    assert choice["text"] == whole[: whole.index("\n")]
    assert choice["finish_reason"] == "stop"


def test_usage_counts_prompts_once_and_choices_all(client: AppClient, model: str) -> None:
    answer = generate(client, model, ["abc", "", "a\r\nb"], n=3, max_tokens=6, seed=1, logprobs=0)
    written = [len(x["logprobs"]) for result in answer["results"] for x in result["choices"]]
    assert len(written) == 9
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3 + 0 + 3, sum(written))
    assert 0 <= usage["cached_tokens"] <= usage["prompt_tokens"]


def test_lists_of_prompts_with_choices_of_one_length_are_written_to_their_ends(
    client: AppClient, model: str
) -> None:
    """Choices that end in the same step once ended the request while others were written."""
    prompts = ["a" * length for length in (1, 3, 50, 400)]
    listed = generate(client, model, prompts, n=4, max_tokens=9, seed=8)["results"]
    for prompt, result in zip(prompts, listed, strict=True):
        assert result["choices"] == choices(client, model, prompt, n=4, max_tokens=9, seed=8)


def test_requests_at_the_same_time_are_answered_as_alone(client: AppClient, model: str) -> None:
    bodies = [
        {
            "model": model,
            "prompt": "the queen of hearts "[: i % 20] * (1 + i % 9),
            "max_tokens": 1 + (i * 7) % 40,
            "seed": i,
            "n": 1 + i % 3,
            "temperature": [0.0, 0.5, 1.0, 2.0][i % 4],
            "top_p": [1.0, 0.9, 0.5][i % 3],
            "logprobs": [None, 0, 2][i % 3],
        }
        for i in range(40)
    ]
    together = [response.json()["results"] for response in client.together("/generate", bodies)]
    assert together == [client.post("/generate", json=x).json()["results"] for x in bodies]


def test_the_model_may_be_left_out_only_where_there_is_one(client: AppClient) -> None:
    answer = client.post("/generate", json={"prompt": "a"})
    assert answer.status_code == 422
    (mistake,) = answer.json()["errors"]
    assert mistake["pointer"] == "/model"
    assert "tiny-gru, tiny-lstm, tiny-rnn" in mistake["detail"]


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.text(max_size=30), min_size=1, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.floats(0.0, 1e9),
    n=st.integers(1, 3),
)
def test_any_prompt_is_continued_and_echoed(
    client: AppClient, prompts: list[str], seed: int, temperature: float, n: int
) -> None:
    answer = generate(
        client,
        "tiny-lstm",
        prompts,
        seed=seed,
        temperature=temperature,
        n=n,
        max_tokens=4,
        echo=True,
    )
    for prompt, result in zip(prompts, answer["results"], strict=True):
        assert len(result["choices"]) == n
        for choice in result["choices"]:
            assert choice["text"].startswith(prompt)
            assert set(choice["text"][len(prompt) :]) <= set(ALPHABET)


# --- as training read it, and what was not known --------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
def test_unknown_characters_of_prompts_are_reported(
    client: AppClient, model: str, streams: bool
) -> None:
    body = {"model": model, "prompt": ["\u05d0b\r\n7", "ab"], "max_tokens": 1}
    if streams:
        *_, done = parsed(client.post("/generate", json=body | {"stream": True}).content)
        unknown = json.loads(done.data)["unknown"]
    else:
        unknown = [x["unknown"] for x in client.ask("/generate", **body)["results"]]
    assert unknown == [[0, 3], []]


def test_unknown_characters_of_prompts_can_be_skipped_or_refused(
    client: AppClient, model: str
) -> None:
    options = {"seed": 1, "max_tokens": 20}
    skipped = one(client, model, "\u05d0ab", unknown="skip", **options)
    assert skipped == one(client, model, "ab", **options)
    assert one(client, model, "\u05d0ab", unknown="unk", **options) == one(
        client, model, "\u05d0ab", **options
    )
    body = {"model": model, "prompt": "a\u05d0", "unknown": "error"}
    response = client.post("/generate", json=body)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["pointer"] == "/prompt"
    assert "at positions 1 of" in error["detail"]


def test_a_prompt_that_is_left_out_is_an_empty_one(client: AppClient, model: str) -> None:
    options = {"model": model, "seed": 1, "n": 3, "max_tokens": 20}
    assert client.ask("/generate", **options) == client.ask("/generate", prompt="", **options)


@pytest.mark.parametrize(
    ("composed", "decomposed"),
    [
        ({"pattern": "[\u00e9a]{5}"}, {"pattern": "[e\u0301a]{5}"}),
        ({"choices": ["caf\u00e9", "b\n"]}, {"choices": ["cafe\u0301", "b\r\n"]}),
        ({"allowed_chars": "a\u00e9"}, {"allowed_chars": "ae\u0301"}),
        ({"allowed_chars": ["a", "\u00e9"]}, {"allowed_chars": ["a", "e\u0301"]}),
        ({"logit_bias": {"\u00e9": 5.0}}, {"logit_bias": {"e\u0301": 5.0}}),
        ({"stop": "\u00e9"}, {"stop": "e\u0301"}),
    ],
)
def test_what_is_asked_of_a_text_is_normalized_as_texts_are(
    client: AppClient, model: str, composed: dict[str, Any], decomposed: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"n": 4, "seed": 3, "max_tokens": 20}
    wanted = choices(client, model, "a", **options, **composed)
    assert choices(client, model, "a", **options, **decomposed) == wanted


def test_two_keys_that_are_one_character_are_refused(client: AppClient, model: str) -> None:
    bias = {"\u00e9": 1.0, "e\u0301": 2.0}
    response = client.post("/generate", json={"model": model, "logit_bias": bias})
    assert response.status_code == 422
    assert [x["pointer"] for x in response.json()["errors"]] == ["/logit_bias"]
