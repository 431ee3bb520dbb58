"""`/v1`: OpenAI's shapes over the engine's calls. The real package is in tests/clients."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import (
    ALPHABET,
    Tokenization,
    encoder_decoder_in_memory,
    in_memory,
    plain_files,
    tiny_encoder_decoder_files,
)
from tests.fakes import RARE, AppClient, FakeSession
from tests.service.events import parsed

MODEL = "tiny-lstm"


@pytest.fixture(scope="module")
def pairs() -> Iterator[AppClient]:
    """Encoder-decoders, called by the kind of their targets' tokens."""
    kinds: tuple[Tokenization, ...] = ("whitespace", "bpe")
    engines = []
    for kind in kinds:
        bundle = encoder_decoder_in_memory(
            *tiny_encoder_decoder_files(name=kind, tokenization=kind)
        )
        session = OnnxEncoderDecoderSession(bundle, "fp32")
        engines.append(EncoderDecoderEngine(bundle, session, Settings(), precision="fp32"))
    with AppClient(create_app(Settings(), engines)) as running:
        yield running


def complete(client: AppClient, **body: Any) -> Any:
    answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "ab", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(client: AppClient, **body: Any) -> Any:
    answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "ab", **body})
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return answer.status_code, found["param"], found["message"]


def test_the_models_are_listed_in_openais_form(client: AppClient) -> None:
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [x["id"] for x in answer["data"]] == ["tiny-gru", "tiny-lstm", "tiny-rnn"]
    assert client.get("/v1/models/tiny-lstm").json() == answer["data"][1]
    missing = client.get("/v1/models/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model-not-found")


def test_the_fingerprint_is_of_the_weights_and_their_arithmetic(
    client: AppClient, precision: str
) -> None:
    """With the same one a seed gives the same text."""
    found = {
        complete(client, model=model, max_tokens=1)["system_fingerprint"]
        for model in ("tiny-gru", "tiny-lstm", "tiny-rnn", "tiny-lstm")
    }
    assert len(found) == 3
    assert all(each.startswith(f"{precision}-") for each in found)


def test_null_is_as_good_as_left_out(client: AppClient) -> None:
    nulls = dict.fromkeys(
        ("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
         "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature",
         "top_p", "user")
    )  # fmt: skip
    assert complete(client, **nulls)["choices"][0]["logprobs"] is None
    assert complete(client, **nulls)["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    ("status", "param", "words", "body"),
    [
        (404, None, "no such model", {"model": "nothing"}),
        (422, "model", "name one of the served models", {"model": None}),
        (422, "prompt", "a token id is 3 to", {"prompt": [1, 1]}),
        (422, "prompt", "a token id is 3 to", {"prompt": [[4], [2]]}),
        (422, "prompt", "too many prompts", {"prompt": ["a"] * 1025}),
        (422, "prompt", "/prompt: a prompt is a text, a list of texts,", {"prompt": []}),
        (422, "prompt", "/prompt: a prompt is a text, a list of texts,", {"prompt": {"a": 1}}),
        (422, "prompt", "/prompt/1: Input should be a valid integer", {"prompt": [4, "a"]}),
        (422, "prompt", "/prompt/0: Input should be a valid integer", {"prompt": [True]}),
        (422, "prompt", "too many characters a prompt", {"prompt": [[4], [4] * 100_001]}),
        (
            422,
            "best_of",
            "at most 480000",
            {"best_of": 16, "max_tokens": 1000, "prompt": ["a"] * 12},
        ),
        (422, "logit_bias", "every key is the id", {"logit_bias": {"9999": 1.0}}),
        (422, "logit_bias", "one character of the model's", {"logit_bias": {"1": 1.0}}),
        (422, "n", "at most 16 are allowed", {"n": 17}),
        (422, "best_of", "at most 16 are allowed", {"best_of": 17}),
        (422, "best_of", "at least n", {"best_of": 1, "n": 2}),
        (422, "best_of", "not together with stream", {"best_of": 2, "stream": True}),
        (422, "stream_options", "only with stream", {"stream_options": {"include_usage": True}}),
        (422, "messages", "there is no chat", {"messages": [], "prompt": None}),
        (422, None, "did you mean `max_tokens`?", {"max_token": 5}),
        (422, None, "did you mean `prompt`?", {"inputs": "ab", "prompt": None}),
        (422, None, "did you mean `max_tokens`?", {"maxTokens": 5}),
        (422, None, "at most 64 are ignored", {f"made_up_{i}": 1 for i in range(65)}),
        (422, "max_new_tokens", "use max_tokens", {"max_new_tokens": 5}),
        (422, "max_completion_tokens", "same value", {"max_tokens": 5, "max_completion_tokens": 6}),
        (422, "guided_regex", "/generate has `pattern`", {"guided_regex": "a+"}),
        (422, "regex", "/generate has `pattern`", {"regex": "a+"}),
        (422, "max_tokens_to_sample", "use max_tokens", {"max_tokens_to_sample": 3}),
        (422, "repetition_penalty", "must be 1 or left out", {"repetition_penalty": True}),
        (422, "response_format", '{"type": "text"}', {"response_format": {"type": "json_object"}}),
        (422, "repetition_penalty", "presence_penalty", {"repetition_penalty": 1.2}),
        (422, "stop_token_ids", "use stop", {"stop_token_ids": [2]}),
        (422, "tools", "[] or left out", {"tools": [{"type": "function"}]}),
        (422, "add_special_tokens", "true or left out", {"add_special_tokens": False}),
        (422, "min_tokens", "with ignore_eos", {"min_tokens": 2, "max_tokens": 5}),
        (422, "min_tokens", "max_tokens, which is 5", {"min_tokens": 6, "max_tokens": 5}),
        (422, "min_tokens", "not together with stop", {"min_tokens": 16, "stop": "a"}),
        (422, "top_logprobs", "only with logprobs true", {"top_logprobs": 2}),
        (422, "logprobs", "less than or equal to 20", {"logprobs": 21}),
        (422, "seed", "greater than or equal", {"seed": -(2**63) - 1}),
    ],
)
def test_a_mistake_is_told_in_openais_form(
    client: AppClient, status: int, param: str | None, words: str, body: dict[str, Any]
) -> None:
    *found, message = error(client, **body)
    assert tuple(found) == (status, param), message
    assert words in message


