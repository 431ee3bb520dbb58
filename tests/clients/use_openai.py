"""`use_openai.py URL MODEL`: the real `openai` package, compared with the native endpoints."""

import json
import math
import sys
import urllib.request
from typing import Any

import openai

URL, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
NATIVE = {"model": MODEL, "max_tokens": 24, "seed": 5}
EOS = "\ue002"


def native(path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def same_lengths(logprobs: Any) -> int:
    lengths = {
        len(x)
        for x in (
            logprobs.tokens,
            logprobs.token_logprobs,
            logprobs.top_logprobs,
            logprobs.text_offset,
        )
    }
    assert len(lengths) == 1, lengths
    return lengths.pop()


def refused(status: int, param: str | None, **body: Any) -> None:
    found: openai.APIStatusError | None = None
    try:
        client.completions.create(**{"model": MODEL, "prompt": "a", **body})
    except openai.APIStatusError as error:
        found = error
    assert found is not None, body
    assert (found.status_code, found.param) == (status, param), found.message
    assert found.type
    assert found.message


def models() -> None:
    found = client.models.list().data
    assert MODEL in [x.id for x in found]
    assert all(x.owned_by == "unroll" and x.created > 0 for x in found)
    assert client.models.retrieve(MODEL) in found


def the_four_forms_of_a_prompt() -> None:
    ids = native("/tokenize", model=MODEL, prompt="the cat")["tokens"]
    wanted = native("/generate", prompt="the cat", **NATIVE)["results"][0]["choices"][0]
    for prompt in ("the cat", ["the cat"], ids, [ids], [1, *ids]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, seed=5)
        assert answer.choices[0].text == wanted["text"]
        assert answer.choices[0].finish_reason == wanted["finish_reason"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 7
    both = client.completions.create(model=MODEL, prompt=["the cat", "a"], max_tokens=3, n=2)
    assert [x.index for x in both.choices] == [0, 1, 2, 3]


def a_prompt_is_scored_with_no_token_generated() -> None:
    text = "the cat sat"
    answer = client.completions.create(
        model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text == text
    assert choice.logprobs is not None
    assert same_lengths(choice.logprobs) == len(text)
    assert choice.logprobs.text_offset == list(range(len(text)))
    scored = native("/score", model=MODEL, text=text, tokens=True)["results"][0]
    assert choice.logprobs.token_logprobs == [x["logprob"] for x in scored["tokens"]]
    total = sum(x for x in choice.logprobs.token_logprobs or [] if x is not None)
    assert math.isclose(total, scored["logprob"], rel_tol=1e-12)


def echo_and_logprobs() -> None:
    for seed in range(12):
        (choice,) = client.completions.create(
            model=MODEL, prompt="the ", max_tokens=12, echo=True, logprobs=3, seed=seed
        ).choices
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        count = same_lengths(logprobs)
        ended = choice.finish_reason == "stop"
        # Exactly one entry for each generated token, eos as well.
        assert count == len(choice.text) + ended
        assert (logprobs.tokens[-1] == EOS) == ended
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True
        ):
            assert top[token] == logprob
        for token, offset in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
            assert choice.text[offset : offset + 1] == ("" if token == EOS else token)


def best_of() -> None:
    many = client.completions.create(
        model=MODEL, prompt="the ", max_tokens=8, n=6, seed=3, logprobs=0
    )
    means = {}
    for choice in many.choices:
        assert choice.logprobs is not None
        values = [x for x in choice.logprobs.token_logprobs or [] if x is not None]
        means[choice.text] = sum(values) / len(values)
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    two = client.completions.create(
        model=MODEL, prompt="the ", max_tokens=8, n=2, best_of=6, seed=3
    )
    assert [x.text for x in two.choices] == ranked[:2]
    assert all(x.logprobs is None for x in two.choices)
    assert two.usage is not None
    assert many.usage is not None
    assert two.usage.completion_tokens == many.usage.completion_tokens


def stop_bias_and_penalties() -> None:
    plain = native("/generate", prompt="a", **NATIVE)["results"][0]["choices"][0]["text"]
    stop = plain[4:6]
    (choice,) = client.completions.create(
        model=MODEL, prompt="a", max_tokens=24, seed=5, stop=[stop]
    ).choices
    assert choice.text == plain[: plain.index(stop)]
    letter = native("/tokenize", model=MODEL, prompt="e")["tokens"][0]
    (choice,) = client.completions.create(
        model=MODEL, prompt="a", max_tokens=5, logit_bias={str(letter): 100}
    ).choices
    assert choice.text == "eeeee"
    (choice,) = client.completions.create(
        model=MODEL,
        prompt="a",
        max_tokens=24,
        seed=5,
        presence_penalty=1.5,
        frequency_penalty=0.5,
    ).choices
    wanted = native("/generate", prompt="a", presence_penalty=1.5, frequency_penalty=0.5, **NATIVE)
    assert choice.text == wanted["results"][0]["choices"][0]["text"]


def streams() -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": ["the ", "a"],
        "max_tokens": 20,
        "n": 2,
        "seed": 9,
        "echo": True,
        "logprobs": 1,
    }
    whole = client.completions.create(**options)
    texts = ["" for _ in whole.choices]
    offsets: list[list[int]] = [[] for _ in whole.choices]
    logprobs: list[list[float | None]] = [[] for _ in whole.choices]
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                same_lengths(choice.logprobs)
                offsets[choice.index] += choice.logprobs.text_offset or []
                logprobs[choice.index] += choice.logprobs.token_logprobs or []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert reasons[choice.index] == choice.finish_reason
        assert choice.logprobs is not None
        assert offsets[choice.index] == choice.logprobs.text_offset
        assert logprobs[choice.index] == choice.logprobs.token_logprobs
    assert usage == whole.usage


def a_suffix() -> None:
    around = {"prefix": "the c", "suffix": " sat", "max_tokens": 4}
    body = {"model": MODEL, "prompt": "the c", "suffix": " sat", "max_tokens": 4}
    fills = native("/infill", model=MODEL, seed=5, num_fills=9, **around)["results"][0]["fills"]
    likeliest = client.completions.create(**body, temperature=0, n=3, seed=5)
    assert [x.text for x in likeliest.choices] == [fill["text"] for fill in fills[:3]]
    assert {x.finish_reason for x in likeliest.choices} == {"stop"}
    drawn = client.completions.create(**body, n=4, seed=5, stop=["e", "t"])
    assert all(len(x.text) in range(1, 5) and not set(x.text) & {"e", "t"} for x in drawn.choices)
    assert client.completions.create(**body, n=4, seed=5, stop=["e", "t"]).choices == drawn.choices
    texts = [""] * 4
    reasons = {}
    for chunk in client.completions.create(**body, n=4, seed=5, stop=["e", "t"], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [x.text for x in drawn.choices]
    assert set(reasons.values()) == {"stop"}
    plain = client.completions.create(model=MODEL, prompt="a", max_tokens=9, seed=1)
    empty = client.completions.create(model=MODEL, prompt="a", suffix="", max_tokens=9, seed=1)
    assert empty.choices == plain.choices


def what_is_not_offered_is_refused() -> None:
    refused(404, None, model="nothing")
    refused(422, "logprobs", suffix="tail", logprobs=1)
    refused(422, "echo", suffix="tail", echo=True)
    refused(422, "max_tokens", max_tokens=-1)
    refused(422, "logprobs", logprobs=1000)
    refused(422, "logit_bias", logit_bias={"60000": 1.0})
    refused(422, "n", n=1000)
    refused(422, "best_of", best_of=1000)
    refused(422, "prompt", prompt=[0])
    refused(422, "prompt", prompt=[4, 1])
    refused(422, "prompt", prompt=[60000])
    refused(422, "best_of", best_of=3, stream=True)
    refused(422, "best_of", n=3, best_of=2)
    refused(422, "stream_options", stream_options={"include_usage": True})
    refused(422, "messages", prompt=None, extra_body={"messages": []})
    refused(422, "guided_regex", extra_body={"guided_regex": "a+"})


def what_load_generators_send_is_taken() -> None:
    """What `vllm bench serve` and NVIDIA's generators put into a request."""
    extra = {
        "ignore_eos": True,
        "min_tokens": 40,
        "max_completion_tokens": 40,
        "repetition_penalty": 1.0,
        "top_k": -1,
        "made_up": 1,
    }
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="the ",
            max_tokens=40,
            logprobs=None,
            temperature=None,
            stop=[""],
            seed=-1,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            extra_body=extra,
        )
    )
    assert chunks[-1].usage.completion_tokens == 40
    assert len("".join(x.text for chunk in chunks for x in chunk.choices)) == 40
    plain = client.completions.create(model=MODEL, prompt="abc", max_tokens=4, logprobs=0)
    assert plain.choices[0].logprobs.text_offset[0] == 3


for test in (
    models,
    the_four_forms_of_a_prompt,
    a_prompt_is_scored_with_no_token_generated,
    echo_and_logprobs,
    best_of,
    stop_bias_and_penalties,
    streams,
    a_suffix,
    what_is_not_offered_is_refused,
    what_load_generators_send_is_taken,
):
    test()
    sys.stdout.write(f"{test.__name__}: ok\n")
