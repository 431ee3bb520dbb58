"""Server-sent events from text that arrives in pieces (WHATWG HTML, 9.2.6)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    data: str


class EventParser:
    """Events from a stream's text, however it is cut."""

    def __init__(self) -> None:
        self._held = ""
        self._name = ""
        self._data: list[str] = []
        self._began = False

    def feed(self, text: str) -> list[Event]:
        """The events that this text completes."""
        if not self._began and text:
            self._began = True
            text = text.removeprefix("\ufeff")
        self._held += text
        events = []
        while (line := self._line()) is not None:
            if event := self._take(line):
                events.append(event)
        return events

    def _line(self) -> str | None:
        """The next whole line; a CR at the end may be half of a CR LF."""
        ends = [i for i in (self._held.find("\n"), self._held.find("\r")) if i >= 0]
        if not ends:
            return None
        end = min(ends)
        if self._held[end] == "\r" and end + 1 == len(self._held):
            return None
        length = 2 if self._held[end : end + 2] == "\r\n" else 1
        line, self._held = self._held[:end], self._held[end + length :]
        return line

    def _take(self, line: str) -> Event | None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._name = value
            elif name == "data":
                self._data.append(value)
            return None
        event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
        self._name, self._data = "", []
        return event
