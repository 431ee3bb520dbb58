"""Triton with nvidia-pytriton: the dynamic batcher, and a handler that decodes a batch together.

Tried, with 32 clients on the same two cores, 50 to 200 tokens a text; rough tokens a second for an
LSTM of 2 x 512 and a GRU of 1 x 384:
a queue delay of 5 ms 11,400 to 14,700 and 34,000 to 38,200, 10 ms 11,100 and 42,300, 20 ms 14,800
and 42,800 to 47,000 (kept), 50 ms 16,600 and 27,500; 1 thread for onnxruntime instead of 2 a third
less for the LSTM. With 8 clients (LSTM) 5 ms gives 6,700, 20 ms 7,900. Batches of at most 64
instead of 32 gained nothing.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

sys.path.append(str(Path(__file__).parents[1]))
from decoding import Decoder, Request

MAX_BATCH_SIZE = 32
BATCH_WINDOW_US = 20_000
ONNX_THREADS = 2
INPUTS = [
    Tensor(name="prompt", dtype=bytes, shape=(1,)),
    Tensor(name="max_tokens", dtype=np.int64, shape=(1,)),
    Tensor(name="temperature", dtype=np.float64, shape=(1,)),
    Tensor(name="seed", dtype=np.int64, shape=(1,)),
]


def infer_function(decoder: Decoder) -> Any:
    """The handler: arrays [B, 1] in, texts [B, 1] out."""

    @batch
    def infer(**inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bytes_]]:
        columns = [inputs[tensor.name].ravel().tolist() for tensor in INPUTS]
        requests = [
            Request(
                prompt=prompt.decode(), max_tokens=max_tokens, temperature=temperature, seed=seed
            )
            for prompt, max_tokens, temperature, seed in zip(*columns, strict=True)
        ]
        texts = [[text.encode()] for text in decoder.generate(requests)]
        return {"text": np.array(texts, np.bytes_)}

    return infer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    # Handle SIGTERM like Ctrl-C: otherwise it leaves its processes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=arguments.port,
        grpc_address="127.0.0.1",
        grpc_port=arguments.port + 1,
        allow_metrics=False,
        log_verbose=0,
    )
    with (
        tempfile.TemporaryDirectory(prefix="pytriton-") as folder,
        Triton(config=config, workspace=Path(folder) / "workspace") as triton,
    ):
        triton.bind(
            model_name="generation",
            infer_func=infer_function(Decoder(arguments.weights, ONNX_THREADS)),
            inputs=INPUTS,
            outputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=BATCH_WINDOW_US),
            ),
        )
        triton.serve()
