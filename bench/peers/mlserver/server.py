"""MLServer with adaptive batching: the runtime decodes a batch of requests together.

Tried, with 32 clients on the same two cores, 50 to 200 tokens a text; rough tokens a second for an
LSTM of 2 x 512 and a GRU of 1 x 384:
1 worker on 2 threads, window 5 ms: 9,800 to 14,200 and 19,800 to 25,000; 20 ms (kept): 12,800 to
14,700 and 28,600 to 46,000; 50 ms: 18,000 and 47,800; 2 workers on a thread each, 20 ms: 14,100 and
41,000; no worker but the server's own process: slower. With 8 clients (LSTM) 5 ms gives 8,300, 20
ms 7,200, 50 ms 5,600, since a batch that does not fill waits for all of the window.
uvloop is pinned: MLServer's workers do not start with 0.22 and later.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.cli.main import main
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.append(str(Path(__file__).parents[1]))
from decoding import Decoder, Request

MAX_BATCH_SIZE = 32
BATCH_WINDOW_S = 0.02
WORKERS = 1
ONNX_THREADS = 2


class Generation(MLModel):
    """Continue texts: inputs `prompt`, `max_tokens`, `temperature` and `seed`, [B, 1] each."""

    async def load(self) -> bool:
        """Load the model, once a worker."""
        self._decoder = Decoder(Path(self.settings.parameters.extra["weights"]), ONNX_THREADS)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Decode a batch together."""
        inputs = {x.name: x for x in payload.inputs}
        prompts = StringCodec.decode_input(inputs["prompt"])
        numbers = [
            NumpyCodec.decode_input(inputs[name]).ravel().tolist()
            for name in ("max_tokens", "temperature", "seed")
        ]
        requests = [
            Request(prompt=prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
            for prompt, max_tokens, temperature, seed in zip(prompts, *numbers, strict=True)
        ]
        texts = self._decoder.generate(requests)
        output = StringCodec.encode_output("text", texts)
        return InferenceResponse(model_name=self.name, outputs=[output])


def write_configuration(folder: Path, weights: Path, port: int) -> None:
    """What `mlserver start` reads; gRPC and metrics listen on the two ports above `port`."""
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "metrics_endpoint": None,
        "metrics_dir": str(folder),
        "parallel_workers": WORKERS,
        "debug": False,
        "environments_dir": str(folder / "environments"),
    }
    model = {
        "name": "generation",
        "implementation": "server.Generation",
        "max_batch_size": MAX_BATCH_SIZE,
        "max_batch_time": BATCH_WINDOW_S,
        "parameters": {"extra": {"weights": str(weights.resolve())}},
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlserver-") as folder:
        write_configuration(Path(folder), arguments.weights, arguments.port)
        sys.argv[1:] = ["start", folder]
        main()
