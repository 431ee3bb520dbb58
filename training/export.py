"""A trained run to a bundle: graph, parity with PyTorch, measurements, golden vectors.

B batch, T time, V vocabulary.
"""

import datetime
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from service.bundle import (
    BOS_ID,
    EOS_ID,
    FORMAT_VERSION,
    PAD_ID,
    DataSource,
    GoldenVector,
    Graph,
    Limits,
    Manifest,
    Measurement,
    Metrics,
    ModelShape,
    StateTensor,
    Tensor,
    TrainingRecord,
    VocabFile,
    Vocabulary,
    write_bundle,
)
from service.bundle.store import sha256, vocab_bytes
from training import onnx_graph
from training.corpus import Corpus, Split
from training.evaluation import Score, evaluate
from training.language_model import LanguageModel
from training.report import measurement
from training.trainer import load_best, parameter_count
from training.windows import SequentialWindows

MAX_DIFFERENCE = 1e-5  # nats a token, PyTorch against onnxruntime
GRAPH_FILE = "sequence.fp32.onnx"
VOCAB_FILE = "vocab.json"
_DEFAULT_MAX_TOKENS = 4096
# The graph is built once; every one of these shapes must give the same numbers as PyTorch.
_PARITY_SHAPES = ((1, 1), (1, 7), (2, 1), (3, 64), (17, 5), (64, 33))

States: TypeAlias = list[npt.NDArray[np.float32]]


class ExportError(Exception):
    """Nothing was written; the message says why."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """The exported graph in onnxruntime, as the parity checks use it."""

    session: onnxruntime.InferenceSession
    state_names: Sequence[str]

    @classmethod
    def load(cls, graph: bytes, state_names: Sequence[str]) -> "OnnxModel":
        """One thread, as the service runs it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return cls(session, state_names)

    def run(
        self,
        tokens: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        states: States,
        lengths: npt.NDArray[np.int32] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], States]:
        """`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after."""
        if lengths is None:
            lengths = np.full(len(tokens), tokens.shape[1], np.int32)
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self.state_names, states, strict=True))
        picked, logprobs, *after = self.session.run(None, feeds)
        return picked, logprobs, after