# What vllm's and NVIDIA's load generators, LangChain and LiteLLM send, beside what is known.
PASSED_OVER: dict[str, Any] = {
    "user": "u" * 600,
    "metadata": {"run": "1"},
    "store": False,
    "priority": 0,
    "service_tier": "auto",
    "made_up": {"deep": [1]},
    "repetition_penalty": 1.0,
    "use_beam_search": False,
    "response_format": {"type": "text"},
    "stop_token_ids": [],
    "skip_special_tokens": True,
    "min_tokens": 0,
    "top_k": -1,
    "suffix": "",
    "tools": None,
    "guided_json": None,
}


def test_unknown_fields_are_passed_over(client: AppClient) -> None:
    plain = complete(client, seed=3)["choices"]
    assert complete(client, seed=3, **PASSED_OVER)["choices"] == plain
    options = {"include_usage": True, "continuous_usage_stats": False, "include_obfuscation": True}
    found = told_by_the_stream(client, prompt="ab", seed=3, stream_options=options, **PASSED_OVER)
    assert found[0]["text"] == plain[0]["text"]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"logprobs": True}, {"logprobs": 1}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"stop": ""}, {"stop": None}),
        ({"stop": ["", "e"]}, {"stop": ["e"]}),
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 3}, {"max_tokens": 3}),
        ({"prompt": None}, {"prompt": ""}),
        ({"seed": -2}, {"seed": 2**63 - 2}),
        ({"top_k": 0}, {"top_k": None}),
    ],
)
def test_other_spellings_mean_the_same(
    client: AppClient, given: dict[str, Any], same: dict[str, Any]
) -> None:
    found = [complete(client, **{"seed": 5, **each})["choices"] for each in (given, same)]
    assert found[0] == found[1]


def test_a_seed_of_minus_one_is_drawn(client: AppClient) -> None:
    found = {complete(client, seed=-1, max_tokens=30)["choices"][0]["text"] for _ in range(4)}
    assert len(found) > 1


