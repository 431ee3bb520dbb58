"""Where the process stands between its start and its end, for everyone who has to know."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class Lifecycle:
    """Written by who ends the process and by the watchdog, read by routes; one thread."""

    # serving; leaving: /readyz says 503 and all is answered; draining: nothing new is taken.
    phase: Literal["serving", "leaving", "draining"] = "serving"
    in_flight: int = 0  # requests that are being answered
    fatal: str | None = None  # why the process has to end and be started anew

    @property
    def reasons(self) -> list[str]:
        """Why no traffic should come; empty where it should."""
        reasons = [] if self.fatal is None else [self.fatal]
        return reasons if self.phase == "serving" else [*reasons, "the server is about to end"]
