"""The protocol of whatever answers a command, and its errors."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from service.errors import BodyTooLarge, InvalidRequest, ModelFailure

Answer: TypeAlias = dict[str, Any]

# Statuses that concern one text, so that the next may still be answered: the body is wrong or too
# large, or the model fails on it.
REFUSED = {BodyTooLarge.status, InvalidRequest.status, ModelFailure.status}
_TEXTS = {"text", "prompt", "source"}


class CommandError(Exception):
    """An error that ends the command; the message is one line."""


class Refusal(CommandError):
    """One request is refused; others may still be answered."""

    def __init__(self, detail: str, option: str) -> None:
        """`option` is the one that was refused; "" for the request as a whole."""
        super().__init__(detail)
        self.option = option
        self.is_of_text = option in _TEXTS or not option


class Answers(Protocol):
    """A server, or an engine in this process."""

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body. Raises CommandError."""

    def close(self) -> None:
        """End it."""
