"""The training loop: the loss it reaches, schedule, clipping, averaging, stopping, divergence."""

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.helpers import task_of, tiny_config, tiny_trainer
from training.config import LanguageModelTrainingConfig
from training.data.corpus import Split
from training.evaluation.language_model import Score, evaluate
from training.loop import checkpoint, trainer
from training.loop import language_model as language_model_task
from training.loop.checkpoint import BEST, LAST
from training.loop.language_model import load_best
from training.loop.run_log import read_log
from training.loop.task import TrainingError
from training.loop.trainer import Trainer, learning_rate, parameter_count
from training.networks.language_model import LanguageModel

CPU = torch.device("cpu")

# Nats after 30 steps of `golden_trainer`: of the last window, and of the validation split under
# the average. Measured once, on this project's kind of machine, which repeats every digit. Other
# kernels sum in other orders: without AVX the last digits differ by less than 1e-6.
GOLDEN = {
    "rnn": (3.227257, 3.166327),
    "gru": (3.111291, 3.099765),
    "lstm": (3.221389, 3.156048),
}
GOLDEN_TOLERANCE = 1e-4


def golden_trainer(folder: Path, cell: str) -> Trainer[LanguageModel]:
    return tiny_trainer(
        folder,
        model={
            "cell": cell,
            "num_layers": 2,
            "dropout_input": 0.1,
            "dropout_between": 0.1,
            "dropout_output": 0.2,
            "weight_drop": 0.1,
        },
        training={
            "steps": 30,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "restart_probability": 0.2,
            "replicas": 2,
            "seed": 5,
        },
    )


def step_losses(run: Trainer[LanguageModel], count: int) -> list[float]:
    return [nats / predicted for nats, predicted in (run.train_step() for _ in range(count))]


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.named_parameters()}


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", sorted(GOLDEN))
def test_thirty_steps_reach_the_golden_loss(tmp_path: Path, cell: str) -> None:
    run = golden_trainer(tmp_path, cell)
    last = step_losses(run, 30)[-1]
    valid = evaluate(run.evaluated_model, task_of(run).corpus.valid, CPU).loss
    assert (last, valid) == pytest.approx(GOLDEN[cell], abs=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("cell", sorted(GOLDEN))
def test_a_run_repeats_to_the_last_digit(tmp_path: Path, cell: str) -> None:
    first, second = (step_losses(golden_trainer(tmp_path / x, cell), 10) for x in "ab")
    assert first == second


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    runs = [tiny_trainer(tmp_path / str(s), training={"seed": s}) for s in (1, 2)]
    assert step_losses(runs[0], 1) != step_losses(runs[1], 1)


@pytest.mark.parametrize("cell", sorted(GOLDEN))
def test_a_short_text_is_learned_by_heart(tmp_path: Path, cell: str) -> None:
    run = tiny_trainer(
        tmp_path,
        "the grapes are sour. " * 30,
        model={"cell": cell, "hidden_size": 24},
        training={"steps": 150, "learning_rate": 0.02, "warmup_steps": 10, "eval_every": 150},
    )
    before = evaluate(run.model, task_of(run).corpus.valid, CPU).loss
    after = run.run().loss
    assert before > 2.0
    assert after < 0.2


def test_the_first_loss_is_about_uniform_guessing(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path)
    assert step_losses(run, 1)[0] == pytest.approx(
        math.log(len(task_of(run).corpus.vocab)), abs=0.5
    )


def test_lines_are_trained_on_in_shuffled_order(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, data={"documents": "line"})
    assert task_of(run).windows.state()["documents_taken"] == 4


# --- learning rate ------------------------------------------------------------------------------


def schedule(**options: Any) -> list[float]:
    config = LanguageModelTrainingConfig(**{"steps": 100, "learning_rate": 0.5, **options})
    return [learning_rate(step, config) for step in range(config.steps)]


def test_the_learning_rate_climbs_in_equal_steps_to_its_peak() -> None:
    assert schedule(warmup_steps=5)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_learning_rate_falls_along_a_cosine_to_its_final_ratio() -> None:
    rates = schedule(warmup_steps=20, final_learning_rate_ratio=0.1)
    assert rates[20] == 0.5
    assert rates[60] == pytest.approx((0.5 + 0.05) / 2)
    assert rates[40] == pytest.approx(0.05 + 0.45 * (1 + math.cos(math.pi / 4)) / 2)
    assert 0.05 < rates[-1] < 0.051
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))


