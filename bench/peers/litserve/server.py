"""LitServe with its batching: the handler decodes a batch of requests together.

Tried, with 32 clients on the same two cores, 50 to 200 tokens a text; rough tokens a second for an
LSTM of 2 x 512 and a GRU of 1 x 384:
1 worker on 2 threads: 15,400 and 38,700 at a window of 5 ms, 16,500 and 45,400 at 20 ms;
2 workers on a thread each: 13,800 and 51,400 at 5 ms, 17,000 and 50,500 at 20 ms (kept; interleaved
on the LSTM the number of workers made no difference). With 8 clients 5 ms is better: 8,800 to 6,500
(LSTM). Batches of at most 64 instead of 32 gained nothing.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve

sys.path.append(str(Path(__file__).parents[1]))
from decoding import Decoder, Request

MAX_BATCH_SIZE = 32
BATCH_WINDOW_S = 0.02
WORKERS = 2
ONNX_THREADS = 1


class Generation(litserve.LitAPI):
    """Continue texts."""

    def __init__(self, weights: Path) -> None:
        super().__init__(
            max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WINDOW_S, api_path="/predict"
        )
        self._weights = weights

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model, once a worker."""
        self.decoder = Decoder(self._weights, ONNX_THREADS)

    def decode_request(self, request: dict[str, Any]) -> Request:
        """A body of JSON."""
        return Request.of(request)

    def batch(self, inputs: list[Request]) -> list[Request]:
        """The requests as they are."""
        return inputs

    def predict(self, requests: list[Request]) -> list[str]:
        """Decode them together."""
        return self.decoder.generate(requests)

    def unbatch(self, output: list[str]) -> list[str]:
        """A text a request."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """The answer."""
        return {"text": output}


class Scoring(litserve.LitAPI):
    """Score texts: a request is a batch already."""

    def __init__(self, weights: Path) -> None:
        super().__init__(api_path="/score")
        self._weights = weights

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model, once a worker."""
        self.decoder = Decoder(self._weights, ONNX_THREADS)

    def decode_request(self, request: dict[str, Any]) -> Sequence[str]:
        """A body of JSON."""
        texts: list[str] = request["texts"]
        return texts

    def predict(self, texts: Sequence[str]) -> list[float]:
        """All of them, in batches of similar lengths."""
        return self.decoder.score(texts)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """The answer."""
        return {"logprobs": output}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    # Handle SIGTERM like Ctrl-C: otherwise it leaves its processes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = litserve.LitServer(
        [Generation(arguments.weights), Scoring(arguments.weights)],
        accelerator="cpu",
        workers_per_device=WORKERS,
        timeout=300,
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
