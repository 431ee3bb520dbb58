"""`use_others.py URL TEXT_MODEL PAIR_MODEL`: Triton's HTTP client and LibreTranslate's."""

import json
import sys
import urllib.request
from typing import Any

import tritonclient.http
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
    client.close()


def libretranslate() -> None:
    client = LibreTranslateAPI(f"{URL}/libretranslate/")
    (language,) = client.languages()
    (target,) = language["targets"]
    for text in ("a cat in a hat", "", "tea & rabbits = 100 %"):
        found = client.translate(text, language["code"], target)
        result = native("/translate", model=PAIR_MODEL, source=text)["results"][0]
        assert found == result["hypotheses"][0]["text"]


for test in (triton, libretranslate):
    test()
    sys.stdout.write(f"{test.__name__}: ok\n")
