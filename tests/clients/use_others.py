"""`use_others.py URL TEXT_MODEL PAIR_MODEL`: Triton's HTTP client and LibreTranslate's."""

import json
import sys
import urllib.request
from typing import Any

import numpy as np
import tritonclient.http
import tritonclient.utils
from libretranslatepy import LibreTranslateAPI

URL, TEXT_MODEL, PAIR_MODEL = sys.argv[1:]


def native(path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def triton() -> None:
    client = tritonclient.http.InferenceServerClient(URL.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "unroll"
    for name in (TEXT_MODEL, PAIR_MODEL):
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, "1")
        assert client.get_model_metadata(name)["inputs"][0]["datatype"] == "BYTES"
    assert not client.is_model_ready("nothing")
    tensor = tritonclient.http.InferInput("text_input", [1], "INT32")
    tensor.set_data_from_numpy(np.zeros(1, np.int32))
    refusal = ""
    try:
        client.infer(TEXT_MODEL, [tensor])
    except tritonclient.utils.InferenceServerException as error:
        refusal = str(error)
    assert "send a text to generate" in refusal, refusal
    client.close()


def generate_extension() -> None:
    """As Triton's documentation asks: curl's own media type, and events of data alone."""
    for name, native_path, field in (
        (TEXT_MODEL, "/generate", "prompt"),
        (PAIR_MODEL, "/translate", "source"),
    ):
        seed = {"seed": 4} if field == "prompt" else {}
        parameters = {"max_tokens": 9, "details": True, **seed}
        content = json.dumps({"text_input": "a cat", "parameters": parameters}).encode()
        found = json.load(
            urllib.request.urlopen(f"{URL}/v2/models/{name}/generate", content, timeout=60)
        )
        result = native(native_path, model=name, max_tokens=9, **{field: "a cat"}, **seed)[
            "results"
        ][0]
        wanted = (result.get("choices") or result.get("hypotheses"))[0]["text"]
        assert found["text_output"] == wanted
        assert found["details"]["logprobs"]
        # As TensorRT-LLM's documentation asks.
        plain = {"text_input": "a cat", "max_tokens": 9, "bad_words": "", "stop_words": "", **seed}
        path = f"{URL}/v2/models/{name}/generate"
        answer = json.load(urllib.request.urlopen(path, json.dumps(plain).encode(), timeout=60))
        assert answer["text_output"] == wanted
        path = f"{URL}/v2/models/{name}/versions/1/generate_stream"
        with urllib.request.urlopen(path, content, timeout=60) as answer:
            events = [json.loads(x[6:]) for x in answer.read().split(b"\n\n") if x]
        assert "".join(event["text_output"] for event in events) == wanted
        assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
        assert events[-1]["details"] == found["details"]


def libretranslate() -> None:
    client = LibreTranslateAPI(f"{URL}/libretranslate/")
    (language,) = client.languages()
    (target,) = language["targets"]
    for text in ("a cat in a hat", "tea & rabbits = 100 %"):
        found = client.translate(text, language["code"], target)
        result = native("/translate", model=PAIR_MODEL, source=text)["results"][0]
        assert found == result["hypotheses"][0]["text"]
        again = client.translate(f"{text}\n\n{text} ", "auto", target.upper())
        assert again == f"{found}\n\n{found} "
    assert client.translate("", language["code"], target) == ""
    assert client.detect("a cat") == [{"confidence": 100, "language": language["code"]}]


for test in (triton, generate_extension, libretranslate):
    test()
    sys.stdout.write(f"{test.__name__}: ok\n")
