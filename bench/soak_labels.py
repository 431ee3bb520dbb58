"""Random requests for labels: of texts, of their characters, in streams, and scores of labels."""

import json
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from bench.soak_wire import Models, Outcome, States, Wire, one_or_more, posted, size, text

_MOST_CHARS = 150  # of a text, which most labelers read whole
_MOST_INPUTS = 16
_POLICIES = ("unk", "skip", "error")


def classify(rng: random.Random, models: Models, states: States) -> Wire:
    """Labels of texts; if the model takes states, perhaps continued from one."""
    model = rng.choice(models.classifiers)
    body: dict[str, Any] = {"model": model, "text": one_or_more(rng, _text, _MOST_INPUTS)}
    options: dict[str, Callable[[], Any]] = {
        "top": lambda: rng.randint(1, 50),
        "min_probability": lambda: rng.choice([0.0, 0.01, 0.5, 1.0]),
        "unknown": lambda: rng.choice(_POLICIES),
    }
    # Of models that read forward; others refuse them.
    forward: dict[str, Callable[[], Any]] = {
        "steps": lambda: rng.random() < 0.5,
        "return_state": lambda: rng.random() < 0.5,
    }
    body |= {name: draw() for name, draw in options.items() if rng.random() < 0.3}
    further = {name: draw() for name, draw in forward.items() if rng.random() < 0.2}
    known = states.get(model, ())
    if known and rng.random() < 0.3:
        further["state"] = rng.choice(known)
    doubtful = any(further.values()) or body.get("unknown") == "error"
    return posted("/classify", "/classify", body | further, _outcome(doubtful=doubtful))


def tag(rng: random.Random, models: Models, _: States) -> Wire:
    """Tags of texts."""
    body: dict[str, Any] = {"model": rng.choice(models.taggers)}
    body["text"] = one_or_more(rng, _text, _MOST_INPUTS)
    if rng.random() < 0.3:
        body["n"] = rng.randint(1, 5)
    if rng.random() < 0.3:
        body |= {"places": True, "top": rng.randint(1, 20)}
    if rng.random() < 0.3:
        body["unknown"] = rng.choice(_POLICIES)
    return posted("/tag", "/tag", body, _outcome(doubtful=body.get("unknown") == "error"))


def lines(rng: random.Random, models: Models, _: States) -> Wire:
    """A stream of texts, or of one text in parts, which only some models read."""
    path, names = rng.choice((("/classify", models.classifiers), ("/tag", models.taggers)))
    query: dict[str, Any] = {"model": rng.choice(names)}
    outcome: Outcome = "answered"
    if path == "/classify" and rng.random() < 0.3:
        query |= {"mode": "total", "every": rng.choice([1, 100, 65_536])}
        outcome = "either"
    if rng.random() < 0.3:
        query["top" if path == "/classify" else "n"] = rng.randint(1, 3)
    texts = [_text(rng) for _ in range(size(rng, 40))]
    content_type, body = "text/plain", "\n".join(texts)
    if "mode" not in query and rng.random() < 0.5:
        content_type = "application/x-ndjson"
        rows = [json.dumps({"text": each, "id": i}) for i, each in enumerate(texts)]
        rows = [row if rng.random() < 0.97 else "{not JSON" for row in rows]
        body = "".join(row + "\n" for row in rows)
    url = f"{path}?{urlencode(query)}"
    kind = f"{path} of lines"
    return Wire(kind, "POST", url, body.encode(), content_type, 3, None, outcome)


def score(rng: random.Random, models: Models, _: States) -> Wire:
    """log P(label | text) of labels that a model may not have."""
    texts = one_or_more(rng, _text, 5)
    label = rng.choice(["de", "en", "fr", "l0", "l1"])
    labels = label if isinstance(texts, str) else [label] * len(texts)
    body = {"model": rng.choice(models.classifiers), "text": texts, "label": labels}
    return posted("/score of labels", "/score", body)


def _outcome(*, doubtful: bool) -> Outcome:
    return "either" if doubtful else "answered"


def _text(rng: random.Random) -> str:
    return text(rng, _MOST_CHARS)
