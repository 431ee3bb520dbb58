"""`python -m tests.examples`: write service/http/examples.json, requests and their answers.

The answers are the shipped bundles' own, from a fresh server. What differs from run to run is
given a fixed value.
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.server import ROOT, serve

FILE = ROOT / "service/http/examples.json"

_GENERATE = {"model": "alice-lstm", "prompt": "Alice was ", "max_tokens": 40, "seed": 1}
_COMPLETE = {**_GENERATE, "logprobs": 1}
_TOKENS = {"model": "alice-lstm", "prompt": "Alice"}
_IDS = {"model": "alice-lstm", "tokens": [18, 55, 52, 46, 48]}
_TRANSLATE = {"model": "g2p-en", "source": ["unroll", "recurrent"], "beam_size": 5}

_INFILL = {
    "model": "alice-lstm",
    "prefix": "I am ",
    "suffix": " hungry, said Alice.",
    "candidates": ["very", "quite", "not"],
}

# As editors send it to llama.cpp's server.
_LLAMA_INFILL = {
    "model": "alice-lstm",
    "input_prefix": "Alice was ",
    "input_suffix": " tired of sitting",
    "n_predict": 8,
    "seed": 1,
    "stream": True,
}

_INFER = {"text_input": "Alice was ", "parameters": {"max_tokens": 4, "seed": 1}}
_NONE: list[dict[str, Any]] = []
# Streamed bodies, with their query parameters.
_LINES: dict[str, tuple[dict[str, Any], str]] = {
    "/score": ({"model": "alice-lstm"}, "the white rabbit\nthe whjte rabbit\n"),
    "/classify": (
        {"model": "language-id", "top": 1},
        "Änderungen speichern\nEnregistrer sous\n",
    ),
    "/tag": ({"model": "accents"}, "deja vu\n"),
}

# Operations in the order in which they are asked: a method, a path as the document has it, a body,
# and further bodies whose answers are shown by their media types.
REQUESTS: list[tuple[str, str, dict[str, Any] | None, list[dict[str, Any]]]] = [
    ("POST", "/generate", _GENERATE, [{**_GENERATE, "max_tokens": 3, "stream": True}]),
    ("POST", "/translate", _TRANSLATE, [{**_TRANSLATE, "source": "unroll", "stream": True}]),
    (
        "POST",
        "/score",
        {"model": "alice-lstm", "text": ["the white rabbit", "the whjte rabbit"]},
        [],
    ),
    ("POST", "/infill", _INFILL, [_LLAMA_INFILL]),
    (
        "POST",
        "/classify",
        {
            "model": "language-id",
            "text": ["Änderungen speichern", "Enregistrer sous"],
            "top": 2,
        },
        [],
    ),
    ("POST", "/tag", {"model": "accents", "text": "deja vu"}, []),
    ("GET", "/models", None, []),
    ("GET", "/models/{name}", None, []),
    ("GET", "/models/{name}/vocab", None, []),
    ("POST", "/tokenize", _TOKENS, []),
    ("POST", "/detokenize", _IDS, []),
    ("GET", "/tokenizer_info", None, []),
    ("GET", "/v1/models", None, []),
    ("GET", "/v1/models/{name}", None, []),
    (
        "POST",
        "/v1/completions",
        {**_COMPLETE, "max_tokens": 4},
        [{**_COMPLETE, "max_tokens": 2, "stream": True}],
    ),
    ("GET", "/v2", None, []),
    ("GET", "/v2/health/live", None, []),
    ("GET", "/v2/health/ready", None, []),
    *(
        entry
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/1")
        for entry in (
            ("GET", path, None, _NONE),
            ("GET", f"{path}/ready", None, _NONE),
            ("POST", f"{path}/generate", _INFER, _NONE),
            ("POST", f"{path}/generate_stream", _INFER, _NONE),
        )
    ),
    ("GET", "/libretranslate/languages", None, []),
    ("GET", "/libretranslate/frontend/settings", None, []),
    ("GET", "/libretranslate/health", None, []),
    (
        "POST",
        "/libretranslate/translate",
        {"q": "3 March 2026", "source": "en", "target": "ISO 8601", "alternatives": 1},
        [],
    ),
    ("GET", "/livez", None, []),
    ("GET", "/readyz", None, []),
]
# Answers that a healthy server does not give.
_OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "GET /readyz": {
        "503": {
            "application/json": {
                "status": "not ready",
                "reasons": ["the engine of alice-lstm is not running"],
                "engines": [
                    {
                        "model": "alice-lstm",
                        "ready": False,
                        "last_step_age_s": 31.5,
                        "stalled_s": 0.0,
                    }
                ],
                "failed": [
                    {"name": "mine", "cause": "mine: manifest.json: No such file or directory"}
                ],
            }
        }
    },
    "GET /livez": {
        "503": {
            "application/json": {
                "status": "stalled",
                "reasons": ["the engine of alice-lstm hangs in a step"],
            }
        }
    },
    # The shipped models read several languages.
    "POST /libretranslate/detect": {
        "200": {"application/json": [{"language": "en", "confidence": 100}]}
    },
    "GET /metrics": {
        "200": {"text/plain": 'unroll_requests_total{route="/score",status="200"} 1027.0\n'}
    },
    **{
        f"POST /admin/models/{{name}}/{change}": {
            "200": {"application/json": {"model": "alice-lstm", "status": status, "changed": True}}
        }
        for change, status in (("load", "served"), ("unload", "unloaded"), ("reload", "served"))
    },
    **{
        f"GET {path}": {"503": {"application/json": {"ready": False}}}
        for path in (
            "/v2/health/ready",
            "/v2/models/{name}/ready",
            "/v2/models/{name}/versions/1/ready",
        )
    },
}
_BODIES = {"POST /libretranslate/detect": {"request": {"q": "3 March 2026"}}}
_PARAMETERS = {"{name}": "alice-lstm"}
_QUERIES = {"/tokenizer_info": {"model": "alice-lstm"}}
_VOLATILE = [
    (re.compile(r'("last_step_age_s": ?)[0-9.e-]+'), r"\g<1>0.25"),
    (
        re.compile(r'"cmpl-[0-9a-f]+","object":"text_completion","created":[0-9]+'),
        '"cmpl-4f0d3c8e9b1a4c5f8e7d6c5b4a392817","object":"text_completion","created":1767225600',
    ),
]


def written() -> str:
    """The file's content."""
    with serve(ROOT / "models", engine_threads=1) as server, server.client() as client:
        found = {f"{x[0]} {x[1]}": _asked(client, *x) for x in REQUESTS}
    # What is not asked of it here, since it would change something or is another each time.
    found |= {
        name: _BODIES.get(name, {}) | {"answers": answers}
        for name, answers in _OTHERS.items()
        if name not in found
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _asked(
    client: httpx.Client,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    further: list[dict[str, Any]],
) -> dict[str, Any]:
    url = path
    for name, value in _PARAMETERS.items():
        url = url.replace(name, value)
    example: dict[str, Any] = {} if body is None else {"request": body}
    answers: dict[str, dict[str, Any]] = {}
    for each in [body, *further]:
        answer = client.request(method, url, json=each, params=_QUERIES.get(path))
        assert answer.status_code == 200, answer.text
        text = answer.text
        for pattern, value in _VOLATILE:
            text = pattern.sub(value, text)
        media_type = answer.headers["content-type"].split(";")[0]
        shown = json.loads(text) if media_type == "application/json" else text
        answers.setdefault("200", {})[media_type] = shown
    if path in _LINES:
        query, content = _LINES[path]
        told = client.post(
            url, params=query, content=content, headers={"Content-Type": "text/plain"}
        )
        answers["200"][told.headers["content-type"]] = told.text
    answers.update(_OTHERS.get(f"{method} {path}", {}))
    return {**example, "answers": answers}


if __name__ == "__main__":
    Path(FILE).write_text(written(), "utf-8")
