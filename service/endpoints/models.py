"""`GET /models` and `GET /models/{name}`: what is served, and what it is worth."""

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.endpoints.model_details import DETAILS, Detail
from service.endpoints.models_wire import ModelList, ModelSummary
from service.http.answers import engine_named, registry_of
from service.http.problems import PROBLEMS

PAGE, MAX_PAGE = 100, 1000

router = APIRouter()


@router.get("/models", responses={422: PROBLEMS[422]}, tags=["models"])
async def models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="The most models to list.")] = PAGE,
    after: Annotated[
        str, Query(description="List the models whose names come after this one.", max_length=64)
    ] = "",
) -> ModelList:
    """The served models, a page at a time."""
    registry = registry_of(request)
    names = sorted(registry.cards)
    begin = bisect_right(names, after)
    page = names[begin : begin + limit]
    is_last = begin + limit >= len(names)
    return ModelList(
        models=[ModelSummary.of(registry.cards[x], registry.engines.get(x)) for x in page],
        next=None if is_last else page[-1],
    )


@router.get("/models/{name}", responses={404: PROBLEMS[404]}, tags=["models"])
async def model(name: str, request: Request) -> Detail:
    """One model: what it is, what it was trained on and what it is worth."""
    engine = await engine_named(request, name)
    return DETAILS[engine.manifest.task](engine.manifest, engine)
