"""`GET /models` and `GET /models/{name}`: what is served, and what it is worth."""

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from service.endpoints.model_details import DETAILS, Detail
from service.endpoints.models_wire import ModelList, ModelSummary
from service.http.answers import engine_named, registry_of
from service.http.problems import PROBLEMS

PAGE, MAX_PAGE = 100, 1000

router = APIRouter()


class Page(BaseModel):
    """Which models to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(PAGE, ge=1, le=MAX_PAGE, description="The most models to list.")
    after: str = Field(
        "", max_length=64, description="List the models whose names come after this one."
    )


@router.get("/models", responses={422: PROBLEMS[422]}, tags=["models"])
async def models(request: Request, wanted: Annotated[Page, Query()]) -> ModelList:
    """The served models, a page at a time."""
    registry = registry_of(request)
    names = sorted(registry.cards)
    begin = bisect_right(names, wanted.after)
    page = names[begin : begin + wanted.limit]
    is_last = begin + wanted.limit >= len(names)
    return ModelList(
        models=[ModelSummary.of(registry.cards[x], registry.engines.get(x)) for x in page],
        next=None if is_last else page[-1],
    )


@router.get("/models/{name}", responses={404: PROBLEMS[404]}, tags=["models"])
async def model(name: str, request: Request) -> Detail:
    """One model: what it is, what it was trained on and what it is worth."""
    engine = await engine_named(request, name)
    return DETAILS[engine.manifest.task](engine.manifest, engine)
