"""FastAPI with a decode loop in PyTorch for each request, in a pool of threads.

Tried; rough tokens a second for an LSTM of 2 x 512 and a GRU of 1 x 384, in the process itself and
one thread a product, for 1, 2, 4 and 8 threads that decode:
nn.LSTM / nn.GRU with oneDNN: 290, 500, 440, 400 and 5,800, 5,700, 5,500, 4,600;
without oneDNN, which packs the LSTM's weights anew at each step: 1,200, 2,100, 2,400, 1,500 and
6,000, 6,400, 5,700, 3,700;
nn.LSTMCell / nn.GRUCell without oneDNN: 1,500, 2,300, 2,600, 2,500 and 7,100, 6,600, 5,900, 5,100.
Kept: cells without oneDNN. Over HTTP, 32 clients on the same two cores: 2 threads 2,600 and 7,000
(kept), 4 threads 3,000 and 5,400.
"""

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor, nn

POOL_THREADS = 2
BOS_ID, EOS_ID, UNK_ID = 1, 2, 3
MASKED_IDS = [0, BOS_ID, UNK_ID]  # pad, bos and unk have no text
MODULES = {
    "rnn": (nn.RNN, nn.RNNCell),
    "gru": (nn.GRU, nn.GRUCell),
    "lstm": (nn.LSTM, nn.LSTMCell),
}


class GenerateBody(BaseModel):
    """A text to continue."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


class Model(nn.Module):
    """Embedding, torch's recurrent module and its cells on the same weights, output.

    The module reads a prompt; the cells write, because they cost less a step.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        self.vocab: list[str] = config["vocab"]
        self.ids = {token: i for i, token in enumerate(self.vocab) if i > UNK_ID}
        self.cell: str = config["cell"]
        sizes = (config["embedding_dim"], config["hidden_size"])
        self.embedding = nn.Embedding(len(self.vocab), sizes[0])
        module, cell = MODULES[self.cell]
        self.recurrent = module(*sizes, config["num_layers"], batch_first=True)
        self.output = nn.Linear(sizes[1], len(self.vocab))
        self.load_state_dict(_torch_names(load_file(weights / "weights.safetensors")))
        self.cells = nn.ModuleList()
        for i in range(config["num_layers"]):
            step = cell(sizes[1] if i else sizes[0], sizes[1])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(step, name, getattr(self.recurrent, f"{name}_l{i}"))
            self.cells.append(step)
        self.eval()

    def read(self, tokens: Tensor) -> tuple[Tensor, list[Any]]:
        """Logits [V] of the token after `tokens` [1, T], and each layer's state there."""
        outputs, states = self.recurrent(self.embedding(tokens))
        layers = zip(*states, strict=True) if self.cell == "lstm" else states
        return self.output(outputs[0, -1]), list(layers)

    def step(self, token: Tensor, states: list[Any]) -> Tensor:
        """Logits [V] of the token after `token` [1]; moves the states."""
        x = self.embedding(token)  # [1, E]
        for i, cell in enumerate(self.cells):
            states[i] = cell(x, states[i])
            x = states[i][0] if self.cell == "lstm" else states[i]  # [1, H]
        return self.output(x)[0]

    @torch.inference_mode()
    def generate(self, request: GenerateBody) -> str:
        """Continue one prompt, a token at a time."""
        if request.max_tokens == 0:
            return ""
        generator = torch.Generator().manual_seed(request.seed)
        ids = [BOS_ID, *(self.ids.get(character, UNK_ID) for character in request.prompt)]
        logits, states = self.read(torch.tensor([ids]))
        text = []
        while True:
            logits[MASKED_IDS] = -torch.inf
            if request.temperature == 0.0:
                token = logits.argmax(dim=-1, keepdim=True)
            else:
                probs = torch.softmax(logits / request.temperature, dim=-1)
                token = torch.multinomial(probs, 1, generator=generator)
            id_ = token.item()
            if id_ == EOS_ID:
                break
            text.append(self.vocab[id_])
            if len(text) == request.max_tokens:
                break
            logits = self.step(token, states)
        return "".join(text)


def _torch_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`layers.0.weight_ih` is `weight_ih_l0` in torch's own modules."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, i, parameter = name.split(".")
            renamed[f"recurrent.{parameter}_l{i}"] = tensor
        else:
            renamed[name] = tensor
    return renamed


def create_app(weights: Path) -> FastAPI:
    """The application that serves one model."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(_enabled=False)
    app = FastAPI()
    model = Model(weights)
    pool = ThreadPoolExecutor(POOL_THREADS)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {}

    @app.post("/generate")
    async def generate(body: GenerateBody) -> dict[str, str]:
        text = await asyncio.get_running_loop().run_in_executor(pool, model.generate, body)
        return {"text": text}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(arguments.weights), host="127.0.0.1", port=arguments.port, access_log=False
    )
