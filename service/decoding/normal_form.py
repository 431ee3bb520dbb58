"""Text as a model reads it; a text that cannot be read becomes an error of its option."""

from service.bundle.marks import TooManyMarks
from service.bundle.text import Normalization, normalize
from service.errors import InvalidRequest


def normal_form(text: str, rules: Normalization, option: str = "") -> str:
    """`normalize`. Raises InvalidRequest."""
    try:
        return normalize(text, rules)
    except TooManyMarks as error:
        if not option:
            raise InvalidRequest(str(error)) from error
        raise InvalidRequest.of_option(option, str(error)) from error
