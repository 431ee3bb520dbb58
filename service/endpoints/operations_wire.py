"""The wire of operators: health, readiness and changes of models."""

from typing import Literal

from pydantic import Field

from service.http.wire import Answer


class Live(Answer):
    """Answer of `/livez`."""

    status: Literal["live", "stalled"] = Field(
        description="`stalled`: an engine hangs, and the process has to be started anew."
    )
    reasons: list[str] = Field(description="Which engine; empty when live.")


class EngineState(Answer):
    """One model's engine."""

    model: str = Field(description="The model.")
    ready: bool = Field(description="Whether its worker takes work.")
    last_step_age_s: float = Field(description="Seconds since its last step; it idles between.")
    stalled_s: float = Field(
        description="Seconds for which the step has been seen to run that runs now; 0 when none."
    )


class FailedModel(Answer):
    """A bundle that cannot be served."""

    name: str = Field(description="Its folder.")
    cause: str = Field(description="Why not, in a line.")


class Ready(Answer):
    """Answer of `/readyz`, with 200 or 503."""

    status: Literal["ready", "not ready"] = Field(description="Whether to send traffic.")
    reasons: list[str] = Field(description="Why not; empty when ready.")
    engines: list[EngineState] = Field(description="Every engine.")
    failed: list[FailedModel] = Field(
        description="Bundles that are not served; they make nothing unready."
    )


class Changed(Answer):
    """Answer of `/admin/models/{name}/…`."""

    model: str = Field(description="The model.")
    status: Literal["served", "unloaded"] = Field(description="What it is now.")
    changed: bool = Field(description="Whether it was something else before, or is anew.")
