"""The wire of `/models`."""

from pydantic import Field

from service.http.wire import Answer
from service.tasks.cards import Card
from service.tasks.engine import Engine


class ModelSummary(Answer):
    """One line of `/models`."""

    name: str = Field(description="What requests call it.")
    task: str = Field(description="Which endpoints it answers.")
    description: str = Field(description="One sentence.")
    precision: str = Field(description="The arithmetic it is served in.")
    adapts: bool = Field(description="Whether requests may set `adapt`.")
    fills: bool = Field(description="Whether it answers /infill.")

    @classmethod
    def of(cls, card: Card, engine: Engine | None) -> "ModelSummary":
        """From a model's card, and from its engine if it is open."""
        if engine is None:
            return cls.taken_from(card)
        return cls.taken_from(card, precision=engine.precision, adapts=engine.adapts)


class ModelList(Answer):
    """Answer of `/models`."""

    models: list[ModelSummary] = Field(description="Served models, by name.")
    next: str | None = Field(description="`after` for the next page; null on the last one.")
