"""Server-sent events as a client reads them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event."""

    name: str
    data: str


def parsed(content: bytes) -> list[Event]:
    """The events of a whole stream; comments are left out."""
    assert content.endswith(b"\n\n")
    found = []
    for block in content.decode().split("\n\n")[:-1]:
        lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if fields:
            found.append(Event(fields.get("event", "message"), fields["data"]))
    return found