def test_without_warm_up_the_learning_rate_starts_at_its_peak() -> None:
    assert schedule(warmup_steps=0)[0] == 0.5


def test_a_ratio_of_one_keeps_the_learning_rate() -> None:
    assert schedule(warmup_steps=0, final_learning_rate_ratio=1.0) == pytest.approx([0.5] * 100)


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    assert schedule(warmup_steps=200)[-1] == pytest.approx(0.25)


def test_the_optimizer_steps_with_the_schedules_rate(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"learning_rate": 0.3, "warmup_steps": 3})
    rates = []
    for _ in range(2):
        run.train_step()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2])


# --- gradients ----------------------------------------------------------------------------------


def gradients(folder: Path, **training: Any) -> Tensor:
    """Every element of the first step's gradient, as the optimizer saw it."""
    run = tiny_trainer(folder, training={"grad_clip_norm": 1e6, **training})
    run.train_step()
    parts = [x.grad.flatten() for x in run.model.parameters() if x.grad is not None]
    return torch.cat(parts)


def test_the_gradients_norm_is_clipped(tmp_path: Path) -> None:
    whole = gradients(tmp_path / "a")
    clipped = gradients(tmp_path / "b", grad_clip_norm=0.01)
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped, whole * 0.01 / whole.norm(), rtol=1e-3, atol=1e-9)


def test_a_gradient_below_the_limit_is_left_alone(tmp_path: Path) -> None:
    whole = gradients(tmp_path / "a")
    assert torch.equal(gradients(tmp_path / "b", grad_clip_norm=float(whole.norm()) * 2), whole)


def test_every_element_of_the_gradient_is_clipped(tmp_path: Path) -> None:
    whole = gradients(tmp_path / "a")
    limit = float(whole.abs().max()) / 10
    clipped = gradients(tmp_path / "b", grad_clip_value=limit)
    assert torch.equal(clipped, whole.clamp(-limit, limit))


def test_the_gradient_is_the_mean_losss_whatever_the_number_of_replicas(tmp_path: Path) -> None:
    torch.testing.assert_close(gradients(tmp_path / "a", replicas=4), gradients(tmp_path / "b"))


def test_replicas_share_their_weights_through_a_whole_run(tmp_path: Path) -> None:
    one = tiny_trainer(tmp_path / "a", training={"replicas": 1})
    two = tiny_trainer(tmp_path / "b", training={"replicas": 2})
    assert step_losses(two, 10) == pytest.approx(step_losses(one, 10), abs=1e-5)


@pytest.mark.parametrize(("dropout", "same"), [(0.0, True), (0.5, False)])
def test_replicas_that_read_the_same_drop_other_units(
    tmp_path: Path, dropout: float, same: bool
) -> None:
    run = tiny_trainer(
        tmp_path, model={"dropout_input": dropout}, training={"batch_size": 2, "replicas": 2}
    )
    task = task_of(run)
    tokens = torch.tensor([[4, 5, 6]] * 2)
    task.replicas.backward(task.shares(tokens, tokens, torch.tensor([True, True]), 6))
    task.close()
    states, _ = task.state()
    assert torch.equal(states["0.states.0"], states["1.states.0"]) == same


def test_weight_decay_shrinks_what_no_gradient_reaches(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"weight_decay": 0.5, "learning_rate": 0.1})
    pad = run.model.embedding.weight[0].detach().clone()
    run.train_step()
    wanted = pad * (1 - 0.5 * 0.1 / 3)  # the first of three steps of warm-up
    torch.testing.assert_close(run.model.embedding.weight[0].detach(), wanted)


# --- state --------------------------------------------------------------------------------------


