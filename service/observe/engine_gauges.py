"""The state of an engine, or of several together, as gauges show it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """The state of an engine at one moment."""

    running_rows: int
    queued_rows: int
    queued_requests: int
    queued_tokens: int
    stalled_s: float

    def with_other(self, other: "EngineGauges") -> "EngineGauges":
        """The state of both engines together."""
        return EngineGauges(
            self.running_rows + other.running_rows,
            self.queued_rows + other.queued_rows,
            self.queued_requests + other.queued_requests,
            self.queued_tokens + other.queued_tokens,
            max(self.stalled_s, other.stalled_s),
        )


IDLE = EngineGauges(0, 0, 0, 0, 0.0)
