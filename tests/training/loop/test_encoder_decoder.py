"""Training on pairs: golden losses, exact resuming, the objective, which weights are kept."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.bundle.text import PAD_ID
from tests.training.helpers import (
    BACKWARDS,
    encoder_decoder_task_of,
    tiny_encoder_decoder_trainer,
)
from training.data.pair_batches import PairBatch
from training.evaluation import encoder_decoder as evaluation
from training.evaluation.encoder_decoder import mean_loss, translate_texts
from training.loop import checkpoint
from training.loop import encoder_decoder as encoder_decoder_task
from training.loop.checkpoint import BEST, LAST
from training.loop.encoder_decoder import load_best
from training.loop.run_log import read_log
from training.loop.task import TrainingError
from training.loop.trainer import Trainer
from training.networks.encoder_decoder import EncoderDecoder

CPU = torch.device("cpu")
# All that holds state: moving average, dropout, label smoothing, sampled tokens, replicas.
MODEL: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "input_feeding": True,
    "dropout_embedding": 0.2,
    "dropout_between": 0.2,
    "dropout_output": 0.2,
}
TRAINING: dict[str, Any] = {
    "learning_rate": 0.01,
    "label_smoothing": 0.1,
    "teacher_forcing": 0.7,
    "ema_decay": 0.9,
    "replicas": 2,
}


def step_losses(run: Trainer[EncoderDecoder], count: int) -> list[float]:
    return [nats / predicted for nats, predicted in (run.train_step() for _ in range(count))]


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def first_batch(run: Trainer[EncoderDecoder]) -> PairBatch:
    """The batch that the next step will read."""
    batches = encoder_decoder_task_of(run).batches
    start = batches.state()
    batch = batches.next()
    batches.restore(start)
    return batch


def logprobs_of(run: Trainer[EncoderDecoder], batch: PairBatch) -> Tensor:
    parts = (batch.sources, batch.lengths, batch.tokens)
    return torch.log_softmax(run.model(*(torch.from_numpy(x) for x in parts)), dim=2)


# --- golden losses ------------------------------------------------------------------------------

# Loss of step 8 and validation loss of the moving average; torch 2.13.0 on one thread.
GOLDEN = {
    "lstm": (3.1960972611622145, 3.1300441148329754),
    "gru": (3.302208521032846, 3.143246057082196),
    "rnn": (3.1701638826759915, 3.083600224280844),
}
GOLDEN_OPTIONS: dict[str, dict[str, Any]] = {
    "lstm": {"attention": "general", "input_feeding": True},
    "gru": {"attention": "additive", "encoder": "crnn", "tie_embeddings": True},
    "rnn": {"attention": "dot"},
}


@pytest.mark.parametrize("cell", GOLDEN)
def test_eight_steps_reach_the_golden_loss(tmp_path: Path, cell: str) -> None:
    model = {**MODEL, "input_feeding": False, **GOLDEN_OPTIONS[cell], "cell": cell}
    run = tiny_encoder_decoder_trainer(tmp_path, model=model, training=TRAINING)
    last = step_losses(run, 8)[-1]
    valid = run.task.evaluate(run.evaluated_model).loss
    assert (last, valid) == pytest.approx(GOLDEN[cell], rel=1e-6)


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_resumed_run_has_the_same_losses_and_weights(
    tmp_path: Path, cell: str, replicas: int
) -> None:
    options: dict[str, Mapping[str, Any]] = {
        "model": {**MODEL, "cell": cell},
        "training": {**TRAINING, "replicas": replicas, "batch_size": 20},
    }
    whole = tiny_encoder_decoder_trainer(tmp_path / "whole", **options)
    wanted = step_losses(whole, 9)  # more than an epoch
    first = tiny_encoder_decoder_trainer(tmp_path / "parts", **options)
    found = step_losses(first, 4)
    first.save()
    second = tiny_encoder_decoder_trainer(tmp_path / "parts", **options)
    step_losses(second, 2)  # whatever it did before is forgotten
    second.resume()
    found += step_losses(second, 5)
    assert found == wanted
    assert_same(whole.model.state_dict(), second.model.state_dict())
    assert whole.average is not None
    assert second.average is not None
    assert_same(whole.average.state_dict(), second.average.state_dict())


def test_a_checkpoint_of_a_resumed_run_is_the_checkpoint_it_resumed_from(tmp_path: Path) -> None:
    options: dict[str, Mapping[str, Any]] = {"model": MODEL, "training": TRAINING}
    first = tiny_encoder_decoder_trainer(tmp_path, **options)
    first.run()
    before = checkpoint.read(tmp_path / LAST)
    second = tiny_encoder_decoder_trainer(tmp_path, **options)
    second.resume()
    assert second.best_rank == first.best_rank
    second.save()
    after = checkpoint.read(tmp_path / LAST)
    assert after[1] == before[1]
    assert_same(after[0], before[0])


@pytest.mark.parametrize(
    "text", [BACKWARDS + "more\terom\n", BACKWARDS.replace("fox\txof", "f\tf")]
)
def test_changed_pairs_are_refused(tmp_path: Path, text: str) -> None:
    tiny_encoder_decoder_trainer(tmp_path).save()
    with pytest.raises(TrainingError, match="the text has changed"):
        tiny_encoder_decoder_trainer(tmp_path, text).resume()


def test_a_changed_configuration_is_refused(tmp_path: Path) -> None:
    tiny_encoder_decoder_trainer(tmp_path).save()
    with pytest.raises(TrainingError, match=r"label_smoothing: it was 0\.0, "):
        tiny_encoder_decoder_trainer(tmp_path, training={"label_smoothing": 0.2}).resume()


# --- the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("replicas", [1, 3])
def test_the_gradient_is_of_the_smoothed_loss_and_the_loss_is_not(
    tmp_path: Path, smoothing: float, replicas: int
) -> None:
    training = {"label_smoothing": smoothing, "replicas": replicas, "batch_size": 10}
    run = tiny_encoder_decoder_trainer(tmp_path, training=training)
    batch = first_batch(run)
    targets = torch.from_numpy(batch.targets)
    logprobs = logprobs_of(run, batch)  # [B, T, V]
    uniform = torch.full((run.task.vocab_size,), 1.0 / (run.task.vocab_size - 2))
    uniform[:2] = 0.0  # pad and bos are never targets
    smoothed, plain = torch.zeros(()), torch.zeros(())
    for b, t in (targets != PAD_ID).nonzero().tolist():
        wanted = smoothing * uniform
        wanted[targets[b, t]] += 1.0 - smoothing
        smoothed = smoothed - (wanted * logprobs[b, t]).sum()
        plain = plain - logprobs[b, t, targets[b, t]]
    (smoothed / batch.predicted).backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad.clone() for x in run.model.parameters() if x.grad is not None]
    loss, predicted = run.task.backward()
    assert predicted == batch.predicted
    assert loss == pytest.approx(plain.item() / predicted, rel=1e-5)
    for found, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad, gradient, atol=1e-6, rtol=1e-4)


def test_a_batch_smaller_than_the_replicas_is_shared_out_too(tmp_path: Path) -> None:
    one = tiny_encoder_decoder_trainer(tmp_path / "one", training={"batch_size": 2})
    four = tiny_encoder_decoder_trainer(
        tmp_path / "four", training={"batch_size": 2, "replicas": 4}
    )
    assert step_losses(four, 3) == pytest.approx(step_losses(one, 3), rel=1e-4)


def test_the_first_loss_is_about_uniform_guessing(tmp_path: Path) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path)
    assert step_losses(run, 1)[0] == pytest.approx(math.log(run.task.vocab_size), abs=0.5)


def test_weights_that_are_no_numbers_stop_the_run(tmp_path: Path) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path)
    with torch.no_grad():
        run.model.decoder.output.bias[4] = float("nan")
    with pytest.raises(TrainingError, match="diverged at step 0"):
        run.train_step()


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_an_evaluation_has_no_dropout_and_leaves_the_model_as_it_was(
    tmp_path: Path, *, training: bool
) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path, model=MODEL, training={"select_by": "chrf"})
    run.model.train(training)
    first = run.task.evaluate(run.model)
    assert run.model.training is training
    assert run.task.evaluate(run.model) == first


class Script:
    """Losses and exact matches of one evaluation after another."""

    def __init__(self, values: list[tuple[float, float]]) -> None:
        self.values = values
        self.at = 0

    def loss(self, *_: object) -> float:
        return self.values[self.at][0]

    def metrics(self, *_: object, **__: object) -> dict[str, float]:
        self.at += 1
        return {"exact_match": self.values[self.at - 1][1]}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(2.0, 0.1), (1.0, 0.3), (0.5, 0.2)], 2),  # more exact matches, whatever the loss
        ([(2.0, 0.5), (1.0, 0.5), (1.5, 0.5)], 2),  # of equals the one with the least loss
        ([(2.0, 0.5), (2.0, 0.5), (2.5, 0.5)], 1),  # the first of equals
        ([(0.5, 0.0), (1.0, 0.0), (0.7, 0.1)], 3),
    ],
)
def test_weights_are_kept_by_the_chosen_metric_and_of_equals_by_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[tuple[float, float]],
    best: int,
) -> None:
    script = Script([*values, values[best - 1]])
    monkeypatch.setattr(encoder_decoder_task, "mean_loss", script.loss)
    monkeypatch.setattr(encoder_decoder_task, "translation_metrics", script.metrics)
    training = {"select_by": "exact_match", "steps": 3, "eval_every": 1}
    run = tiny_encoder_decoder_trainer(tmp_path, training=training)
    run.run()
    loss, exact_match = values[best - 1]
    assert run.best_step == best
    assert run.best_rank == (-exact_match, loss)
    _, record = checkpoint.read(tmp_path / BEST)
    assert (record["step"], record["loss"], record["exact_match"]) == (best, loss, exact_match)


@pytest.mark.parametrize("metric", ["symbol_error_rate", "word_error_rate"])
def test_of_an_error_rate_the_least_is_kept(tmp_path: Path, metric: str) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path, training={"select_by": metric})
    found = run.task.evaluate(run.model)
    assert found.rank == (found.values[metric], found.loss)


def test_bleu_chooses_no_weights_where_no_target_has_four_words(tmp_path: Path) -> None:
    short = "".join(f"s{i}\tone{i}\n" for i in range(200))
    with pytest.raises(TrainingError, match=r"training.select_by: BLEU counts .*choose chrf"):
        tiny_encoder_decoder_trainer(tmp_path, short, training={"select_by": "bleu"})


def test_by_loss_nothing_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path)
    monkeypatch.setattr(evaluation, "translate", None)
    found = run.task.evaluate(run.model)
    assert (found.rank, dict(found.values)) == ((found.loss, found.loss), {"loss": found.loss})


def test_no_more_sources_are_translated_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(*arguments: Any, **options: Any) -> list[str]:
        counts.append(len(arguments[2]))
        return translate_texts(*arguments, **options)

    for module in (evaluation, encoder_decoder_task):
        monkeypatch.setattr(module, "translate_texts", counted)
    training = {"select_by": "chrf", "max_valid_sources": 3, "show": 2, "steps": 1}
    tiny_encoder_decoder_trainer(tmp_path, training=training).run()
    assert counts == [3, 2, 3]  # the evaluation, what is shown, the best weights at the end


def test_what_is_logged_is_the_loss_and_the_metrics(tmp_path: Path) -> None:
    training = {"select_by": "exact_match", "steps": 4, "eval_every": 2, "log_every": 1}
    tiny_encoder_decoder_trainer(tmp_path, training=training).run()
    log = read_log(tmp_path / "log.jsonl")
    valid = [x for x in log if x["kind"] == "valid"]
    train = [x for x in log if x["kind"] == "train"]
    assert [x["step"] for x in valid] == [2, 4]
    assert {"loss", "exact_match", "chrf"} <= set(valid[0])
    assert [x["step"] for x in train] == [1, 2, 3, 4]
    assert train[0]["perplexity"] == pytest.approx(math.exp(train[0]["loss"]))


# --- learning -----------------------------------------------------------------------------------


def test_a_copy_task_is_learnt(tmp_path: Path) -> None:
    texts = ["".join(letters) for letters in product("abcd", repeat=3)]
    run = tiny_encoder_decoder_trainer(
        tmp_path,
        "".join(f"{text}\t{text}\n" for text in texts),
        model={"encoder_hidden_size": 24, "hidden_size": 32, "embedding_dim": 16},
        training={
            "steps": 150,
            "learning_rate": 0.02,
            "select_by": "exact_match",
            "eval_every": 50,
        },
    )
    found = run.run()
    assert found.values["exact_match"] == 1.0
    assert (
        encoder_decoder_task_of(run)
        .corpus.train.references.keys()
        .isdisjoint(encoder_decoder_task_of(run).corpus.valid.references)
    )


def test_the_best_weights_come_back_with_their_tokenizers(tmp_path: Path) -> None:
    subwords = {"tokenization": "bpe", "vocab_size": 64}
    run = tiny_encoder_decoder_trainer(
        tmp_path, data={"source": subwords}, training={"ema_decay": 0.9}
    )
    found = run.run()
    config, model, source, target, record = load_best(tmp_path)
    corpus = encoder_decoder_task_of(run).corpus
    assert config == run.config
    assert not model.training
    assert (source.tokens, target.tokens) == (corpus.source.tokens, corpus.target.tokens)
    assert source.encode("grapes").tolist() == corpus.source.encode("grapes").tolist()
    assert mean_loss(model, corpus.valid, CPU) == found.loss == record["loss"]
