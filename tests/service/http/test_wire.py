import pytest
from pydantic import Field, ValidationError
from pydantic_core import to_json

from service.http.wire import AlternativeOut, Answer
from service.tasks.scored_tokens import Alternative


class Likeliest(Answer):
    """An answer with a field of its own and one that the result calls otherwise."""

    token: str = Field(description="The token.")
    logprob: float = Field(description="Its log-probability.")
    rank: int = Field(description="Its place.")


def test_an_answer_takes_the_fields_that_a_result_has_and_is_given_the_others() -> None:
    found = Likeliest.taken_from(Alternative("a", -0.5), rank=1)
    assert found == Likeliest.model_validate({"token": "a", "logprob": -0.5, "rank": 1})
    assert found.model_fields_set == {"token", "logprob", "rank"}
    assert to_json(found) == b'{"token":"a","logprob":-0.5,"rank":1}'
    # What is given goes before what the result has.
    assert Likeliest.taken_from(Alternative("a", -0.5), logprob=-1.0, rank=1).logprob == -1.0


def test_an_answer_lacks_no_field() -> None:
    with pytest.raises(AttributeError, match="rank"):
        Likeliest.taken_from(Alternative("a", -0.5))


def test_an_answer_is_as_frozen_as_one_that_is_validated() -> None:
    found = AlternativeOut.taken_from(Alternative("a", -0.5))
    with pytest.raises(ValidationError):
        found.logprob = -1.0  # type: ignore[misc]
    assert found.model_copy() == found