def test_the_state_is_carried_from_window_to_window(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"learning_rate": 1e-12, "weight_decay": 0.0})
    start = copy.deepcopy(task_of(run).windows.state())
    losses = step_losses(run, 2)
    task_of(run).windows.restore(start)
    model, states = run.model.eval(), run.model.initial_states(4)
    for loss in losses:
        window = task_of(run).windows.next()
        keep = torch.from_numpy(~window.reset)[:, None]
        with torch.no_grad():
            logits, states = model(torch.from_numpy(window.tokens), [x * keep for x in states])
        logprobs = torch.log_softmax(logits, -1)
        picked = logprobs.gather(2, torch.from_numpy(window.targets)[..., None])[..., 0]
        counted = torch.from_numpy(window.targets != 0)
        assert float(-picked[counted].mean()) == pytest.approx(loss, abs=1e-5)


# --- averaging ----------------------------------------------------------------------------------


def test_the_average_of_the_weights_is_the_exponential_one(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"ema_decay": 0.4, "learning_rate": 0.05})
    mean = weights_of(run.model)
    for step in range(1, 9):
        run.train_step()
        # A short memory at first, 0.18 and 0.25 and so on, then the option's.
        decay = min(0.4, (1 + step) / (10 + step))
        now = weights_of(run.model)
        mean = {name: decay * mean[name] + (1 - decay) * now[name] for name in mean}
    assert run.average is not None
    torch.testing.assert_close(weights_of(run.average), mean)


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"ema_decay": 0.9, "steps": 5, "learning_rate": 0.05})
    run.run()
    assert run.average is not None
    assert run.evaluated_model is run.average
    kept, _ = checkpoint.read(tmp_path / BEST)
    torch.testing.assert_close(kept, dict(run.average.state_dict()), rtol=0, atol=0)
    assert not torch.equal(kept["output.bias"], run.model.output.bias)


def test_averaging_does_not_change_the_training(tmp_path: Path) -> None:
    plain = tiny_trainer(tmp_path / "a")
    averaged = tiny_trainer(tmp_path / "b", training={"ema_decay": 0.9})
    assert step_losses(plain, 5) == step_losses(averaged, 5)


def test_neither_evaluating_nor_sampling_changes_the_training(tmp_path: Path) -> None:
    model = {"dropout_output": 0.3, "weight_drop": 0.3}
    rare = {"steps": 6, "eval_every": 6, "sample_chars": 0}
    often = {"steps": 6, "eval_every": 1, "sample_chars": 20}
    tiny_trainer(tmp_path / "a", model=model, training=rare).run()
    tiny_trainer(tmp_path / "b", model=model, training=often).run()
    losses = [
        [x["loss"] for x in read_log(tmp_path / name / "log.jsonl") if x["kind"] == "train"]
        for name in "ab"
    ]
    assert losses[0] == losses[1]


# --- the best evaluation, and early stopping ----------------------------------------------------


class ScriptedEvaluation:
    """Losses in the order given; remembers the weights that each was asked of."""

    def __init__(self, losses: list[float]) -> None:
        self._losses: Iterator[float] = iter(losses)
        self.weights: list[Tensor] = []

    def __call__(self, model: LanguageModel, split: Split, _: torch.device) -> Score:
        self.weights.append(model.output.bias.detach().clone())
        return Score(next(self._losses) * split.tokens, split.tokens, split.chars)


def run_scripted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], **training: Any
) -> tuple[Trainer[LanguageModel], ScriptedEvaluation]:
    evaluation = ScriptedEvaluation(losses)
    monkeypatch.setattr(language_model_task, "evaluate", evaluation)
    run = tiny_trainer(folder, training={"eval_every": 2, "steps": 20, **training})
    run.run()
    return run, evaluation


def test_training_stops_when_evaluations_stop_improving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [3.0, 2.5, 2.6, 2.4, 2.4, 2.5, 2.45, 9.0]  # the last is the final one
    run, evaluation = run_scripted(tmp_path, monkeypatch, losses, patience=3)
    assert (run.step, run.best_step) == (14, 8)
    assert run.best_rank == pytest.approx((2.4,))
    assert len(evaluation.weights) == 8


def test_without_patience_training_goes_on_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = run_scripted(tmp_path, monkeypatch, [2.0, *[3.0] * 9, 2.0])
    assert (run.step, run.best_step) == (20, 2)


def test_the_weights_of_the_best_evaluation_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [3.0, 2.0, 4.0, 2.1, 2.2, 0.0]
    _, evaluation = run_scripted(tmp_path, monkeypatch, losses, steps=10)
    kept, record = checkpoint.read(tmp_path / BEST)
    assert (record["step"], record["loss"]) == (4, pytest.approx(2.0))
    assert torch.equal(kept["output.bias"], evaluation.weights[1])
    assert torch.equal(kept["output.bias"], evaluation.weights[-1])
    assert not torch.equal(kept["output.bias"], evaluation.weights[-2])


def test_a_run_that_stopped_early_can_be_resumed_and_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"patience": 1, "checkpoint_every": 1000}
    run_scripted(tmp_path, monkeypatch, [2.0, 2.5, 2.0], **options)
    monkeypatch.undo()
    again = tiny_trainer(tmp_path, training={"eval_every": 2, "steps": 20, **options})
    again.resume()
    again.run(resumed=True)
    assert again.step == 4


def test_the_last_step_is_evaluated_wherever_it_falls(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, training={"steps": 7, "eval_every": 5}).run()
    lines = read_log(tmp_path / "log.jsonl")
    assert [x["step"] for x in lines if x["kind"] == "valid"] == [5, 7]


def test_the_result_is_the_best_weights_score(tmp_path: Path) -> None:
    found = tiny_trainer(tmp_path, training={"steps": 10, "eval_every": 5}).run()
    _, model, record = load_best(tmp_path)
    score = evaluate(model, task_of(tiny_trainer(tmp_path)).corpus.valid, CPU)
    assert found.loss == score.loss == record["loss"]
    assert found.values["bits_per_char"] == score.bits_per_char


# --- divergence ---------------------------------------------------------------------------------


def test_a_run_that_explodes_stops_and_says_what_to_do(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"learning_rate": 1e6, "eval_every": 10})
    with pytest.raises(TrainingError, match=r"diverged at step \d.*training\.learning_rate"):
        run.run()


@pytest.mark.parametrize("eval_every", [1, 10])
def test_a_run_that_explodes_at_once_has_no_good_checkpoint(
    tmp_path: Path, eval_every: int
) -> None:
    training = {"learning_rate": 1e6, "eval_every": eval_every, "checkpoint_every": 10}
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        tiny_trainer(tmp_path, training=training).run()
    assert not (tmp_path / BEST).exists()


@pytest.mark.parametrize(("eval_every", "name"), [(3, BEST), (10, LAST)])
def test_a_run_that_explodes_later_names_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int, name: str
) -> None:
    monkeypatch.setattr(trainer, "learning_rate", lambda step, _: 1e-3 if step < 4 else 1e8)
    run = tiny_trainer(tmp_path, training={"eval_every": eval_every, "checkpoint_every": 3})
    with pytest.raises(TrainingError) as caught:
        run.run()
    assert f"the last good checkpoint is {tmp_path / name}" in str(caught.value)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, value: float
) -> None:
    run = tiny_trainer(tmp_path)
    with torch.no_grad():
        run.model.output.bias[4] = value
    before = weights_of(run.model)["embedding.weight"]
    with pytest.raises(TrainingError, match="diverged at step 0"):
        run.train_step()
    # The bad gradient did not reach the weights.
    assert torch.equal(run.model.embedding.weight, before)


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="diverged at step 2: validation loss nan nats"):
        run_scripted(tmp_path, monkeypatch, [math.nan])


# --- the corpus and the model -------------------------------------------------------------------


def test_a_corpus_with_nothing_to_validate_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no text to train on or none to validate on"):
        tiny_trainer(tmp_path, data={"valid_fraction": 0.0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='"cuda" is not available here; use "cpu"'):
        tiny_trainer(tmp_path, training={"device": "cuda"})


def test_tied_parameters_count_once() -> None:
    def count(*, tie: bool) -> int:
        sizes = {"hidden_size": 8, "embedding_dim": 8, "tie_embeddings": tie}
        return parameter_count(LanguageModel(tiny_config(model=sizes).model, 11))

    assert count(tie=False) == 11 * 8 + 4 * 8 * (8 + 8 + 2) + 8 * 11 + 11
    assert count(tie=True) == count(tie=False) - 8 * 11