def export(run_dir: Path, corpus: Corpus, models_dir: Path, *, name: str | None = None) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written."""
    config, model, record = load_best(run_dir)
    vocab = Vocabulary(record["vocab"])
    if corpus.sha256 != record["corpus_sha256"] or corpus.vocab.tokens != vocab.tokens:
        raise ExportError(f"{run_dir}: the prepared text is not the one the weights come from")
    graph = onnx_graph.build(model)
    onnx_model = OnnxModel.load(graph, model.state_names)
    held_out_name, held_out = held_out_split(corpus)
    check_parity(model, onnx_model, held_out)
    score = onnx_score(onnx_model, model, held_out)
    expected = evaluate(model, held_out, torch.device("cpu"))
    if abs(score.loss - expected.loss) > MAX_DIFFERENCE:
        raise ExportError(
            f"{held_out_name} loss: onnxruntime has {score.loss}, PyTorch {expected.loss}; "
            f"at most {MAX_DIFFERENCE} nats a token may lie between them"
        )
    vocabulary = vocab_bytes(vocab)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name or config.name,
        description=config.description,
        license=config.license,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="language_model",
        tokenization="character",
        normalization=config.data.normalization,
        vocab=VocabFile(
            file=VOCAB_FILE,
            sha256=sha256(vocabulary),
            size=len(vocab),
            pad=0,
            bos=1,
            eos=2,
            unk=3,
        ),
        graphs=[_describe(graph)],
        states=[
            StateTensor(name=x, dtype="float32", shape=[config.model.hidden_size])
            for x in model.state_names
        ],
        model=ModelShape(
            cell=config.model.cell,
            num_layers=config.model.num_layers,
            hidden_size=config.model.hidden_size,
            embedding_dim=config.model.embedding_dim,
            parameters=parameter_count(model),
        ),
        limits=Limits(max_tokens=_DEFAULT_MAX_TOKENS),
        data=DataSource(
            name=config.data.title,
            source=config.data.source,
            license=config.data.license,
            sha256=corpus.sha256,
            documents=sum(x.documents for x in (corpus.train, corpus.valid, corpus.test)),
            train_chars=corpus.train.chars,
            valid_chars=corpus.valid.chars,
            test_chars=corpus.test.chars,
        ),
        metrics=Metrics(
            split=held_out_name,
            chars=held_out.chars,
            tokens=held_out.tokens,
            measurements=[measurement("fp32", "model", score), *_baselines(run_dir)],
        ),
        training=TrainingRecord(
            config=record["config"],
            seed=config.training.seed,
            steps=record["step"],
            git_commit=_git_commit(),
            versions=_versions(),
        ),
        golden=golden_vectors(model, held_out, vocab),
    )
    return write_bundle(models_dir, manifest, {VOCAB_FILE: vocabulary, GRAPH_FILE: graph})


def held_out_split(corpus: Corpus) -> tuple[str, Split]:
    """The split that figures are reported on: test where there is one, else validation."""
    return ("test", corpus.test) if corpus.test.chars else ("valid", corpus.valid)


def check_parity(model: LanguageModel, onnx_model: OnnxModel, held_out: Split) -> float:
    """Largest difference in nats over several shapes, with carried state. Raises ExportError.

    Held-out text (its own tokens each; every other log-probability relative to its size) and
    random ids (the mean over each row's tokens), at several batch and length sizes, with states
    carried over two calls.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch, time in _PARITY_SHAPES:
        text = np.resize(np.asarray(held_out.ids, np.int64), (batch, 2 * time + 1))
        random = rng.integers(0, model.vocab_size, text.shape)
        for ids in (text, random):
            torch_states = model.initial_states(batch)
            states: States = [state.numpy() for state in torch_states]
            for start in (0, time):
                tokens = ids[:, start : start + time]
                targets = ids[:, start + 1 : start + time + 1]
                with torch.no_grad():
                    logits, torch_states = model(torch.from_numpy(tokens), torch_states)
                expected = torch.log_softmax(logits, dim=-1).numpy()  # [B, T, V]
                picked, logprobs, after = onnx_model.run(tokens, targets, states)
                wanted = np.take_along_axis(expected, targets[..., None], 2)[..., 0]
                # A mean over each row's tokens: a random walk through an RNN meets single steps
                # that are so badly conditioned that single precision has no fourth digit there.
                worst = max(worst, float(np.abs(picked - wanted).mean(axis=1).max()))
                if ids is text:
                    worst = max(worst, float(np.abs(picked - wanted).max()))
                    # What the text does not say can have log-probabilities of -30 and less, where
                    # single precision itself has steps of 2e-6: those are held relatively.
                    scale = np.maximum(1.0, np.abs(expected))
                    worst = max(worst, float((np.abs(logprobs - expected) / scale).max()))
                _check_ragged(onnx_model, tokens, targets, states)
                states = after
    if worst > MAX_DIFFERENCE:
        raise ExportError(
            f"the exported graph and PyTorch differ by {worst:.2e} nats a token; "
            f"at most {MAX_DIFFERENCE} is allowed"
        )
    return worst


def onnx_score(onnx_model: OnnxModel, model: LanguageModel, split: Split) -> Score:
    """The split's score as the exported graph computes it, with carried state."""
    lanes = min(split.documents, 64)
    states: States = [state.numpy() for state in model.initial_states(lanes)]
    nats = 0.0
    for window in SequentialWindows(split, lanes, max(1, 2048 // lanes)):
        for state in states:
            state[window.reset] = 0.0
        counted = window.targets != PAD_ID
        lengths = np.maximum(counted.sum(axis=1), 1).astype(np.int32)
        picked, _, states = onnx_model.run(window.tokens, window.targets, states, lengths)
        nats -= float(picked[counted].sum(dtype=np.float64))
    return Score(nats, split.tokens, split.chars)


def golden_vectors(model: LanguageModel, held_out: Split, vocab: Vocabulary) -> list[GoldenVector]:
    """Known answers, computed by PyTorch in double precision.

    The beginning of the held-out text, the empty text, and every token of the vocabulary once.
    """
    ids = [int(i) for i in held_out.ids[:129]]
    vectors = [ids, [BOS_ID, EOS_ID], [BOS_ID, *range(EOS_ID + 1, len(vocab)), EOS_ID]]
    exact = LanguageModel(model.config, model.vocab_size).double().eval()
    exact.load_state_dict(model.state_dict())
    golden = []
    for tokens in vectors:
        with torch.no_grad():
            logits, _ = exact(torch.tensor([tokens[:-1]]), exact.initial_states(1))
        logprobs = torch.log_softmax(logits[0], dim=-1)  # [T, V]
        picked = logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
        golden.append(
            GoldenVector(
                precision="fp32",
                tokens=tokens,
                logprobs=[round(x, 8) for x in picked.tolist()],
                tolerance=MAX_DIFFERENCE,
            )
        )
    return golden


def _check_ragged(
    onnx_model: OnnxModel,
    tokens: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    states: States,
) -> None:
    """A row among shorter and longer ones gives, bit by bit, what it gives alone."""
    lengths = 1 + np.arange(len(tokens), dtype=np.int32) % tokens.shape[1]
    _, ragged, after = onnx_model.run(tokens, targets, states, lengths)
    for row, length in enumerate(lengths):
        only = slice(row, row + 1)
        _, alone, after_alone = onnx_model.run(
            tokens[only, :length], targets[only, :length], [state[only] for state in states]
        )
        same_states = all(map(np.array_equal, [state[only] for state in after], after_alone))
        if not (same_states and np.array_equal(ragged[only, :length], alone)):
            raise ExportError("the graph's results depend on the rows beside a row")


def _describe(graph: bytes) -> Graph:
    proto = onnx.load_model_from_string(graph)
    return Graph(
        role="sequence",
        precision="fp32",
        file=GRAPH_FILE,
        sha256=sha256(graph),
        size_bytes=len(graph),
        opset=onnx_graph.OPSET,
        inputs=[_describe_tensor(x) for x in proto.graph.input],
        outputs=[_describe_tensor(x) for x in proto.graph.output],
    )


def _describe_tensor(info: onnx.ValueInfoProto) -> Tensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
    shape = [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
    return Tensor.model_validate({"name": info.name, "dtype": dtype, "shape": shape})


def _baselines(run_dir: Path) -> list[Measurement]:
    """The baselines that `train` left in the run's folder."""
    path = run_dir / "metrics.json"
    if not path.exists():
        raise ExportError(f"{path}: not there; `train` writes it when it is done")
    entries = json.loads(path.read_text())["measurements"]
    return [Measurement.model_validate(x) for x in entries if x["kind"] == "baseline"]


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
