"""Training on labels: golden losses, exact resuming, the objective, which weights are kept."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.labelled import SORTS, labeler_task_of, tiny_labeler_trainer
from training.data.labelled import LabelledSplit
from training.data.labelled_batches import NO_LABEL, LabelledBatch
from training.evaluation.labeler import Judged
from training.loop import checkpoint
from training.loop import labeler as labeler_task
from training.loop.checkpoint import BEST, LAST
from training.loop.label_losses import balanced_weights
from training.loop.labeler import load_best, spread
from training.loop.run_log import read_log
from training.loop.task import TrainingError
from training.loop.trainer import Trainer
from training.networks.labeler import Labeler

# All that holds state: moving average, dropout, replicas.
MODEL: dict[str, Any] = {
    "num_layers": 2,
    "dropout_embedding": 0.2,
    "dropout_between": 0.2,
    "dropout_output": 0.2,
}
TRAINING: dict[str, Any] = {"learning_rate": 0.01, "ema_decay": 0.9, "replicas": 2}
SMOOTH: dict[str, Any] = {"label_smoothing": 0.1, "class_weights": "balanced"}
without_chain = pytest.mark.parametrize("sort", [x for x in SORTS if "chain" not in x])


def step_losses(run: Trainer[Labeler], count: int) -> list[float]:
    return [nats / predicted for nats, predicted in (run.train_step() for _ in range(count))]


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def options_of(sort: str, **training: Any) -> dict[str, Any]:
    smooth = {} if "chain" in sort else SMOOTH
    return {"model": MODEL, "training": {**TRAINING, **smooth, **training}}


def first_batch(run: Trainer[Labeler]) -> LabelledBatch:
    """The batch that the next step will read."""
    batches = labeler_task_of(run).batches
    start = batches.state()
    batch = batches.next()
    batches.restore(start)
    return batch


# --- golden losses ------------------------------------------------------------------------------

# Loss of step 8 and validation loss of the moving average; torch 2.13.0 on one thread.
GOLDEN = {
    "one": (1.1065698266029358, 1.0741649844816752),
    "attention": (1.0335835218429565, 1.0702828275305885),
    "forward": (1.0865953826904298, 1.0844919426100594),
    "several": (0.7192665100097656, 0.6967560488561981),
    "several forward": (0.6970846557617187, 0.6981476123094619),
    "tags": (0.7064556884765625, 0.6920807563568935),
    "chain": (0.6188180351257324, 0.6276879658253915),
    "masked": (0.12362349510192872, 0.11271357043715548),
}


@pytest.mark.parametrize("sort", GOLDEN)
def test_eight_steps_reach_the_golden_loss(tmp_path: Path, sort: str) -> None:
    run = tiny_labeler_trainer(tmp_path, sort, **options_of(sort))
    last = step_losses(run, 8)[-1]
    valid = run.task.evaluate(run.evaluated_model).loss
    assert (last, valid) == pytest.approx(GOLDEN[sort], rel=1e-6)


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort", "replicas"),
    [("one", 1), ("one", 3), ("forward", 3), ("several", 1), ("chain", 3), ("masked chain", 1)],
)
def test_a_resumed_run_has_the_same_losses_and_weights(
    tmp_path: Path, sort: str, replicas: int
) -> None:
    options = options_of(sort, replicas=replicas, batch_size=20)
    whole = tiny_labeler_trainer(tmp_path / "whole", sort, **options)
    wanted = step_losses(whole, 9)  # more than an epoch
    first = tiny_labeler_trainer(tmp_path / "parts", sort, **options)
    found = step_losses(first, 4)
    first.save()
    second = tiny_labeler_trainer(tmp_path / "parts", sort, **options)
    step_losses(second, 2)  # whatever it did before is forgotten
    second.resume()
    found += step_losses(second, 5)
    assert found == wanted
    assert_same(whole.model.state_dict(), second.model.state_dict())
    assert whole.average is not None
    assert second.average is not None
    assert_same(whole.average.state_dict(), second.average.state_dict())


def test_a_checkpoint_of_a_resumed_run_is_the_checkpoint_it_resumed_from(tmp_path: Path) -> None:
    first = tiny_labeler_trainer(tmp_path, **options_of("one"))
    first.run()
    before = checkpoint.read(tmp_path / LAST)
    second = tiny_labeler_trainer(tmp_path, **options_of("one"))
    second.resume()
    assert second.best_rank == first.best_rank
    second.save()
    after = checkpoint.read(tmp_path / LAST)
    assert after[1] == before[1]
    assert_same(after[0], before[0])


def test_a_changed_configuration_is_refused_and_a_free_option_is_not(tmp_path: Path) -> None:
    tiny_labeler_trainer(tmp_path).save()
    with pytest.raises(TrainingError, match=r"class_weights: it was \"none\", "):
        tiny_labeler_trainer(tmp_path, training={"class_weights": "balanced"}).resume()
    tiny_labeler_trainer(tmp_path, training={"max_valid_texts": 3}).resume()


# --- the objective ------------------------------------------------------------------------------


def examples(run: Trainer[Labeler], batch: LabelledBatch) -> list[tuple[Tensor, Any, int]]:
    """Logits [L], labels and token of each example of a batch, one by one."""
    logits = run.model(*(torch.from_numpy(x) for x in (batch.tokens, batch.lengths)))
    found: list[tuple[Tensor, Any, int]] = []
    for row, (length, labels) in enumerate(zip(batch.lengths, batch.labels, strict=True)):
        if not run.model.labels_places:
            found.append((logits[row], labels, -1))
            continue
        # Of a tagger the places between bos and eos; read forward, those after bos.
        tagger = run.model.head.pooling is None
        for place in range(1, length - 1 if tagger else length):
            wanted = labels[place] if tagger else labels
            found.append((logits[row, place], wanted, int(batch.tokens[row, place])))
    return found


def one_loss(logits: Tensor, label: int, allowed: list[int], smoothing: float) -> Tensor:
    logprobs = torch.log_softmax(logits, dim=0)
    share = sum((logprobs[x] for x in allowed), torch.zeros(())) / len(allowed)
    return -(1.0 - smoothing) * logprobs[label] - smoothing * share


def several_loss(logits: Tensor, wanted: Any, weights: Any, smoothing: float) -> Tensor:
    total = torch.zeros(())
    for x, y, weight in zip(logits, wanted, weights, strict=True):
        target = y * (1.0 - smoothing) + 0.5 * smoothing
        yes, no = torch.log(torch.sigmoid(x)), torch.log(1.0 - torch.sigmoid(x))
        total = total - (float(weight) * target * yes + (1.0 - target) * no)
    return total


@without_chain
@pytest.mark.parametrize(("smoothing", "replicas"), [(0.0, 3), (0.3, 1)])
def test_the_gradient_is_of_the_smoothed_weighed_loss_and_the_loss_is_plain(
    tmp_path: Path, sort: str, smoothing: float, replicas: int
) -> None:
    options = {"label_smoothing": smoothing, "replicas": replicas, "class_weights": "balanced"}
    run = tiny_labeler_trainer(tmp_path, sort, training={**options, "batch_size": 10})
    corpus = labeler_task_of(run).corpus
    weights = balanced_weights(corpus)
    objective, plain = torch.zeros(()), 0.0
    found = examples(run, first_batch(run))
    for logits, wanted, token in found:
        if corpus.labels.several:
            objective = objective + several_loss(logits, wanted, weights, smoothing)
            plain += several_loss(logits, wanted, np.ones(len(weights)), 0.0).item()
        else:
            allowed = list(range(len(weights)))
            if corpus.allowed is not None:
                allowed = np.flatnonzero(corpus.allowed[token]).tolist()
            smooth = one_loss(logits, wanted, allowed, smoothing)
            objective = objective + float(weights[wanted]) * smooth
            plain += one_loss(logits, wanted, allowed, 0.0).item()
    count = len(found) * (len(weights) if corpus.labels.several else 1)
    (objective / count).backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad.clone() for x in run.model.parameters() if x.grad is not None]
    loss, predicted = run.task.backward()
    assert predicted == count
    assert loss == pytest.approx(plain / count, rel=1e-5)
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sort", ["chain", "masked chain"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_chains_loss_is_of_the_labels_of_whole_texts(
    tmp_path: Path, sort: str, replicas: int
) -> None:
    run = tiny_labeler_trainer(tmp_path, sort, training={"replicas": replicas, "batch_size": 10})
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.1)
    batch, chain = first_batch(run), run.model.chain
    assert chain is not None
    nats = torch.zeros(())
    for row, length in enumerate(batch.lengths.tolist()):
        tokens = torch.from_numpy(batch.tokens[row : row + 1, :length])
        scores = run.model(tokens, torch.tensor([length]))[:, 1:-1]
        labels = torch.from_numpy(batch.labels[row : row + 1, 1 : length - 1])
        nats = nats - chain.logprob(scores, labels, torch.tensor([length - 2])).sum()
    count = int((batch.labels != NO_LABEL).sum())
    (nats / count).backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad.clone() for x in run.model.parameters() if x.grad is not None]
    loss, predicted = run.task.backward()
    assert predicted == count
    assert loss == pytest.approx(nats.item() / count, rel=1e-5)
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_a_chain_has_neither_smoothing_nor_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"model.crf: .* leave out training.class_weights"):
        tiny_labeler_trainer(tmp_path, "chain", training=options)


def test_balanced_labels_weigh_the_same(tmp_path: Path) -> None:
    corpus = labeler_task_of(tiny_labeler_trainer(tmp_path, "one")).corpus
    weights, n = balanced_weights(corpus), np.bincount(np.concatenate(corpus.train.labels))
    assert weights * n == pytest.approx([len(corpus.train) / 3] * 3, rel=1e-6)
    corpus = labeler_task_of(tiny_labeler_trainer(tmp_path, "several")).corpus
    weights, n = balanced_weights(corpus), np.bincount(np.concatenate(corpus.train.labels))
    assert weights * n == pytest.approx(len(corpus.train) - n, rel=1e-6)


@pytest.mark.parametrize("sort", ["several forward", "tags", "masked chain"])
def test_a_batch_smaller_than_the_replicas_is_shared_out_too(tmp_path: Path, sort: str) -> None:
    one = tiny_labeler_trainer(tmp_path / "one", sort, training={"batch_size": 2})
    four = tiny_labeler_trainer(tmp_path / "four", sort, training={"batch_size": 2, "replicas": 4})
    assert step_losses(four, 3) == pytest.approx(step_losses(one, 3), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sort", ["one", "forward", "several", "tags", "chain"])
def test_the_first_loss_is_about_uniform_guessing(tmp_path: Path, sort: str) -> None:
    run = tiny_labeler_trainer(tmp_path, sort)
    assert step_losses(run, 1)[0] == pytest.approx(math.log(run.task.vocab_size), abs=0.4)


def test_weights_that_are_no_numbers_stop_the_run(tmp_path: Path) -> None:
    run = tiny_labeler_trainer(tmp_path)
    with torch.no_grad():
        run.model.output.bias[1] = float("nan")
    with pytest.raises(TrainingError, match="diverged at step 0"):
        run.train_step()


def test_a_small_batch_that_is_all_wrong_does_not_stop_the_run(tmp_path: Path) -> None:
    run = tiny_labeler_trainer(tmp_path, "tags")
    with torch.no_grad():
        run.model.output.bias[1] = 6.0  # most characters are in no tag
    assert step_losses(run, 1)[0] > 3.5


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["one", "several forward", "chain"])
@pytest.mark.parametrize("training", [False, True])
def test_an_evaluation_has_no_dropout_and_leaves_the_model_as_it_was(
    tmp_path: Path, sort: str, *, training: bool
) -> None:
    run = tiny_labeler_trainer(tmp_path, sort, model=MODEL)
    run.model.train(training)
    first = run.task.evaluate(run.model)
    run.task.show(run.model, 1)
    assert run.model.training is training
    assert run.task.evaluate(run.model) == first


@pytest.mark.parametrize(
    ("select_by", "values", "best"),
    [
        ("accuracy", [(2.0, 0.1), (1.0, 0.3), (0.5, 0.2)], 2),  # more are right, whatever the loss
        ("macro_f1", [(2.0, 0.5), (1.0, 0.5), (1.5, 0.5)], 2),  # of equals the one with less loss
        ("loss", [(0.7, 0.0), (0.5, 0.0), (1.0, 0.1)], 2),
    ],
)
def test_weights_are_kept_by_the_chosen_metric_and_of_equals_by_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select_by: str,
    values: list[tuple[float, float]],
    best: int,
) -> None:
    script = iter([*values, values[best - 1]])

    def metrics(*_: object) -> dict[str, float]:
        loss, other = next(script)
        return {"loss": loss, "accuracy": other, "macro_f1": other}

    monkeypatch.setattr(labeler_task, "split_values", metrics)
    training = {"select_by": select_by, "steps": 3, "eval_every": 1}
    run = tiny_labeler_trainer(tmp_path, training=training)
    run.run()
    assert run.best_step == best
    assert checkpoint.read(tmp_path / BEST)[1]["loss"] == values[best - 1][0]


def test_no_more_texts_are_labelled_than_asked_for_and_not_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(found: list[Judged], *_: object) -> dict[str, float]:
        counts.append(len(found))
        return {"loss": 1.0}

    monkeypatch.setattr(labeler_task, "split_values", counted)
    run = tiny_labeler_trainer(tmp_path, training={"max_valid_texts": 3, "steps": 1})
    run.run()
    assert counts == [3, 3]  # the evaluation, the best weights at the end
    valid = labeler_task_of(run).corpus.valid
    chosen = spread(valid, 3)
    assert list(chosen.texts) == [valid.texts[i * len(valid) // 3] for i in range(3)]
    assert [x.tolist() for x in chosen.labels] == [
        valid.labels[i * len(valid) // 3].tolist() for i in range(3)
    ]
    assert spread(valid, len(valid)) is valid


def test_what_is_logged_is_the_loss_and_the_metrics(tmp_path: Path) -> None:
    training = {"steps": 4, "eval_every": 2, "log_every": 1}
    tiny_labeler_trainer(tmp_path, "tags", training=training).run()
    log = read_log(tmp_path / "log.jsonl")
    valid = [x for x in log if x["kind"] == "valid"]
    train = [x for x in log if x["kind"] == "train"]
    assert [x["step"] for x in valid] == [2, 4]
    metrics = {"loss", "accuracy", "macro_f1", "ece", "exact_match", "span_f1"}
    assert metrics <= set(valid[0])
    assert [x["step"] for x in train] == [1, 2, 3, 4]
    assert {"loss", "labels_per_s"} <= set(train[0])


def test_texts_are_shown_with_their_labels(tmp_path: Path) -> None:
    run = tiny_labeler_trainer(tmp_path, training={"show": 2})
    lines = run.task.show(run.model, 1)
    valid = labeler_task_of(run).corpus.valid
    assert len(lines) == 2
    for line in lines:
        text, _, answer = line.strip().partition("  ->  ")
        assert text in valid.texts
        assert answer.count(", ") == 1
    assert run.task.show(run.model, 2) != lines


def test_a_long_text_of_several_lines_is_shown_in_one(tmp_path: Path) -> None:
    run = tiny_labeler_trainer(tmp_path, "tags", training={"show": 1})
    task = labeler_task_of(run)
    text = "a line\nand another\n" * 20
    tokens = np.full(len(text), 4, np.uint16)
    task.valid = LabelledSplit("valid", [text], [tokens], [np.zeros(len(text), np.int32)])
    (line,) = run.task.show(run.model, 1)
    shown, _, answer = line.strip().partition("  ->  ")
    assert shown == f"{' '.join(text.splitlines())[:100]}…"
    assert len(answer) == 101


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["forward", "chain"])
def test_labels_are_learnt(tmp_path: Path, sort: str) -> None:
    training = {"steps": 80, "eval_every": 80, "learning_rate": 0.03}
    run = tiny_labeler_trainer(tmp_path, sort, model={"hidden_size": 12}, training=training)
    assert run.run().values["accuracy"] > 0.9


@pytest.mark.parametrize("sort", ["several forward", "masked chain"])
def test_the_best_weights_come_back_with_their_tokenizer_and_labels(
    tmp_path: Path, sort: str
) -> None:
    run = tiny_labeler_trainer(tmp_path, sort, training={"ema_decay": 0.9})
    found = run.run()
    config, model, tokenizer, labels, record = load_best(tmp_path)
    corpus = labeler_task_of(run).corpus
    assert config == run.config
    assert not model.training
    assert tokenizer.tokens == corpus.tokenizer.tokens
    assert labels == corpus.labels
    assert_same(model.state_dict(), run.evaluated_model.state_dict())
    assert record["loss"] == found.loss
