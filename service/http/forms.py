"""Fields of a form: `application/x-www-form-urlencoded` and `multipart/form-data` (RFC 7578).

One pass over the body, with limits on the number of fields and the size of their heads. Files are
rejected.
"""

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl

from service.errors import InvalidRequest

URL_ENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^";,\s]{1,70}))', re.IGNORECASE)
_NAME = re.compile(r';\s*name=(?:"([^"]*)"|([^";\s]+))', re.IGNORECASE)
_FILE = re.compile(r";\s*filename\*?=", re.IGNORECASE)
_CHARSET = re.compile(r';\s*charset="?([^";\s]+)', re.IGNORECASE)
_MAX_HEAD_BYTES = 4096  # of one field
_MOST_PARTS = 4  # parts between `&` for each field allowed, since empty parts are ignored


def form_fields(content_type: str, body: bytes | bytearray, limit: int) -> dict[str, list[str]]:
    """The values of every field, at most `limit` in total. Raises InvalidRequest."""
    if content_type.split(";", maxsplit=1)[0].strip().lower() == MULTIPART:
        found = _multipart(content_type, body, limit)
    else:
        found = iter(_url_encoded(body, limit))
    fields: dict[str, list[str]] = {}
    for name, value in found:
        fields.setdefault(name, []).append(value)
    return fields


def _url_encoded(body: bytes | bytearray, limit: int) -> list[tuple[str, str]]:
    if body.count(b"&") > _MOST_PARTS * limit:
        raise _no_form(limit)
    try:
        # Accept letters beyond ASCII unescaped, as `curl -d` sends them. Ignore a line end after
        # the fields, and empty parts (WHATWG URL standard).
        fields = "&".join(filter(None, body.decode().rstrip("\r\n").split("&")))
        return parse_qsl(
            fields,
            keep_blank_values=True,
            strict_parsing=bool(fields),
            errors="strict",
            max_num_fields=limit,
        )
    except ValueError as error:
        raise _no_form(limit) from error


def _multipart(content_type: str, body: bytes | bytearray, limit: int) -> Iterator[tuple[str, str]]:
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise InvalidRequest(f"Content-Type: {MULTIPART} needs a boundary parameter")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    # Ignore what stands before the first delimiter and after the last one.
    _, *parts = (b"\r\n" + body).split(delimiter, limit + 2)
    if not parts or len(parts) > limit + 1 or not parts[-1].startswith(b"--"):
        raise _no_form(limit)
    for part in parts[:-1]:
        # The line of the delimiter may end with blanks.
        padding, line_end, rest = part.partition(b"\r\n")
        head, separator, value = (line_end + rest).partition(b"\r\n\r\n")
        if padding.strip(b" \t") or not separator or len(head) > _MAX_HEAD_BYTES:
            raise _no_form(limit)
        yield _field_name(head, limit), _text(value, limit)


def _field_name(head: bytes, limit: int) -> str:
    """The name of a field, from its head. Raises InvalidRequest."""
    disposition = ""
    for line in _text(head, limit).split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            disposition = value
        elif name.strip().lower() == "content-transfer-encoding":
            if value.strip().lower() not in {"7bit", "8bit", "binary"}:
                raise InvalidRequest("send field values in a form without a transfer encoding")
        elif name.strip().lower() == "content-type":
            charset = _CHARSET.search(value)
            if charset and charset[1].lower() not in {"utf-8", "utf8", "us-ascii"}:
                raise InvalidRequest("send field values in a form as UTF-8")
    if _FILE.search(disposition):
        raise InvalidRequest("files are not accepted; send the text as a plain form field")
    found = _NAME.search(disposition)
    if found is None:
        raise _no_form(limit)
    return found[1] if found[1] is not None else found[2]


def _text(value: bytes, limit: int) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _no_form(limit) from error


def _no_form(limit: int) -> InvalidRequest:
    return InvalidRequest(f"the body must be a form in UTF-8 with at most {limit} fields")
