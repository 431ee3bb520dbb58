"""Baselines in PyTorch: a FastAPI service that labels the texts of a request in padded batches.

The network is the exporter's own, in single precision. Milliseconds for 1,000 texts of 12 to 40
characters, an LSTM of 1 x 128 units both ways, two cores, in the process itself:

    batches of                                    32    64   128   256
    one after another, two threads inside                204   146   123
    one after another, one thread                        146   144   156
    in two threads                                83     75    77    81
    packed sequences instead, one thread         185    172   158   167
    without oneDNN, one thread                   208    189   193   202

`--way request` is what most people would write: all texts of a request, in their order, are one
batch, padded to the longest, on torch's own threads. The other ways sort the texts first, and are
the best of the table: `--way sorted` is one batch after another, `--way two` two at a time.

    python -m bench.torch_labels WEIGHTS --port 8100 --way request
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from training.config import LabelerNetworkConfig
from training.loop.cpus import usable_cpus
from training.networks.labeler import Head, Labeler


@dataclass(frozen=True, slots=True)
class Way:
    """How a request becomes batches."""

    threads: int  # that run batches
    texts: int | None  # of a sorted batch; None: all texts are one batch, in their order


WAYS = {"request": Way(1, None), "sorted": Way(1, 256), "two": Way(2, 64)}


class Body(BaseModel):
    """Texts, and how many labels of each are wanted."""

    text: list[str]
    top: int = 1


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a text, or of each of its characters; likeliest first."""

    names: list[str]
    probabilities: list[float]


class Service:
    """A model and the threads that run it."""

    def __init__(self, weights: Path, way: Way) -> None:
        config: dict[str, Any] = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        self._ids = {token: i for i, token in enumerate(config["vocab"])}
        self._labels: list[str] = config["labels"]
        network = LabelerNetworkConfig.model_validate(config["network"])
        head = Head(num_labels=len(self._labels), pooling=config["pooling"])
        self._model = Labeler(network, head, len(self._ids))
        self._model.load_state_dict(load_file(weights / "weights.safetensors"))
        self._model.eval()
        self._batch_texts = way.texts
        inside = max(1, usable_cpus() // way.threads)
        self._pool = ThreadPoolExecutor(
            way.threads, initializer=torch.set_num_threads, initargs=(inside,)
        )

    def classify(self, texts: Sequence[str], top: int) -> list[Labels]:
        """The likeliest labels of each text."""
        results: list[Labels] = [Labels([], [])] * len(texts)
        for chosen, logprobs in self._read(texts):
            found, ids = logprobs.topk(top, dim=1)
            rows = zip(chosen, ids.tolist(), found.exp().tolist(), strict=True)
            for i, row, probabilities in rows:
                results[i] = Labels([self._labels[id_] for id_ in row], probabilities)
        return results

    def tag(self, texts: Sequence[str]) -> list[Labels]:
        """The likeliest label of each character of each text."""
        results: list[Labels] = [Labels([], [])] * len(texts)
        for chosen, logprobs in self._read(texts):
            found, ids = logprobs.max(dim=2)
            rows = zip(chosen, ids.tolist(), found.exp().tolist(), strict=True)
            for i, row, probabilities in rows:
                places = slice(1, 1 + len(texts[i]))
                names = [self._labels[id_] for id_ in row[places]]
                results[i] = Labels(names, probabilities[places])
        return results

    def _read(self, texts: Sequence[str]) -> list[tuple[list[int], Tensor]]:
        """The log-probabilities of all texts, in batches."""
        ids = [
            [BOS_ID, *(self._ids.get(character, UNK_ID) for character in text), EOS_ID]
            for text in texts
        ]
        batches = self._batches([len(row) for row in ids])
        return list(zip(batches, self._pool.map(lambda x: self._run(ids, x), batches), strict=True))

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """The texts of each batch."""
        count, size = len(lengths), self._batch_texts
        if size is None:
            return [list(range(count))] if count else []
        order = sorted(range(count), key=lengths.__getitem__, reverse=True)
        return [order[start : start + size] for start in range(0, count, size)]

    @torch.inference_mode()
    def _run(self, ids: Sequence[list[int]], chosen: Sequence[int]) -> Tensor:
        lengths = [len(ids[i]) for i in chosen]
        longest = max(lengths)
        rows = torch.tensor([ids[i] + [PAD_ID] * (longest - len(ids[i])) for i in chosen])
        return torch.log_softmax(self._model(rows, torch.tensor(lengths)), dim=-1)


def create_app(service: Service) -> FastAPI:
    """POST /classify and /tag, in FastAPI's own threads."""
    app = FastAPI()

    @app.post("/classify")
    def classify(body: Body) -> dict[str, Any]:
        found = service.classify(body.text, body.top)
        return {"results": [_pairs(x) for x in found]}

    @app.post("/tag")
    def tag(body: Body) -> dict[str, Any]:
        return {"results": [_pairs(x) for x in service.tag(body.text)]}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return app


def _pairs(labels: Labels) -> list[dict[str, Any]]:
    return [
        {"label": name, "probability": probability}
        for name, probability in zip(labels.names, labels.probabilities, strict=True)
    ]


def main() -> None:
    """Serve random or trained weights."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--way", choices=sorted(WAYS), default="request")
    options = parser.parse_args()
    app = create_app(Service(options.weights, WAYS[options.way]))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
