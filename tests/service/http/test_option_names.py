import pytest

from service.errors import InvalidRequest, OptionError
from service.http.option_names import named_by, pointer_of


@pytest.mark.parametrize(
    ("mistake", "pointer"),
    [
        (OptionError("max_tokens", "too many"), "/max_tokens"),
        (OptionError("choices", "not written", (2,)), "/choices/2"),
        (OptionError("parameters", "no number", ("stop", 0)), "/parameters/stop/0"),
        (OptionError("", "the fields do not agree"), ""),
    ],
)
def test_a_mistake_has_the_pointer_of_its_option(mistake: OptionError, pointer: str) -> None:
    assert pointer_of(mistake) == pointer


def test_an_interface_names_its_own_fields_and_keeps_the_rest() -> None:
    raised = InvalidRequest(
        "two mistakes",
        errors=[OptionError("source", "too long", (1,)), OptionError("seed", "below 0")],
        headers={"Retry-After": "1"},
    )
    with pytest.raises(InvalidRequest) as told, named_by({"source": "q"}):
        raise raised
    assert told.value.errors == (
        OptionError("q", "too long", (1,)),
        OptionError("seed", "below 0"),
    )
    assert (told.value.detail, told.value.headers) == (raised.detail, raised.headers)
