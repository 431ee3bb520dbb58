"""Maps the name of an engine's option to a request's field: a JSON pointer or another name.

Below HTTP, an error names the option (`errors.OptionError`). In the native endpoints, fields have
the names of the options. The other interfaces use `named_by` to map options to their own fields.
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
    """Rename the options in errors raised inside to fields; options not listed keep their names."""
    try:
        yield
    except InvalidRequest as error:
        named = [
            replace(mistake, option=field_of_option.get(mistake.option, mistake.option))
            for mistake in error.errors
        ]
        raise InvalidRequest(error.detail, errors=named, headers=error.headers) from error
