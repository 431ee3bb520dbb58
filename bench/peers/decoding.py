"""The decode loop of the peers: step.onnx in onnxruntime, numpy for the rest.

It is a good loop: a batch of requests reads its prompts in one ragged run and then steps together
with vectorized sampling, and a row leaves the batch when its text has ended.

B batch (rows still writing), T time, V vocabulary, H hidden.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
SCORE_ROWS = 64

Float32Array = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A client's request; temperature 0 is greedy."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Request":
        """From a decoded JSON object."""
        return cls(
            prompt=str(fields["prompt"]),
            max_tokens=int(fields["max_tokens"]),
            temperature=float(fields["temperature"]),
            seed=int(fields["seed"]),
        )


class Decoder:
    """One model in onnxruntime; several threads may call it at the same time."""

    def __init__(self, weights: Path, threads: int = 1) -> None:
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        self._vocab: list[str] = config["vocab"]
        self._ids = {token: i for i, token in enumerate(self._vocab) if i > UNK_ID}
        self._hidden_size: int = config["hidden_size"]
        self._states: list[str] = config["states"]
        self._states_out = [f"{name}_out" for name in self._states]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # The two cores are shared with a web server and its clients.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(weights / "step.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The text of each request, all decoded in one batch."""
        limits = np.array([x.max_tokens for x in requests])
        most = int(limits.max())
        noise = np.zeros((most, len(requests)))  # a uniform number for each token
        for i, request in enumerate(requests):
            generator = np.random.default_rng(request.seed)
            noise[: request.max_tokens, i] = generator.random(request.max_tokens)
        temperature = np.array([x.temperature for x in requests])
        written = np.zeros((most, len(requests)), np.int64)
        lengths = np.zeros(len(requests), np.int64)  # tokens that each request has written
        rows = np.flatnonzero(limits)  # [B] requests still writing
        if len(rows):
            logprobs, states = self._read([requests[i].prompt for i in rows.tolist()])
            stepper = Stepper(self._session, self._states, states, len(self._vocab))
        position = 0
        while len(rows):
            tokens = choose(logprobs, temperature[rows], noise[position, rows])  # [B]
            written[position, rows] = tokens
            position += 1
            ended = tokens == EOS_ID
            lengths[rows] = position - ended
            going = ~ended & (limits[rows] > position)
            if not going.all():
                rows, tokens = rows[going], tokens[going]
                stepper.keep(going)
            if len(rows):
                logprobs = stepper.step(tokens)
        ids = [written[:length, i].tolist() for i, length in enumerate(lengths.tolist())]
        return ["".join(self._vocab[token] for token in row) for row in ids]

    def score(self, texts: Sequence[str]) -> list[float]:
        """log P(characters | bos) of each text, padded batches of texts of similar lengths."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), SCORE_ROWS):
            rows = order[start : start + SCORE_ROWS]
            for i, score in zip(rows, self._score([texts[i] for i in rows]), strict=True):
                scores[i] = score
        return scores

    def _score(self, texts: Sequence[str]) -> list[float]:
        targets, lengths = _padded([self._encode(text) for text in texts])  # [B, T]
        tokens = np.empty_like(targets)
        tokens[:, 0] = BOS_ID
        tokens[:, 1:] = targets[:, :-1]
        feeds = self._feeds(tokens, np.maximum(lengths, 1), targets, self._zeros(len(texts)))
        (picked,) = self._session.run(["target_logprobs"], feeds)  # [B, T]
        real = np.arange(targets.shape[1]) < lengths[:, None]
        scores: list[float] = np.where(real, picked, 0.0).sum(axis=1, dtype=np.float64).tolist()
        return scores

    def _read(self, prompts: Sequence[str]) -> tuple[Float32Array, list[Float32Array]]:
        """log p [B, V] of the token after each prompt, and the states there."""
        tokens, lengths = _padded([[BOS_ID, *self._encode(prompt)] for prompt in prompts])
        feeds = self._feeds(tokens, lengths, np.zeros_like(tokens), self._zeros(len(prompts)))
        logprobs, *states = self._session.run(["logprobs", *self._states_out], feeds)
        return logprobs[np.arange(len(prompts)), lengths - 1], states

    def _feeds(
        self,
        tokens: IdArray,
        lengths: npt.NDArray[np.int32],
        targets: IdArray,
        states: Sequence[Float32Array],
    ) -> dict[str, npt.NDArray[np.generic]]:
        feeds: dict[str, npt.NDArray[np.generic]] = {
            "tokens": tokens,
            "lengths": lengths,
            "targets": targets,
        }
        return feeds | dict(zip(self._states, states, strict=True))

    def _zeros(self, rows: int) -> list[Float32Array]:
        return [np.zeros((rows, self._hidden_size), np.float32) for _ in self._states]

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(character, UNK_ID) for character in text]


class Stepper:
    """Steps each row by one token, in arrays that onnxruntime reads and writes in place.

    Binding them once for each number of rows saves the names, copies and new arrays of `run`.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: Sequence[str],
        states: Sequence[Float32Array],
        vocab_size: int,
    ) -> None:
        rows = len(states[0])
        self._session = session
        self._names = names
        self._states = (list(states), [np.empty_like(state) for state in states])
        self._current = 0  # index of the array with the states; a step writes the other one
        self._tokens = np.zeros((rows, 1), np.int64)
        self._targets = np.zeros((rows, 1), np.int64)
        self._lengths = np.ones(rows, np.int32)
        self._logprobs = np.empty((rows, 1, vocab_size), np.float32)
        self._rows = rows
        self._bindings: list[onnxruntime.IOBinding | None] = [None, None]

    def step(self, tokens: IdArray) -> Float32Array:
        """log p [B, V] of the token after each of `tokens` [B]; good until the next step."""
        self._tokens[: self._rows, 0] = tokens
        binding = self._bindings[self._current]
        if binding is None:
            binding = self._bindings[self._current] = self._bind()
        self._session.run_with_iobinding(binding)
        self._current = 1 - self._current
        return self._logprobs[: self._rows, 0]

    def keep(self, going: npt.NDArray[np.bool_]) -> None:
        """Drop the rows that are not `going` [B]."""
        rows = int(going.sum())
        for state in self._states[self._current]:
            state[:rows] = state[: self._rows][going]
        self._rows = rows
        self._bindings = [None, None]

    def _bind(self) -> onnxruntime.IOBinding:
        inputs: dict[str, npt.NDArray[np.generic]] = {
            "tokens": self._tokens,
            "targets": self._targets,
            "lengths": self._lengths,
        }
        outputs: dict[str, npt.NDArray[np.generic]] = {"logprobs": self._logprobs}
        before, after = self._states[self._current], self._states[1 - self._current]
        inputs |= dict(zip(self._names, before, strict=True))
        outputs |= {f"{name}_out": array for name, array in zip(self._names, after, strict=True)}
        binding = self._session.io_binding()
        for name, array in inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array[: self._rows])
            binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array[: self._rows])
            binding.bind_ortvalue_output(name, value)
        return binding


def choose(
    logprobs: Float32Array, temperature: npt.NDArray[np.float64], noise: npt.NDArray[np.float64]
) -> IdArray:
    """One token for each row [B], by inverting the cumulative softmax of logprobs / temperature.

    `logprobs` is [B, V], `temperature` and `noise` are [B].
    """
    scores = logprobs[:, EOS_ID:].astype(np.float64)  # pad, bos and unk have no text
    scores[:, UNK_ID - EOS_ID] = -np.inf
    greedy = temperature == 0.0
    likeliest: IdArray = scores.argmax(axis=1) + EOS_ID
    if greedy.all():
        return likeliest
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    scores /= np.where(greedy, 1.0, temperature)[:, None]
    cumulated = np.add.accumulate(np.exp(scores, out=scores), axis=1)
    threshold = noise[:, None] * cumulated[:, -1:]
    tokens: IdArray = (cumulated > threshold).argmax(axis=1) + EOS_ID
    return np.where(greedy, likeliest, tokens)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[IdArray, npt.NDArray[np.int32]]:
    """Ids [B, T] and the lengths [B] of the rows; T is at least one."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), max(1, int(lengths.max()))), PAD_ID, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
