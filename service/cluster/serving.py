"""Ray Serve: a replica is one process with the whole application (docker/ray/serve.yaml)."""

import os

import ray
from fastapi import FastAPI
from ray import serve

from service.app import create_app
from service.observe.logs import log_to_stderr
from service.runtime.allocator import bound_arenas
from service.setting_sources import load_settings


def _application() -> FastAPI:
    """The application with the settings of the replica's environment."""
    bound_arenas(os.environ)
    settings = load_settings([], os.environ)
    log_to_stderr(settings)
    # Ray divides a node's processors among replicas, but pins no replica to any of them.
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    threads = settings.engine_threads or max(1, int(cpus))
    return create_app(settings.model_copy(update={"engine_threads": threads}))


class _Replica:
    """Ray calls it from a thread other than the main one, so nothing here handles signals."""

    app: FastAPI

    def check_health(self) -> None:
        """Raise RuntimeError once an engine hangs, so that Ray replaces the replica."""
        if self.app.state.lifecycle.fatal is not None:
            raise RuntimeError(self.app.state.lifecycle.fatal)


app = serve.deployment(serve.ingress(_application)(_Replica), name="unroll").bind()
