"""FastAPI with a decode loop in onnxruntime for each request, in a pool of threads.

Tried, with 32 clients on the same two cores, 50 to 200 tokens a text; rough tokens a second for an
LSTM of 2 x 512 and a GRU of 1 x 384, onnxruntime on one thread a run and not spinning:
1 pool thread 2,400 and 6,300 (beside other work: only to compare with 2,200 and 6,500 of two then),
2 pool threads 6,800 and 17,800 (kept), 3 6,100 and 14,500, 4 fewer than 3. Binding the inputs and
outputs instead of calling `run` gave 6 and 15 percent for a batch of one.
"""

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

sys.path.append(str(Path(__file__).parents[1]))
from decoding import Decoder, Request

POOL_THREADS = 2


class GenerateBody(BaseModel):
    """A text to continue."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


class ScoreBody(BaseModel):
    """Texts to score."""

    texts: list[str]


def create_app(weights: Path) -> FastAPI:
    """The application that serves one model."""
    app = FastAPI()
    decoder = Decoder(weights)
    pool = ThreadPoolExecutor(POOL_THREADS)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {}

    @app.post("/generate")
    async def generate(body: GenerateBody) -> dict[str, str]:
        requests = [Request(**body.model_dump())]
        (text,) = await asyncio.get_running_loop().run_in_executor(pool, decoder.generate, requests)
        return {"text": text}

    @app.post("/score")
    async def score(body: ScoreBody) -> dict[str, list[float]]:
        scores = await asyncio.get_running_loop().run_in_executor(pool, decoder.score, body.texts)
        return {"logprobs": scores}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(arguments.weights), host="127.0.0.1", port=arguments.port, access_log=False
    )
