"""Changes of models: the decision, the same in every server process, and the answer."""

from dataclasses import dataclass
from typing import Literal

from service.tasks.folders import Stamp


@dataclass(frozen=True, slots=True)
class Change:
    """The result of loading or unloading a model."""

    name: str
    is_served: bool
    changed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What happens to one model, the same in every server process."""

    verb: Literal["serve", "drop", "fail"]  # `fail` records a cause; what is served stays
    name: str
    stamp: Stamp | None  # of the folder that was looked at; None: it is gone
    version: str | None = None  # SHA-256 of the manifest to serve
    cause: str = ""  # why it cannot be served
