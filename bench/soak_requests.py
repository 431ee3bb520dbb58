"""Random requests of every kind that the service answers, and of many kinds that it rejects.

They come from a seeded generator, so that a run can be repeated; nothing is sent here. Sizes are
spread over orders of magnitude: most requests are small, some are large.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from urllib.parse import urlencode

from bench import soak_labels
from bench.soak_wire import JSON, Models, Outcome, States, Wire, one_or_more, posted, size, text

_MOST_TOKENS = 200
_MOST_INPUTS = 16
_DATES = ("27 October 2014", "March 3, 1999", "the 1st of May", "Monday, 5 June 2023", "12/11/2001")
_WORDS = ("unroll", "recurrent", "alice", "Save file", "Open the page", "rabbit", "Delete")
_PATTERNS = (
    r"[a-z ]{3,20}\.",
    r"(yes|no|perhaps)",
    r"\w+( \w+)*[.!?]",
    r"[^e]{0,40}",
    r".*",
    r"a+",
)
_BAD_PATTERNS = (r"(a", r"(?=a)b", r"\bx", r"(a|b)*a(a|b){30}", r"☃+", r"[z-a]", "x" * 2000)


_Maker: TypeAlias = Callable[[random.Random, Models, States], Wire]


def random_request(rng: random.Random, models: Models, states: States) -> Wire:
    """Any request; `states` are the handles that earlier answers had, by model."""
    (make,) = rng.choices(_MAKERS, _WEIGHTS)
    wire = make(rng, models, states)
    if wire.body is not None and rng.random() < 0.1:
        wire = replace(wire, pieces=rng.randint(1, 5))
    if wire.outcome == "answered" and rng.random() < 0.03:
        wire = replace(wire, timeout_s=round(10 ** rng.uniform(-3, 0), 4), outcome="either")
    return wire


# --- the native API -------------------------------------------------------------------------------


def _generate(rng: random.Random, models: Models, states: States) -> Wire:
    body = _generate_body(rng, models)
    kind = "/generate"
    if rng.random() < 0.3:
        body["stream"] = True
        kind += " streamed"
    known = states.get(body["model"], ())
    if known and rng.random() < 0.2:
        body |= {"state": rng.choice(known), "presence_penalty": 0.0, "frequency_penalty": 0.0}
        kind += " after a state"
    return posted(kind, "/generate", body, "either" if _may_be_refused(body) else "answered")


def _generate_body(rng: random.Random, models: Models) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": rng.choice(models.language),
        "prompt": one_or_more(rng, text, 6),
        "max_tokens": size(rng, _MOST_TOKENS),
    }
    options: dict[str, Callable[[], Any]] = {
        "temperature": lambda: rng.choice([0, 1e-9, 0.5, 0.9, 1.0, 2, 1e9]),
        "top_k": lambda: rng.randint(1, 80),
        "top_p": lambda: rng.choice([0.0, 0.5, 0.9, 1.0]),
        "min_p": lambda: rng.choice([0.0, 0.1, 1.0]),
        "presence_penalty": lambda: rng.uniform(-2, 2),
        "frequency_penalty": lambda: rng.uniform(-2, 2),
        "logit_bias": lambda: {rng.choice("abcdefghij e"): rng.uniform(-50, 5) for _ in range(5)},
        "seed": lambda: rng.randrange(2**63),
        "stop": lambda: rng.choice([".", ["\n", "the ", "zz"], [], [text(rng, 20) or "x"]]),
        "n": lambda: rng.randint(1, 4),
        "echo": lambda: True,
        "logprobs": lambda: rng.choice([0, 1, 5, 20]),
        "unknown": lambda: rng.choice(["unk", "skip", "error"]),
        "return_state": lambda: True,
    }
    body |= {name: draw() for name, draw in options.items() if rng.random() < 0.25}
    if rng.random() < 0.2:
        body |= rng.choice(
            [
                {"pattern": rng.choice(_PATTERNS)},
                {"choices": ["yes", "no", *(_letters(rng, 12) for _ in range(size(rng, 20)))]},
                {"allowed_chars": _letters(rng, 10)},
            ]
        )
    return body


def _may_be_refused(body: Mapping[str, Any]) -> bool:
    """Whether the options may contradict each other or the model."""
    return bool(
        body.get("unknown") == "error"
        or body.keys() & {"pattern", "choices", "allowed_chars", "state"}
        or any(not x for x in _listed(body.get("stop")))
    )


def _score(rng: random.Random, models: Models, states: States) -> Wire:
    model = rng.choice(models.language)
    texts = one_or_more(rng, text, _MOST_INPUTS)
    body: dict[str, Any] = {"model": model, "text": texts}
    if rng.random() < 0.5:
        body["context"] = text(rng) if isinstance(texts, str) else [text(rng, 200) for _ in texts]
    if rng.random() < 0.4:
        body |= {"tokens": True, "top_logprobs": rng.choice([0, 1, 5])}
    for name in ("bos", "eos", "return_state"):
        if rng.random() < 0.3:
            body[name] = rng.random() < 0.5
    kind = "/score"
    outcome: Outcome = "answered"
    known = states.get(model, ())
    if known and rng.random() < 0.2:
        body |= {"state": rng.choice(known)}
        body.pop("context", None)
        kind, outcome = "/score after a state", "either"
    if rng.random() < 0.2:
        body["unknown"] = rng.choice(["unk", "skip", "error"])
        outcome = "either"
    return posted(kind, "/score", body, outcome)


def _infill(rng: random.Random, models: Models, _: States) -> Wire:
    body: dict[str, Any] = {"model": rng.choice(models.language), "prefix": text(rng, 300)}
    body["suffix"] = text(rng, 300)
    if rng.random() < 0.2:
        del body["prefix"], body["suffix"]
        body["text"] = "___".join(text(rng, 60) for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.5:
        body["candidates"] = [text(rng, 12) for _ in range(1 + size(rng, 20))]
    else:
        body |= {"num_proposals": rng.randint(1, 8), "length": rng.randint(1, 6)}
    if rng.random() < 0.1:
        body["pattern"] = rng.choice(_PATTERNS)
    if rng.random() < 0.2:
        body["bos"] = False
    return posted("/infill", "/infill", body)


def _score_pairs(rng: random.Random, models: Models, _: States) -> Wire:
    texts = one_or_more(rng, _target, 8)
    sources = _source(rng) if isinstance(texts, str) else [_source(rng) for _ in texts]
    body: dict[str, Any] = {"model": rng.choice(models.pairs), "text": texts, "source": sources}
    if rng.random() < 0.4:
        body["tokens"] = True
    return posted("/score of pairs", "/score", body, "either")


def _score_lines(rng: random.Random, models: Models, _: States) -> Wire:
    rows = []
    for i in range(size(rng, 40)):
        row: dict[str, Any] = {"text": text(rng, 300), "id": i}
        if rng.random() < 0.3:
            row["context"] = text(rng, 100)
        rows.append(json.dumps(row) if rng.random() < 0.97 else "{not JSON")
    path = f"/score?model={rng.choice(models.language)}"
    body = "".join(row + "\n" for row in rows).encode()
    return Wire("/score of NDJSON", "POST", path, body, "application/x-ndjson", 3, None, "answered")


def _score_stream(rng: random.Random, models: Models, _: States) -> Wire:
    query: dict[str, Any] = {"model": rng.choice(models.language)}
    most = 400
    if rng.random() < 0.5:
        # Each running total needs a model run of its own: one per character for short texts only.
        every = rng.choice([1, 100, 65_536])
        query |= {"mode": "total", "every": every}
        most = 20 if every == 1 else most
    if rng.random() < 0.3:
        query["unknown"] = rng.choice(["unk", "skip", "error"])
    body = "\n".join(text(rng, most) for _ in range(size(rng, 20))).encode()
    path = f"/score?{urlencode(query)}"
    return Wire("/score of text", "POST", path, body, "text/plain", 3, None, "either")


def _translate(rng: random.Random, models: Models, _: States) -> Wire:
    sources = one_or_more(rng, _source, 16)
    body: dict[str, Any] = {"model": rng.choice(models.pairs), "source": sources}
    if rng.random() < 0.3:
        body |= {"temperature": rng.choice([0.5, 1.0, 2.0]), "seed": rng.randrange(2**63)}
        body |= {"top_k": rng.randint(1, 50)} if rng.random() < 0.5 else {}
    elif rng.random() < 0.7:
        body["beam_size"] = rng.randint(1, 8)
    options: dict[str, Callable[[], Any]] = {
        "num_hypotheses": lambda: rng.randint(1, min(4, body.get("beam_size", 4))),
        "length_penalty": lambda: rng.choice([0.0, 0.6, 2.0]),
        "max_tokens": lambda: rng.randint(1, 40),
        "target_prefix": lambda: _target(rng)[:2],
        "tokens": lambda: True,
        "return_alignments": lambda: True,
        "copy_unknown": lambda: True,
        "unknown": lambda: rng.choice(["unk", "skip", "error"]),
        "stream": lambda: True,
    }
    body |= {name: draw() for name, draw in options.items() if rng.random() < 0.25}
    return posted("/translate streamed" if "stream" in body else "/translate", "/translate", body)


def _tokens(rng: random.Random, models: Models, _: States) -> Wire:
    model = rng.choice([*models.language, *models.pairs, *models.classifiers, *models.taggers])
    if rng.random() < 0.5:
        body: dict[str, Any] = {"model": model, "prompt": text(rng)}
        return posted("/tokenize", "/tokenize", body)
    body = {"model": model, "tokens": [rng.randrange(40) for _ in range(size(rng, 300))]}
    return posted("/detokenize", "/detokenize", body)


def _looked_at(rng: random.Random, models: Models, _: States) -> Wire:
    name = rng.choice([*models.language, *models.pairs, *models.classifiers, *models.taggers])
    paths = (
        "/models", f"/models/{name}", f"/models/{name}/vocab", f"/tokenizer_info?model={name}",
        "/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/", "/page/app.js",
        "/v1/models", "/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{name}",
        f"/v2/models/{name}/ready", "/libretranslate/languages", "/libretranslate/health",
        "/libretranslate/frontend/settings", "/v1/models/nobody", "/models/..%2f..%2fetc",
    )  # fmt: skip
    method = "HEAD" if rng.random() < 0.1 else "GET"
    return Wire("looked at", method, rng.choice(paths))


# --- other servers' APIs --------------------------------------------------------------------------


def _completions(rng: random.Random, models: Models, _: States) -> Wire:
    ids = [rng.randrange(4, 30) for _ in range(size(rng, 100))]
    body: dict[str, Any] = {
        "model": rng.choice(models.language),
        "prompt": rng.choice([text(rng), [text(rng, 200) for _ in range(3)], ids or "", [ids] * 2]),
        "max_tokens": size(rng, _MOST_TOKENS),
    }
    options: dict[str, Callable[[], Any]] = {
        "temperature": lambda: rng.choice([0, 0.7, 1, 2]),
        "n": lambda: rng.randint(1, 3),
        "best_of": lambda: rng.randint(3, 5),
        "echo": lambda: True,
        "logprobs": lambda: rng.choice([0, 1, 5, True]),
        "stop": lambda: rng.choice([".", ["\n", "the"], ""]),
        "logit_bias": lambda: {str(rng.randrange(4, 40)): rng.uniform(-100, 10)},
        "seed": lambda: rng.randrange(-5, 1000),
        "user": lambda: "somebody",
        "ignore_eos": lambda: True,
        "top_p": lambda: 0.9,
        "frequency_penalty": lambda: 1.5,
    }
    body |= {name: draw() for name, draw in options.items() if rng.random() < 0.2}
    if rng.random() < 0.3:
        body.pop("best_of", None)
        body |= {"stream": True, "stream_options": {"include_usage": rng.random() < 0.5}}
        return posted("/v1 streamed", "/v1/completions", body)
    return posted("/v1", "/v1/completions", body)


def _inference(rng: random.Random, models: Models, _: States) -> Wire:
    of_pairs = rng.random() < 0.3
    name = rng.choice(models.pairs if of_pairs else models.language)
    body: dict[str, Any] = {"text_input": _source(rng) if of_pairs else text(rng)}
    parameters = {"max_tokens": 1 + size(rng, 60), "details": rng.random() < 0.5}
    body |= {"parameters": parameters} if rng.random() < 0.7 else parameters
    how = "generate_stream" if rng.random() < 0.4 else "generate"
    return posted(f"/v2 {how}", f"/v2/models/{name}/{how}", body)


def _libretranslate(rng: random.Random, models: Models, _: States) -> Wire:
    texts = one_or_more(rng, _source, 5)
    fields: dict[str, Any] = {"q": texts, "source": "en", "target": "de"}
    fields["model"] = rng.choice(models.pairs)
    if rng.random() < 0.1:
        return posted("LibreTranslate", "/libretranslate/detect", {"q": texts})
    if rng.random() < 0.3:
        fields["alternatives"] = rng.randint(0, 3)
    if rng.random() < 0.3:
        fields |= {"format": "html", "q": f"<p>{_source(rng)} <b>{_source(rng)}</b><br></p>"}
    path = "/libretranslate/translate"
    if rng.random() < 0.3:
        form = fields | {"q": fields["q"] if isinstance(fields["q"], str) else _source(rng)}
        body = urlencode(form, errors="replace").encode()
        return Wire("LibreTranslate", "POST", path, body, "application/x-www-form-urlencoded")
    return posted("LibreTranslate", path, fields)


# --- large and bad --------------------------------------------------------------------------------


def _large(rng: random.Random, models: Models, _: States) -> Wire:
    model = rng.choice(models.language)
    long = "the white rabbit put on his spectacles. " * 2500
    of_tokens = {"tokens": True, "top_logprobs": 2}
    bodies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/score", {"model": model, "text": long[: 10_000 + size(rng, 90_000)]}),
        ("/score", {"model": model, "text": long[:20_000], **of_tokens}),
        ("/score", {"model": model, "text": [text(rng, 60) for _ in range(600)]}),
        ("/generate", {"model": model, "prompt": [text(rng, 40) for _ in range(200)],
                       "max_tokens": 20}),
        ("/generate", {"model": model, "prompt": long[: size(rng, 100_000)], "max_tokens": 5}),
        ("/translate", {"model": rng.choice(models.pairs), "source": ["rabbit"] * 300,
                        "unknown": "skip"}),
        ("/classify", {"model": rng.choice(models.classifiers),
                       "text": [text(rng, 60) for _ in range(600)], "top": 2}),
        ("/tag", {"model": rng.choice(models.taggers), "text": ["a rabbit"] * 600}),
    )  # fmt: skip
    path, body = rng.choice(bodies)
    return posted("large", path, body)


def _mutated(rng: random.Random, models: Models, states: States) -> Wire:
    """A good request with one or two bad values in it."""
    makers = (_generate, _score, _translate, _completions, _inference, _tokens)
    maker = rng.choice((*makers, soak_labels.classify, soak_labels.tag))
    wire = maker(rng, models, states)
    body: dict[str, Any] = json.loads(wire.body or b"{}")
    junk: Any = rng.choice(
        (None, True, -1, 0, 2**70, 1e308, "", "x", "\ud800", [], [[]], {}, {"a": 1}, [1, "a"])
    )
    for _ in range(rng.randint(1, 2)):
        body[rng.choice([*body, "no_such_field"])] = junk
    return replace(wire, kind="mutated", body=json.dumps(body).encode(), outcome="either")


def _bad(rng: random.Random, models: Models, states: States) -> Wire:
    model = rng.choice(models.language)
    good = _generate(rng, models, states).body or b""
    cut = good[: rng.randrange(1, len(good))]
    post, json_type = "POST", JSON
    rows: tuple[tuple[str, str, bytes | None, str], ...] = (
        (post, "/generate", cut, json_type),
        (post, "/generate", good, "text/html"),
        (post, "/generate", b"\xff\xfe" + good, json_type),
        (post, "/generate", b"[" * rng.randint(1, 5000), json_type),
        (post, "/generate", b'{"max_tokens": ' + b"9" * 5000 + b"}", json_type),
        (post, "/generate", b'{"temperature": NaN, "model": "' + model.encode() + b'"}', json_type),
        (post, "/generate", b"", json_type),
        (post, "/generate?x=1", b"null", json_type),
        (post, "/nowhere" + "x" * size(rng, 3000), good, json_type),
        ("DELETE", "/models", None, json_type),
        ("PUT", "/generate", good, json_type),
        (post, "/score?mode=neither", b"x", "text/plain"),
        (post, "/score?model=nobody", b"x\n" * 50, "application/x-ndjson"),
        (post, "/v1/completions", b'{"model": "nobody", "prompt": "x"}', json_type),
        (post, "/v1/chat/completions", good, json_type),
        (post, "/v2/models/nobody/infer", b"{}", json_type),
        (post, "/libretranslate/translate_file", b"x", json_type),
        (post, "/classify", b'{"text": "x", "model": "nobody"}', json_type),
        (post, "/classify?mode=neither", b"x", "text/plain"),
        (post, "/tag", b'{"text": ["x"], "top": 0}', json_type),
    )
    bodies: tuple[dict[str, Any], ...] = (
        {"model": "nobody", "prompt": "x"},
        {"model": model, "max_tokens": 10**6},
        {"model": model, "n": 10**6},
        {"model": model, "prompt": "x" * 100_001},
        {"model": model, "prompt": ["x"] * 1025},
        {"model": model, "prompt": "e" + "\u0301\u0323" * rng.randint(40, 5000)},
        {"model": model, "pattern": rng.choice(_BAD_PATTERNS)},
        {"model": model, "pattern": "a", "choices": ["a"]},
        {"model": model, "choices": ["☃"]},
        {"model": model, "state": rng.choice(["", "x" * 5000, "AAAA"])},
        {"model": model, "stop": ["x"] * 17},
        {"model": rng.choice(models.pairs), "prompt": "x"},
    )
    if rng.random() < 0.5:
        method, path, body, content_type = rng.choice(rows)
        return Wire("bad", method, path, body, content_type, outcome="refused")
    return posted("bad", "/generate", rng.choice(bodies), "refused")


_MAKERS: Sequence[_Maker] = (
    _generate, _score, _infill, _score_pairs, _score_lines, _score_stream, _translate, _tokens,
    _looked_at, _completions, _inference, _libretranslate, _large, _mutated, _bad,
    soak_labels.classify, soak_labels.tag, soak_labels.lines, soak_labels.score,
)  # fmt: skip
_WEIGHTS = (16, 12, 4, 4, 6, 6, 12, 4, 6, 8, 5, 5, 0.3, 8, 8, 7, 6, 6, 3)


# --- pieces of bodies -----------------------------------------------------------------------------


def _source(rng: random.Random) -> str:
    """A source, from the training domain of a model or outside it."""
    draws = (lambda: rng.choice(_DATES), lambda: rng.choice(_WORDS), lambda: text(rng, 40))
    return rng.choice(draws)()


def _target(rng: random.Random) -> str:
    return rng.choice(["27. Oktober 2014", "2014-10-27", "AH N R OW L", "Datei speichern", ""])


def _letters(rng: random.Random, most: int) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=rng.randint(1, most)))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []
