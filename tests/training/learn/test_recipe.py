"""Choices: bounded, and more never leads to less."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import ConfigError, parse_config
from training.data.corpus import LEAST_FITTED
from training.learn.document import render
from training.learn.plan import (
    MIN_STEPS,
    Speed,
    held_out_fraction,
    shortened,
    steps_for,
    trial_steps,
    with_steps,
)
from training.learn.recipe import MIN_LINES, check_enough, plan
from training.learn.sight import KINDS, Kind, Labelled, Side, Sight

SIDES = {
    "source": Side("source", "character", "", 8.0),
    "target": Side("target", "whitespace", "", 12.0),
}
sizes = st.integers(200, 50_000_000)
speeds = st.builds(Speed, st.floats(1e-4, 100.0), st.floats(1e-4, 1000.0))
kinds: st.SearchStrategy[Kind] = st.sampled_from(KINDS)
OPTIONS: dict[Kind, dict[str, Any]] = {
    "labels": {"label_first": True, "several": True},
    "tags": {"form": "columns"},
    "accents": {"documents": "line", "loss": ["accents"]},
}


def sight(kind: Kind, chars: int, characters: int = 60) -> Sight:
    texts = max(1, chars // 10) if kind != "file" else 1
    sides: dict[str, Any] = SIDES if kind == "pairs" else {}
    if kind in OPTIONS:
        sides = {"labelled": Labelled(OPTIONS[kind], 10.0, 30, 5)}
    return Sight(kind, "", [Path("data.txt")], texts, chars, characters, **sides)


def document(kind: Kind, chars: int, speed: Speed, minutes: float, size: int = 0) -> dict[str, Any]:
    chosen = plan(sight(kind, chars), size=size)
    return {
        "task": chosen.task,
        "name": "x",
        "data": {"files": ['/a/[odd] "name"\x7f.txt'], **chosen.data, **chosen.sides},
        "model": chosen.model,
        "training": with_steps(chosen, *steps_for(chosen, speed, minutes)),
        **chosen.added,
    }


@given(kinds, sizes, speeds, st.floats(0.1, 1000), st.integers(0, 9))
def test_whatever_is_chosen_is_a_configuration_that_its_document_holds(
    kind: Kind, chars: int, speed: Speed, minutes: float, size: int
) -> None:
    import tomllib

    options = document(kind, chars, speed, minutes, size)
    config = parse_config(options)
    assert parse_config(tomllib.loads(render(["why\nnot"], options))) == config
    training = config.model_dump()["training"]
    assert training["steps"] >= training["eval_every"] >= 1
    assert training["warmup_steps"] < training["steps"]


@given(kinds, sizes, speeds, st.floats(0.1, 1000))
def test_steps_and_evaluations_fit_the_time(
    kind: Kind, chars: int, speed: Speed, minutes: float
) -> None:
    chosen = plan(sight(kind, chars))
    steps, eval_every = steps_for(chosen, speed, minutes)
    evaluations = -(-steps // eval_every)
    spent = steps * speed.step_s + evaluations * speed.evaluation_s
    assert steps == MIN_STEPS or spent <= 60 * minutes
    assert steps_for(chosen, speed, 2 * minutes)[0] >= steps


@given(kinds, sizes, sizes)
def test_more_data_never_gets_a_smaller_model_nor_more_dropout(
    kind: Kind, one: int, other: int
) -> None:
    less, more = (plan(sight(kind, x)) for x in sorted((one, other)))
    assert less.model["hidden_size"] <= more.model["hidden_size"]
    tried, without = ([x["dropout_output"] for x in (y.model, *y.variants)] for y in (less, more))
    assert max(tried) >= max(without)


@given(st.integers(1, 10**9), st.integers(1, 10**12))
def test_what_is_held_out_is_bounded(texts: int, chars: int) -> None:
    assert 0.004 < held_out_fraction(texts, chars) <= 0.15


def test_little_text_has_dropouts_tried_in_a_share_of_the_time_and_much_text_has_not() -> None:
    speed = Speed(0.01, 0.1)
    little = plan(sight("lines", 15_000))
    tried = trial_steps(little, speed, 10)
    assert tried is not None
    assert 3 * tried * speed.step_s <= 0.5 * 600
    assert tried <= steps_for(little, speed, 10)[0]
    assert trial_steps(little, speed, 0.1) is None
    assert trial_steps(plan(sight("lines", 1_500_000)), speed, 10) is None


def test_a_schedule_that_overfits_is_shortened_to_end_soon_after_its_best() -> None:
    assert shortened(4000, tried=1000, best_step=900) == 3000
    assert shortened(1200, tried=1000, best_step=900) == 1200
    assert shortened(2000, tried=1000, best_step=400) == 600
    assert shortened(2000, tried=1000, best_step=2) == MIN_STEPS


def test_text_gets_an_n_gram_and_adapts_where_it_runs_on() -> None:
    assert plan(sight("lines", 12_000)).added == {"ngram": {"order": 8}}
    text = plan(sight("file", 130_000))
    assert text.added == {"ngram": {"order": 8, "max_ngrams": 150_000}, "adapt": {"rank": 64}}
    assert sum("[ngram]" in reason or "[adapt]" in reason for reason in text.reasons) == 2
    assert {*plan(sight("file", 10_000_000)).added} == {"adapt"}
    assert plan(sight("pairs", 12_000)).added == {}


@given(st.sampled_from(["lines", "file"]), st.integers(300, 20_000), st.sampled_from([None, 0.1]))
def test_nothing_is_mixed_in_where_there_is_too_little_text_to_fit_it(
    kind: Kind, chars: int, held_out: float | None
) -> None:
    found = sight(kind, chars)
    chosen = plan(found, held_out=held_out)
    lines = found.texts if kind == "lines" else 0
    share = chosen.data["valid_fraction"] if held_out is None else held_out / 2
    assert ("ngram" in chosen.added) == (share * (chars + lines) >= LEAST_FITTED)
    # How much the files of someone's own hold is seen when they are read.
    assert "ngram" in plan(found, held_out=0.0).added


def test_n_gram_targets_are_for_text_too_little_to_mix_an_n_gram_in() -> None:
    assert plan(sight("lines", 500)).training["ngram_targets"] == 0.5
    # Training refuses them for a long text of a wide vocabulary, such as a Chinese novel.
    for chars, characters in ((12_000, 60), (180_000, 2_500)):
        assert "ngram_targets" not in plan(sight("file", chars, characters)).training


def test_a_smaller_size_is_smaller() -> None:
    for kind in ("file", "pairs"):
        sizes = [plan(sight(kind, 10**6), size=i).model["hidden_size"] for i in range(5)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < sizes[0]


def test_too_little_is_refused_with_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match=f"5 lines are too few: at least {MIN_LINES}"):
        check_enough(sight("lines", 50))
    with pytest.raises(ConfigError, match="20 pairs are too few"):
        check_enough(sight("pairs", 200))
    with pytest.raises(ConfigError, match="200 characters are too few"):
        check_enough(sight("file", 200))
    check_enough(sight("lines", 500))
