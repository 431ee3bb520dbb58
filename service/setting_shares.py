"""How several server processes share what the settings allow the server.

A limit on the whole server, such as `max_connections`, is divided among its processes, so that it
means the same with any number of them.
"""

from service.settings import Settings

# Batches are better than processes beyond this: rows of one process step together.
MAX_DEFAULT_WORKERS = 8
# Memory for which one more process is started: the largest answers (`max_details`) take 0.3 GB.
WORKER_BYTES = 512 * 2**20
_DIVIDED = (
    "max_connections",
    "max_unsent_bytes",
    "max_bodies_bytes",
    "models_bytes",
    "prefix_cache_bytes",
    "pattern_cache_bytes",
    "max_queue_requests",
    "max_queue_rows",
    "max_queue_tokens",
)


def default_workers(cpus: int, memory_bytes: int) -> int:
    """Server processes for these usable processors and this usable memory.

    At least one, at most one per processor, and at most MAX_DEFAULT_WORKERS.
    """
    return max(1, min(cpus, memory_bytes // WORKER_BYTES, MAX_DEFAULT_WORKERS))


def share_of(settings: Settings, workers: int) -> Settings:
    """The settings of one of `workers` processes: its share of every limit on the server.

    A share has room for one request's body, and for one connection and one request at least.
    """
    shares = {
        name: max(1, whole // workers) if (whole := getattr(settings, name)) else whole
        for name in _DIVIDED
    }
    shares["max_bodies_bytes"] = max(
        shares["max_bodies_bytes"], min(settings.max_body_bytes, settings.max_bodies_bytes)
    )
    return settings.model_copy(update={**shares, "workers": workers})