def test_a_text_that_may_not_end_has_all_its_tokens(client: AppClient) -> None:
    """Load generators count on it; the eos that is masked keeps its log-probability."""
    options: dict[str, Any] = {"prompt": ["a", "the "], "n": 8, "max_tokens": 40, "seed": 1}
    ends = {x["finish_reason"] for x in complete(client, **options)["choices"]}
    assert ends == {"stop", "length"}
    for asked in ({"ignore_eos": True}, {"min_tokens": 40}, {"ignore_eos": True, "min_tokens": 9}):
        found = complete(client, **options, **asked)
        assert {len(x["text"]) for x in found["choices"]} == {40}
        assert {x["finish_reason"] for x in found["choices"]} == {"length"}
    # No temperature is high enough for it.
    hot = complete(client, **options, ignore_eos=True, temperature=1e9)
    assert {x["finish_reason"] for x in hot["choices"]} == {"length"}


def test_offsets_count_from_the_prompts_beginning(client: AppClient) -> None:
    """As OpenAI's do, echoed or not."""
    ids = client.post("/tokenize", json={"model": MODEL, "prompt": "abc"}).json()["tokens"]
    for prompt in ("abc", ids, [1, *ids]):
        options = {"prompt": prompt, "max_tokens": 4, "seed": 2, "logprobs": 0}
        plain = complete(client, **options)["choices"][0]
        echoed = complete(client, **options, echo=True)["choices"][0]
        assert plain["logprobs"]["text_offset"] == echoed["logprobs"]["text_offset"][-4:]
        assert plain["logprobs"]["text_offset"][0] == 3
        told = told_by_the_stream(client, **options)[0]
        assert told["logprobs"]["text_offset"] == plain["logprobs"]["text_offset"]


def test_lm_evals_batches_fit_and_what_is_larger_is_refused(client: AppClient) -> None:
    batch: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    found = complete(client, prompt=["the " * 1024] * 16, **batch)["choices"]
    assert [len(x["logprobs"]["tokens"]) for x in found] == [4097] * 16
    status, param, message = error(client, prompt=["the " * 1024] * 24, **batch)
    assert (status, param) == (422, "logprobs")
    assert "(4 + alternatives); at most 480000" in message


def test_ids_that_begin_with_bos_have_an_entry_for_it(client: AppClient) -> None:
    ids = client.post("/tokenize", json={"model": MODEL, "prompt": "ab"}).json()["tokens"]
    plain = complete(client, prompt=[ids], max_tokens=0, echo=True, logprobs=1)
    begun = complete(client, prompt=[[1, *ids]], max_tokens=0, echo=True, logprobs=1)
    assert plain["choices"][0]["text"] == begun["choices"][0]["text"] == "ab"
    before, after = plain["choices"][0]["logprobs"], begun["choices"][0]["logprobs"]
    assert after["token_logprobs"] == [None, *before["token_logprobs"]]
    assert after["tokens"] == ["\ue001", "a", "b"]
    assert after["text_offset"] == [0, 0, 1]
    assert after["top_logprobs"][0] is None


