"""How to talk to each peer over HTTP: its paths, its bodies, and how to read its answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Request(Protocol):
    """A text to continue; temperature 0 is greedy."""

    @property
    def prompt(self) -> str:
        """The text to continue."""

    @property
    def max_tokens(self) -> int:
        """The maximum number of characters to write."""

    @property
    def temperature(self) -> float:
        """The divisor of the logits; 0 is greedy."""

    @property
    def seed(self) -> int:
        """The seed of this request's random generator."""


def _fields(request: Request) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }


def _json_body(request: Request) -> bytes:
    return json.dumps(_fields(request)).encode()


def _json_text(answer: bytes) -> str:
    return str(json.loads(answer)["text"])


def _json_score_body(texts: Sequence[str]) -> bytes:
    return json.dumps({"texts": list(texts)}).encode()


def _json_scores(answer: bytes) -> list[float]:
    scores: list[float] = json.loads(answer)["logprobs"]
    return scores


def _bentoml_body(request: Request) -> bytes:
    return json.dumps({"requests": [_fields(request)]}).encode()


def _bentoml_text(answer: bytes) -> str:
    (text,) = json.loads(answer)
    return str(text)


def _inference_body(request: Request) -> bytes:
    """A batch of one in the Open Inference Protocol, version 2."""
    types = {"prompt": "BYTES", "max_tokens": "INT64", "temperature": "FP64", "seed": "INT64"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": types[name], "data": [value]}
        for name, value in _fields(request).items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def _inference_text(answer: bytes) -> str:
    (output,) = json.loads(answer)["outputs"]
    (text,) = output["data"]
    return str(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to serve the same weights; bodies and answers are JSON."""

    name: str  # also its folder
    label: str  # for tables
    batches: bool  # whether requests are decoded together
    path: str = "/generate"
    body: Callable[[Request], bytes] = _json_body
    text: Callable[[bytes], str] = _json_text
    ready_path: str = "/ready"  # GET; 200 once requests are answered
    score_path: str | None = None
    score_body: Callable[[Sequence[str]], bytes] = _json_score_body
    score_of: Callable[[bytes], list[float]] = _json_scores


_ALL = (
    Peer(name="torch_loop", label="FastAPI + PyTorch loop", batches=False),
    Peer(name="onnx_loop", label="FastAPI + onnxruntime loop", batches=False, score_path="/score"),
    Peer(
        name="litserve",
        label="LitServe",
        batches=True,
        path="/predict",
        ready_path="/health",
        score_path="/score",
    ),
    Peer(
        name="mlserver",
        label="MLServer",
        batches=True,
        path="/v2/models/generation/infer",
        body=_inference_body,
        text=_inference_text,
        ready_path="/v2/models/generation/ready",
    ),
    Peer(
        name="bentoml",
        label="BentoML",
        batches=True,
        path="/generate",
        body=_bentoml_body,
        text=_bentoml_text,
        ready_path="/readyz",
    ),
    Peer(
        name="pytriton",
        label="Triton (PyTriton)",
        batches=True,
        path="/v2/models/generation/infer",
        body=_inference_body,
        text=_inference_text,
        ready_path="/v2/models/generation/ready",
    ),
)
PEERS = {peer.name: peer for peer in _ALL}
