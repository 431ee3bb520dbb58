"""Settings: what an operator may choose, with its bounds; `setting_sources` reads them."""

import ipaddress
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service.setting_values import LOOPBACK, is_loopback, origin, parted

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


# A subject covers the settings from the one named here up to the next one named.
SUBJECTS = {
    "host": "Connections",
    "models_dir": "Models",
    "engine_threads": "Engines",
    "api_keys_file": "Access",
    "request_timeout_s": "Time and queues",
    "max_url_bytes": "Limits of a request",
    "max_line_bytes": "Streams",
    "log_level": "Logs and traces",
    "watchdog_s": "Shutdown",
}


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line per mistake."""


class Settings(BaseModel):
    """Everything that an operator may choose."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description=(
            "address to listen on; 0.0.0.0 means every IPv4 address, :: every address of both "
            "families"
        ),
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    workers: Count | None = Field(
        None,
        description=(
            "server processes that share the port; unset starts one per usable processor, at most "
            "eight, and at most one per 512 MiB of usable memory (where the system is not Linux: "
            "one)"
        ),
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description=(
            "path under which a proxy publishes this server, such as /unroll; needed only if the "
            "proxy leaves it in the requests that it forwards"
        ),
    )
    max_connections: Count = Field(
        1000,
        description=(
            "most connections; when all are in use, a new one replaces one that idles between "
            "requests or a stream that stands still, and if there is none, only /livez and "
            "/readyz are answered on it"
        ),
    )
    max_unsent_bytes: Count = Field(
        32 * 2**20,
        description=(
            "most bytes of answers that wait for clients to read them; above that, clients that "
            "read nothing are disconnected, or the answer is refused"
        ),
    )
    keep_alive_s: Seconds = Field(
        75.0,
        description=(
            "how long a connection may idle between requests; keep it above the timeout of a "
            "proxy in front, which is mostly 60 s"
        ),
    )
    header_timeout_s: Seconds = Field(
        10.0, description="how long the headers of a request may take to arrive"
    )
    body_timeout_s: Seconds = Field(
        30.0, description="how long the body of a request may take to arrive"
    )
    models_dir: Path = Field(Path("models"), description="folder with the bundles")
    models_bytes: Count | None = Field(
        None,
        description=(
            "memory for open models: each is opened at its first use, and the least recently used "
            "ones are closed to make room; unset opens all models at the start"
        ),
    )
    precision: Literal["auto", "int8", "fp32"] = Field(
        "auto", description="arithmetic of the models; auto takes what each bundle's export chose"
    )
    on_bad_bundle: Literal["refuse", "skip"] = Field(
        "refuse",
        description=(
            "what to do at the start with a bundle that cannot be served: refuse to start, or "
            "skip it, list it as failed and serve the others"
        ),
    )
    watch_models_s: Seconds | None = Field(
        None,
        description=(
            "how often to look for new, changed and removed bundles; unset looks once, at the start"
        ),
    )
    open_timeout_s: Seconds = Field(
        10.0,
        description=(
            "processor time that opening and checking a bundle may take while others are served; "
            "by the clock, three times that plus 20 s"
        ),
    )
    open_memory_bytes: Count = Field(
        512 * 2**20,
        description=(
            "memory that opening and checking a bundle may take while others are served, on top "
            "of four times the size of its graphs"
        ),
    )
    engine_threads: Count | None = Field(
        None,
        description=(
            "threads per process that run a model; unset takes one per usable processor, at most "
            "four"
        ),
    )
    max_rows: Count = Field(64, description="most rows that step together, per model")
    max_search_rows: Count = Field(
        1024, description="most rows of beams that step together, per encoder-decoder"
    )
    prefix_cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="memory for cached prefixes of all models; 0 turns it off",
    )
    pattern_cache_bytes: int = Field(
        8 * 2**20, ge=0, description="memory for compiled patterns of all models; 0 turns it off"
    )
    api_keys_file: Path | None = Field(
        None,
        description=(
            "file with the hashed API keys (`python -m service keys NAME` prints a line of it); "
            "unset asks for no key and turns /admin off"
        ),
    )
    allowed_hosts: str | None = Field(
        None,
        description=(
            "names in the Host header that are answered, separated by commas, `*` for all; unset "
            "on a loopback address answers this machine's own names only, so that no web page can"
            " reach the server through a name of its own (DNS rebinding), and on any other "
            "address all names"
        ),
    )
    cors_origins: str = Field(
        "",
        description="origins whose pages may send requests, separated by commas; unset allows none",
    )
    frame_ancestors: str = Field(
        "",
        description=(
            "origins whose pages may show the page and /docs in a frame, separated by commas, "
            "`self` for this server's own; unset allows none"
        ),
    )
    state_key: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "secret that signs state handles, the same on every replica; set it in the "
            "environment, since others can read command lines; unset draws one at the start, and "
            "handles end with the server"
        ),
    )
    state_max_age_s: Seconds = Field(86_400.0, description="how long a state handle is accepted")
    request_timeout_s: Seconds = Field(
        120.0,
        description=(
            "longest time for one request; a client may ask for less in the header "
            "X-Request-Timeout, in seconds"
        ),
    )
    max_queue_requests: Count = Field(1024, description="most requests that may wait, per model")
    max_queue_rows: Count = Field(4096, description="most rows that may wait, per model")
    max_queue_tokens: Count = Field(16 * 2**20, description="most tokens that may wait, per model")
    max_queue_s: Seconds | None = Field(
        None,
        description=(
            "longest time that a request may be expected to wait, judged by the measured rate; "
            "unset bounds the queue by its contents alone"
        ),
    )
    max_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of each queue limit that the requests with one API key may fill",
    )
    max_url_bytes: Count = Field(8192, description="longest URL")
    max_header_bytes: Count = Field(16_384, description="largest headers of a request, in total")
    max_body_bytes: Count = Field(8 * 2**20, description="largest request body")
    max_bodies_bytes: Count = Field(
        16 * 2**20,
        description=(
            "most bytes of all request bodies in memory, without the first 64 KB of each; every "
            "process has room for one body"
        ),
    )
    max_values: Count = Field(
        131_072,
        description=(
            "most values in a JSON body: token ids, texts in lists, and the lists and objects "
            "around them"
        ),
    )
    max_body_chunks: Count = Field(
        8192, description="most chunks of a request body that is sent in chunks and is not a stream"
    )
    max_inputs: Count = Field(1024, description="most texts in one request")
    max_prompt_chars: Count = Field(
        100_000, description="longest prompt, and longest text for LibreTranslate"
    )
    max_details: Count = Field(
        480_000,
        description=(
            "most details (`tokens`, `logprobs`) in an answer, counted as tokens · (4 + "
            "alternatives); the default takes 0.3 GB of memory at most"
        ),
    )
    max_tokens: Count = Field(4096, description="most tokens that one choice may generate")
    max_n: Count = Field(16, description="most choices per prompt, and most hypotheses per source")
    max_beam_size: Count = Field(32, description="widest beam of /translate")
    max_cost_tokens: Count = Field(
        262_144,
        description=(
            "most tokens that one request may generate: inputs · n · max_tokens, or sources · "
            "beam_size · max_tokens"
        ),
    )
    max_stop: Count = Field(16, description="most stop strings in a request")
    max_stop_chars: Count = Field(256, description="longest stop string")
    max_pattern_chars: Count = Field(1024, description="longest pattern")
    max_pattern_states: Count = Field(
        2048,
        description=(
            "most states of a pattern's automaton, and most characters of a pattern once its "
            "repetitions are written out"
        ),
    )
    max_pattern_steps: Count = Field(
        1_000_000,
        description="most steps that compiling a pattern may take (a million take about 0.3 s)",
    )
    max_choices: Count = Field(1024, description="most texts in `choices` or `candidates`")
    max_choices_chars: Count = Field(
        8192,
        description="most characters of `choices`, `candidates` or `allowed_chars` together",
    )
    max_states: Count = Field(256, description="most state handles in one answer")
    max_line_bytes: Count = Field(
        2**20,
        description="longest line of a streamed body; longer lines are reported and skipped",
    )
    stream_batch_bytes: Count = Field(
        64 * 2**10,
        description="most bytes of a streamed body that are answered together",
    )
    stream_idle_s: Seconds = Field(3600.0, description="how long a streamed body may stand still")
    stream_yield_s: Seconds = Field(
        5.0,
        description=(
            "how long a streamed body may stand still before a new connection may take its place,"
            " if no other place is free"
        ),
    )
    heartbeat_s: Seconds = Field(
        10.0, description="how long a stream may go without an event before it sends a comment"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level to log"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="lines for people (text), or JSON"
    )
    log_requests: bool = Field(True, description="log a line for every request")
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description=(
            "where to send OpenTelemetry spans (OTLP over HTTP), such as "
            "http://collector:4318/v1/traces; needs the extra `telemetry`"
        ),
    )
    watchdog_s: Seconds = Field(
        30.0,
        description=(
            "how long one step of an engine may take; a longer step counts as hanging, and its "
            "process ends with status 1"
        ),
    )
    lame_duck_s: float = Field(
        1.0,
        ge=0,
        description=(
            "how long everything is still answered after SIGTERM, while /readyz already says 503"
        ),
    )
    grace_s: float = Field(
        10.0, ge=0, description="how long the requests that are then in flight may still take"
    )

    @field_validator("host")
    @classmethod
    def _is_bare(cls, value: str) -> str:
        """The plain form of spellings such as `[::1]`, `localhost.` and `::ffff:127.0.0.1`."""
        name = value.removeprefix("[").removesuffix("]").removesuffix(".") or value
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return name if mapped is None else str(mapped)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        return ",".join(origin(part) for part in parted(value))

    @field_validator("frame_ancestors")
    @classmethod
    def _are_ancestors(cls, value: str) -> str:
        return ",".join("self" if x == "self" else origin(x) for x in parted(value))

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names in Host that are answered; None for all."""
        if self.allowed_hosts is None:
            own = self.host.lower()
            return tuple(dict.fromkeys((*LOOPBACK, own))) if is_loopback(own) else None
        names = parted(self.allowed_hosts)
        return None if "*" in names else tuple(name.lower() for name in names)

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins whose pages may ask."""
        return parted(self.cors_origins)

    @property
    def framers(self) -> str:
        """The page's `frame-ancestors` (Content Security Policy, 7.7.2)."""
        named = parted(self.frame_ancestors)
        return " ".join("'self'" if x == "self" else x for x in named) or "'none'"

    def redacted(self) -> dict[str, Any]:
        """Every setting; a secret shows only that it is set."""
        return self.model_dump(mode="json")

    def signing_key(self) -> SecretStr:
        """The key that signs state handles: the one given, or else a new one."""
        return self.state_key or SecretStr(secrets.token_urlsafe(32))
