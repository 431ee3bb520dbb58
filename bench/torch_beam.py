"""A baseline in PyTorch: a batched beam search, and a FastAPI service that runs one per request.

N sources, K beams, V target vocabulary. The loop keeps everything in tensors and takes hypotheses
out when they end. Sources of similar lengths are searched together and leave when they are done.

    python -m bench.torch_beam RUN --port 8100
"""

import argparse
import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Normalization, normalize
from service.bundle.tokenization import Tokenizer
from training.data.pair_batches import pad_sources
from training.data.pairs import Ids
from training.loop.encoder_decoder import load_best
from training.networks.attention import Memory
from training.networks.encoder_decoder import EncoderDecoder

_NEVER = [PAD_ID, BOS_ID, UNK_ID]
# Sources searched together. Words a second for 32 to 512, on a busy machine: 470, 600, 640, 840,
# 640.
MAX_SOURCES = 256


@torch.inference_mode()
def beam_search(
    model: EncoderDecoder, sources: Sequence[Ids], beam_size: int, extra_tokens: int = 12
) -> list[list[int]]:
    """The best target of every source, score = sum logprob / length."""
    results: list[list[int]] = [[] for _ in sources]
    order = np.argsort([len(x) for x in sources], kind="stable").tolist()
    for start in range(0, len(order), MAX_SOURCES):
        chosen = order[start : start + MAX_SOURCES]
        padded, lengths = pad_sources([sources[i] for i in chosen])
        memory = model.encode(torch.from_numpy(padded), torch.from_numpy(lengths))
        limit = int(lengths.max()) + extra_tokens
        for i, found in zip(chosen, _search(model, memory, beam_size, limit), strict=True):
            results[i] = found
    return results


def _search(model: EncoderDecoder, memory: Memory, width: int, max_tokens: int) -> list[list[int]]:
    count = len(memory.summary)
    states = [x.repeat_interleave(width, 0) for x in model.decoder.initial_states(memory.summary)]
    parts = [
        x.repeat_interleave(width, 0)
        for x in (memory.values, memory.keys, memory.mask, memory.summary)
    ]
    sums = torch.full((count, width), -torch.inf)
    sums[:, 0] = 0.0
    tokens = torch.full((count * width, 1), BOS_ID)
    written = torch.zeros((count, width, max_tokens), dtype=torch.long)
    best = torch.full((count,), -torch.inf)
    found: list[list[int]] = [[] for _ in range(count)]
    active = torch.arange(count)
    for step in range(max_tokens):
        rows = len(active)
        logits, after, _ = model.decoder(tokens, states, Memory(*parts))
        logprobs = torch.log_softmax(logits[:, 0], dim=1)
        logprobs[:, _NEVER] = -torch.inf
        vocab_size = logprobs.shape[1]
        totals, places = (
            (sums.unsqueeze(2) + logprobs.view(rows, width, -1)).flatten(1).topk(2 * width, dim=1)
        )
        origins, choices = places // vocab_size, places % vocab_size
        ends = choices == EOS_ID
        for i, rank in (ends[:, :width] & (totals[:, :width] > -torch.inf)).nonzero().tolist():
            score = float(totals[i, rank]) / (step + 1)
            source = int(active[i])
            if score > best[source]:
                best[source] = score
                found[source] = written[i, origins[i, rank], :step].tolist()
        front = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        sums = totals.gather(1, front).masked_fill(ends.gather(1, front), -torch.inf)
        origin, choice = origins.gather(1, front), choices.gather(1, front)
        written = written.gather(1, origin.unsqueeze(2).expand(-1, -1, max_tokens))
        written[:, :, step] = choice
        # Keep a source only if a beam could still beat the best ending, at no further loss.
        stay = (sums.amax(dim=1) / max_tokens > best[active]).nonzero().flatten()
        if not len(stay):
            break
        index = (stay.unsqueeze(1) * width + origin[stay]).flatten()
        states = [state[index] for state in after]
        parts = [part[index] for part in parts] if len(stay) < rows else parts
        tokens = choice[stay].flatten().unsqueeze(1)
        sums, written, active = sums[stay], written[stay], active[stay]
    return found


class TranslateBody(BaseModel):
    """One source or several."""

    source: list[str]
    beam_size: int = 5


def create_app(
    model: EncoderDecoder, source: Tokenizer, target: Tokenizer, rules: Normalization
) -> FastAPI:
    """POST /translate, with a beam search for each request in a pool of two threads."""
    app = FastAPI()
    pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))

    def run(body: TranslateBody) -> list[str]:
        sources = [source.encode(normalize(text, rules)) for text in body.source]
        return [target.decode(x) for x in beam_search(model, sources, body.beam_size)]

    @app.post("/translate")
    async def translate(body: TranslateBody) -> dict[str, list[str]]:
        loop = asyncio.get_running_loop()
        return {"results": await loop.run_in_executor(pool, run, body)}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    """Serve the best weights of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    config, model, source, target, _ = load_best(options.run)
    app = create_app(model, source, target, config.data.source.normalization)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
