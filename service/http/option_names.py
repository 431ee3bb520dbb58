"""What an engine's option is called in a request: its JSON pointer, or another interface's field.

Below HTTP an error names the option (`errors.OptionError`). The fields of the native endpoints have
the options' names; the other interfaces say with `named_by` which fields of theirs stand for them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from service.errors import InvalidRequest, OptionError


def pointer_of(mistake: OptionError) -> str:
    """The JSON pointer (RFC 6901) of a mistake; "" is the whole body."""
    parts = (mistake.option, *mistake.within) if mistake.option else ()
    return "".join(f"/{part}" for part in parts)


@contextmanager
def named_by(field_of_option: Mapping[str, str]) -> Iterator[None]:
    """Errors that are raised inside name fields; options that are not listed keep their names."""
    try:
        yield
    except InvalidRequest as error:
        named = [
            replace(mistake, option=field_of_option.get(mistake.option, mistake.option))
            for mistake in error.errors
        ]
        raise InvalidRequest(error.detail, errors=named, headers=error.headers) from error
