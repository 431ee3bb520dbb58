"""The client's results and options are the wire's: the same names, and the types that fit.

The client is a package by itself and cannot import the service, so it declares them again.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from service.endpoints import (
    classify_stream_wire,
    classify_wire,
    generate_wire,
    infill_wire,
    models_wire,
    score_stream_wire,
    score_wire,
    tag_stream_wire,
    tag_wire,
)
from service.endpoints import translate_wire as translating
from service.http import wire
from unroll_client import options, results

RESULTS: dict[type[Any], type[BaseModel]] = {
    results.Usage: wire.Usage,
    results.Alternative: wire.AlternativeOut,
    results.GeneratedToken: generate_wire.GeneratedToken,
    results.Choice: generate_wire.ChoiceOut,
    results.GenerateResult: generate_wire.GenerateResult,
    results.GenerateAnswer: generate_wire.GenerateResponse,
    results.StreamedToken: generate_wire.StreamedToken,
    results.StreamedEnd: generate_wire.StreamedEnd,
    results.GenerateDone: generate_wire.GenerateDone,
    results.ScoredToken: score_wire.ScoreToken,
    results.ScoredWord: score_wire.ScoreWord,
    results.ScoreResult: score_wire.ScoreResult,
    results.ScoreAnswer: score_wire.ScoreResponse,
    results.HypothesisToken: translating.HypothesisToken,
    results.Hypothesis: translating.HypothesisOut,
    results.TranslateResult: translating.TranslateResult,
    results.TranslateAnswer: translating.TranslateResponse,
    results.TranslatedToken: translating.StreamedTranslationToken,
    results.Fill: infill_wire.FillOut,
    results.InfillResult: infill_wire.InfillResult,
    results.InfillAnswer: infill_wire.InfillResponse,
    results.Label: classify_wire.LabelOut,
    results.LabelStep: classify_wire.LabelStepOut,
    results.ClassifyResult: classify_wire.ClassifyResult,
    results.ClassifyAnswer: classify_wire.ClassifyResponse,
    results.Tag: tag_wire.TagOut,
    results.Tagging: tag_wire.TaggingOut,
    results.Place: tag_wire.PlaceOut,
    results.TagResult: tag_wire.TagResult,
    results.TagAnswer: tag_wire.TagResponse,
    results.Model: models_wire.ModelSummary,
}
CLASS_OF = {model: kind for kind, model in RESULTS.items()}

# Of each the fields that are arguments by themselves.
OPTIONS: dict[type[Any], tuple[type[BaseModel], set[str]]] = {
    options.GenerateOptions: (generate_wire.GenerateRequest, {"prompt", "stream"}),
    options.ScoreOptions: (score_wire.ScoreRequest, {"text"}),
    options.LineOptions: (score_stream_wire.ScoreStreamQuery, {"mode", "every"}),
    options.InfillOptions: (infill_wire.InfillRequest, {"prefix", "suffix", "stream"}),
    options.ClassifyOptions: (classify_wire.ClassifyRequest, {"text"}),
    options.ClassifyLineOptions: (
        classify_stream_wire.ClassifyStreamQuery,
        {"mode", "every"},
    ),
    options.TagLineOptions: (tag_stream_wire.TagStreamQuery, set()),
    options.TagOptions: (tag_wire.TagRequest, {"text"}),
    options.TranslateOptions: (translating.TranslateRequest, {"source", "stream"}),
}


def plain(hint: Any, lists: type[Any]) -> Any:
    """The type of a field as the client has it: without bounds, its lists in `lists`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return plain(arguments[0], lists)
    if origin is Literal:
        return str
    if origin in {Union, UnionType}:
        return frozenset(plain(each, lists) for each in arguments)
    if origin in {list, tuple, Iterable}:
        return (lists, plain(arguments[0], lists))
    if origin in {dict, Mapping}:
        return (Mapping, *(plain(each, lists) for each in arguments))
    return CLASS_OF.get(hint, hint)


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    return get_type_hints(model, include_extras=True)


def test_every_result_of_the_client_is_held_to_the_wire() -> None:
    declared = {x for _, x in inspect.getmembers(results, dataclasses.is_dataclass)}
    assert declared == set(RESULTS)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_has_the_fields_of_the_wire(kind: type[Any]) -> None:
    wanted = {
        name: plain(hint, tuple)
        for name, hint in fields_of(RESULTS[kind]).items()
        if name in RESULTS[kind].model_fields
    }
    assert {name: plain(hint, tuple) for name, hint in get_type_hints(kind).items()} == wanted


@pytest.mark.parametrize("kind", OPTIONS)
def test_an_option_has_a_field_of_the_wire(kind: type[Any]) -> None:
    model, others = OPTIONS[kind]
    hints = fields_of(model)
    wanted = {name: plain(hints[name], list) for name in model.model_fields if name not in others}
    # What may be left out is no null in the client.
    found = {name: plain(hint, list) for name, hint in get_type_hints(kind).items()}
    assert found == {name: without_none(hint) for name, hint in wanted.items()}


def without_none(hint: Any) -> Any:
    if not isinstance(hint, frozenset):
        return hint
    rest = hint - {type(None)}
    return next(iter(rest)) if len(rest) == 1 else rest
