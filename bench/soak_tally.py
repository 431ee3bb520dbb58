"""Counts of the soak test's requests and wrong answers."""

from collections import Counter
from dataclasses import dataclass, field

_MOST_MISTAKES = 20


@dataclass(slots=True)
class Tally:
    """Requests by kind, and the first few wrong answers."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    mistakes: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """The number of requests of all kinds."""
        return self.counts.total()

    def note(self, kind: str, *, good: bool, told: object) -> None:
        """Count a request; if its answer is wrong, keep `told`."""
        self.counts[kind] += 1
        if not good:
            self.wrong += 1
            if len(self.mistakes) < _MOST_MISTAKES:
                self.mistakes.append(f"{kind}: {told}")
