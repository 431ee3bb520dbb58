"""The errors of work whose engine or model run failed."""

from service.errors import EngineStopped, ModelFailure
from service.scheduling.admission import RETRY_AFTER_S


def engine_stopped() -> EngineStopped:
    """The error for work of a worker that has ended."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return EngineStopped("the engine of this model is not running", headers=headers)


def run_failed() -> ModelFailure:
    """The error for the rows of a model run that raised."""
    return ModelFailure("the model run failed; other requests go on")
