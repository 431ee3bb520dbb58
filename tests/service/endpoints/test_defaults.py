"""What a request leaves out has the default of the engines' options."""

from service.endpoints.generate_wire import GenerateRequest
from service.endpoints.score_stream_wire import ScoreStreamQuery
from service.endpoints.score_wire import ScoreRequest
from service.endpoints.translate_wire import TranslateRequest
from service.tasks.translations import TranslateOptions
from service.tasks.values import GenerateOptions, ScoreOptions


def test_a_request_without_options_asks_for_the_defaults() -> None:
    assert GenerateRequest().options() == GenerateOptions()
    assert ScoreRequest(text="").options() == ScoreOptions()
    assert TranslateRequest(source="").options() == TranslateOptions()


def test_a_streamed_score_has_the_defaults_of_one_that_is_not() -> None:
    query, request = ScoreStreamQuery(), ScoreRequest(text="")
    shared = set(ScoreStreamQuery.model_fields) & set(ScoreRequest.model_fields)
    assert {name: getattr(query, name) for name in shared} == {
        name: getattr(request, name) for name in shared
    }
