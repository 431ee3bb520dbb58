"""BentoML with adaptive batching: the handler decodes a batch of requests together.

Tried, with 32 clients on the same two cores, 50 to 200 tokens a text; rough tokens a second for an
LSTM of 2 x 512 and a GRU of 1 x 384:
1 worker on 2 threads: 8,800 to 14,000 and 33,000; 2 workers on a thread each (kept): 7,200 to
11,200 and 51,000 to 53,000, interleaved on the LSTM no other than one worker; 2
workers on 2 threads: 6,200 to 7,500 (LSTM). Batches of at most 64 instead of 32 gained nothing.
BentoML finds its wait window itself, from how long batches take; under a steady load one worker
sent a batch of 1 and a batch of the other 31 in turns.
"""

import argparse
import os
import sys
from pathlib import Path

import bentoml
from pydantic import BaseModel

sys.path.append(str(Path(__file__).parents[1]))
from decoding import Decoder, Request

MAX_BATCH_SIZE = 32
MAX_LATENCY_MS = 60_000  # after this, BentoML answers 503; it finds its wait window itself
WORKERS = 2
ONNX_THREADS = 1
WEIGHTS = "PEER_WEIGHTS"  # environment variable: BentoML's own processes import this file again


class GenerateBody(BaseModel):
    """A text to continue."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


@bentoml.service(
    workers=WORKERS,
    threads=1,
    traffic={"timeout": 300},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"sample_rate": 0.0},
)
class Generation:
    """Continue texts."""

    def __init__(self) -> None:
        self._decoder = Decoder(Path(os.environ[WEIGHTS]), ONNX_THREADS)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=MAX_LATENCY_MS)
    def generate(self, requests: list[GenerateBody]) -> list[str]:
        """Decode a batch together; each client sends a list of one."""
        return self._decoder.generate([Request(**x.model_dump()) for x in requests])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "bentoml", "serve", "server:Generation"]
    command += ["--working-dir", str(folder), "--host", "127.0.0.1", "--port", str(arguments.port)]
    os.environ[WEIGHTS] = str(arguments.weights.resolve())
    os.execv(sys.executable, command)  # noqa: S606
