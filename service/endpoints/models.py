"""`GET /models` and `GET /models/{name}`: what is served, and what it is worth."""

from fastapi import APIRouter, Request

from service.endpoints.model_details import DETAILS, Detail
from service.endpoints.models_wire import ModelList, ModelSummary
from service.http.answers import engine_named, served_engines
from service.http.problems import PROBLEMS

router = APIRouter()


@router.get("/models", tags=["models"])
async def models(request: Request) -> ModelList:
    """Every served model."""
    return ModelList(models=[ModelSummary.of(engine) for engine in served_engines(request)])


@router.get("/models/{name}", responses={404: PROBLEMS[404]}, tags=["models"])
async def model(name: str, request: Request) -> Detail:
    """One model: what it is, what it was trained on and what it is worth."""
    engine = engine_named(request, name)
    return DETAILS[engine.manifest.task](engine.manifest, engine)