def test_a_stream_ends_with_done_and_mistakes_are_answers(client: AppClient) -> None:
    body = {
        "model": MODEL,
        "prompt": [1, 4, 5],
        "max_tokens": 5,
        "seed": 1,
        "echo": True,
        "logprobs": 0,
    }
    events = parsed(client.post("/v1/completions", json={**body, "stream": True}).content)
    assert events[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    whole = complete(client, **body)["choices"][0]
    merged: dict[str, list[Any]] = {name: [] for name in whole["logprobs"]}
    for chunk in chunks:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            merged[name] += values
    assert merged == whole["logprobs"]
    assert error(client, stream=True, max_tokens=-1)[0] == 422


def told_by_the_stream(client: AppClient, **body: Any) -> dict[int, Any]:
    """The choices of a stream, put together again."""
    answer = client.post("/v1/completions", json={"model": MODEL, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    found: dict[int, Any] = {}
    for event in parsed(answer.content)[:-1]:
        for piece in json.loads(event.data)["choices"]:
            choice = found.setdefault(piece["index"], {"text": "", "logprobs": {}})
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            for name, told in (piece["logprobs"] or {}).items():
                choice["logprobs"].setdefault(name, []).extend(told)
    return found


PIECES = [*ALPHABET[:6], "\r\n", "e\u0301", "\u05d0", "\ue001", "\ue002"]
AWKWARD = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
IDS = st.lists(st.integers(3, 9), max_size=6)
BEGUN = st.builds(lambda ids: [1, *ids], IDS)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(AWKWARD, min_size=1, max_size=2)
    | st.lists(IDS | BEGUN, min_size=1, max_size=2),
    options=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(0, 12),
            "n": st.integers(1, 2),
            "seed": st.integers(0, 99),
            "echo": st.booleans(),
            "logprobs": st.integers(0, 2),
            "stop": st.lists(st.text(ALPHABET[:3], min_size=1, max_size=2), max_size=2),
        }
    ),
)
def test_a_stream_tells_what_the_plain_answer_tells_and_offsets_lie_in_its_text(
    client: AppClient, prompt: list[Any], options: dict[str, Any]
) -> None:
    """Also where the prompt is another text once it is normalized, and where ids have no text."""
    plain = complete(client, prompt=prompt, **options)
    found = told_by_the_stream(client, prompt=prompt, **options)
    for choice in plain["choices"]:
        logprobs, text = choice["logprobs"], choice["text"]
        told = found[choice["index"]]
        assert (told["text"], told["finish_reason"]) == (text, choice["finish_reason"])
        assert told["logprobs"] == (logprobs if logprobs["tokens"] else {})
        offsets = logprobs["text_offset"]
        assert {len(x) for x in logprobs.values()} == {len(offsets)}
        assert offsets == sorted(offsets)
        # From the end: every generated token is the character at its offset, or none.
        before = 0 if options["echo"] else len(shown(prompt[choice["index"] // options["n"]]))
        assert all(before <= offset <= before + len(text) for offset in offsets)
        if choice["finish_reason"] == "length" and options["max_tokens"]:
            written = len(text) - options["max_tokens"]
            count = options["max_tokens"]
            assert offsets[-count:] == list(range(before + written, before + len(text)))
            assert "".join(logprobs["tokens"][-count:]) == text[written:]


def shown(prompt: str | list[int]) -> str:
    """A prompt as it is echoed."""
    if isinstance(prompt, str):
        return prompt.removeprefix("\ue001")
    return "".join(sorted(ALPHABET)[i - 4] for i in prompt if i >= 4)


def test_a_text_that_begins_with_bos_is_read_as_ids_that_do(client: AppClient) -> None:
    """lm-eval makes texts of ids again, and counts bos among them."""
    ids = client.post("/tokenize", json={"model": MODEL, "prompt": "ab"}).json()["tokens"]
    options: dict[str, Any] = {"max_tokens": 3, "echo": True, "logprobs": 1, "seed": 1}
    begun = complete(client, prompt=[[1, *ids]], **options)["choices"]
    assert complete(client, prompt="\ue001ab", **options)["choices"] == begun
    # Anywhere else it is a character that the model does not know.
    inside = complete(client, prompt="a\ue001b", **options)["choices"][0]
    assert inside["text"].startswith("a\ue001b")
    assert inside["logprobs"]["tokens"][:3] == ["a", "\ue003", "b"]


def test_unknown_characters_are_counted(client: AppClient) -> None:
    asked = ["a\u2603b", "ab", "\u2603\u2603"]
    told = complete(client, prompt=asked, max_tokens=1)["usage"]
    assert told["prompt_tokens_details"] == {"unknown_tokens": 3}
    body = {"model": MODEL, "prompt": asked, "stream": True, "max_tokens": 1}
    options = {"include_usage": True}
    events = parsed(client.post("/v1/completions", json=body | {"stream_options": options}).content)
    assert json.loads(events[-2].data)["usage"] == told


FAKE = in_memory(*plain_files("fake", ALPHABET))


def test_what_breaks_after_the_first_byte_is_told_in_openais_form() -> None:
    session = FakeSession(vocab_size=len(FAKE.vocab), raises_at=RARE)
    engine = LanguageModelEngine(FAKE, session, Settings(), precision="fp32")
    body = {"prompt": "a", "model": "fake", "stream": True, "logit_bias": {str(RARE): 100}}
    with AppClient(create_app(Settings(), [engine])) as client:
        first, last = parsed(client.post("/v1/completions", json=body).content)
    assert json.loads(first.data)["choices"][0]["text"] == FAKE.vocab.tokens[RARE]
    assert last.name == "message"
    assert set(json.loads(last.data)) == {"error"}
    assert json.loads(last.data)["error"]["code"] == "model-failure"


def test_tokens_that_are_left_out_are_16_or_what_the_model_may_write() -> None:
    bundle = in_memory(*plain_files("fake", ALPHABET, limits={"max_tokens": 7}))
    for made, expected in ((FAKE, 16), (bundle, 7)):
        session = FakeSession(vocab_size=len(made.vocab))
        engine = LanguageModelEngine(made, session, Settings(), precision="fp32")
        with AppClient(create_app(Settings(), [engine])) as client:
            body = {"model": "fake", "prompt": "a", "logit_bias": {"2": -1000}}
            usage = client.ask("/v1/completions", **body)["usage"]
        assert usage["completion_tokens"] == expected


def test_an_encoder_decoder_completes_nothing(pairs: AppClient) -> None:
    assert pairs.get("/v1/models").json()["data"] == []
    assert pairs.get("/v1/models/bpe").status_code == 404
    answer = pairs.post("/v1/completions", json={"model": "bpe", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "model")


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_go_there_and_back(client: AppClient) -> None:
    for text in ("", "ab", "\ue001a\ue002", ALPHABET):
        told = client.post("/tokenize", json={"model": MODEL, "prompt": text}).json()
        assert told["count"] == len(told["tokens"]) == len(text)
        back = client.post("/detokenize", json={"model": MODEL, "tokens": told["tokens"]}).json()
        assert back["prompt"] == text
    begun = client.post(
        "/tokenize", json={"model": MODEL, "prompt": "a", "add_special_tokens": True}
    ).json()
    assert begun["tokens"][0] == 1
    unknown = client.post("/tokenize", json={"model": MODEL, "prompt": "\u2603"}).json()
    assert unknown["tokens"] == [3]


def test_the_vocabulary_is_told(client: AppClient) -> None:
    answer = client.get(f"/models/{MODEL}/vocab").json()
    assert answer["side"] is None
    assert [x["id"] for x in answer["tokens"]] == list(range(len(ALPHABET) + 4))
    assert [x["special"] for x in answer["tokens"]].count(True) == 4
    assert client.get("/models/nothing/vocab").status_code == 404
    info = client.get("/tokenizer_info", params={"model": MODEL}).json()
    assert (info["bos_token"], info["eos_token"]) == ("\ue001", "\ue002")
    assert info["vocab_size"] == len(answer["tokens"])
    assert client.get("/tokenizer_info").status_code == 422  # three models are served


@pytest.mark.parametrize(
    ("path", "pointer", "body"),
    [
        ("/detokenize", "/tokens", {"tokens": [9999]}),
        ("/detokenize", "/tokens", {"tokens": [-1]}),
        ("/detokenize", "/tokens", {"tokens": [4] * 100_001}),
        ("/tokenize", "/prompt", {"prompt": "a" * 100_001}),
        ("/tokenize", "/side", {"prompt": "a", "side": "both"}),
    ],
)
def test_tokens_that_cannot_be_are_refused(
    client: AppClient, path: str, pointer: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)


def test_a_side_that_there_is_not_is_told_as_a_problem(pairs: AppClient) -> None:
    answer = pairs.get("/models/bpe/vocab", params={"side": "made-up"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "/side: Input should be 'source' or 'target'"
    assert "made-up" not in answer.text


@pytest.mark.parametrize(
    ("model", "side", "text"),
    [
        ("whitespace", "target", "\ue001 AA B EH \ue003 \ue002"),
        ("whitespace", "source", "\ue001the\ue003 \ue002"),
        ("bpe", "source", "a cat\ue002"),
    ],
)
def test_tokens_of_either_side_go_there_and_back(
    pairs: AppClient, model: str, side: str, text: str
) -> None:
    asked = {"model": model, "side": side}
    ids = pairs.ask("/tokenize", prompt=text, **asked)["tokens"]
    assert pairs.ask("/detokenize", tokens=ids, **asked)["prompt"] == text
    vocab = pairs.get(f"/models/{model}/vocab", params={"side": side}).json()
    assert vocab["side"] == side
    printed = {x["id"]: x["token"] for x in vocab["tokens"]}
    special = [i for i in ids if i < 4]
    assert [printed[i] for i in special] == [x for x in text if "\ue000" <= x <= "\ue003"]


def test_special_tokens_between_subwords_are_tokens(pairs: AppClient) -> None:
    asked = {"model": "bpe", "side": "target"}
    inner = pairs.ask("/tokenize", prompt="a cat", **asked)["tokens"]
    ids = pairs.ask("/tokenize", prompt="\ue001a cat\ue002", **asked)["tokens"]
    assert ids == [1, *inner, 2]
