"""Settings: environment variables `UNROLL_<NAME>` and flags `--<name>`; a flag wins.

`UNROLL_<NAME>_FILE` names a file that holds the value, as container engines hand out secrets.
"""

import argparse
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

PREFIX = "UNROLL_"
FILE_SUFFIX = "_FILE"

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(Exception):
    """A setting that cannot be used; one line a mistake."""


class Settings(BaseModel):
    """Everything that an operator may choose."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    models_dir: Path = Field(Path("models"), description="folder of bundles")
    precision: Literal["auto", "int8", "fp32"] = Field(
        "auto", description="arithmetic; auto takes what each bundle's export chose"
    )
    engine_threads: Count | None = Field(
        None,
        description="threads that run a model in each process; None shares out the usable "
        "processors, up to four each",
    )
    workers: Count = Field(1, description="server processes that share the port")
    prefix_cache_bytes: int = Field(
        64 * 2**20, ge=0, description="memory for prefixes that were read before, a model; 0 is off"
    )
    on_bad_bundle: Literal["refuse", "skip"] = Field(
        "refuse",
        description="a bundle that cannot be served ends the start, or is listed as failed while "
        "the others are served",
    )
    watch_models_s: Seconds | None = Field(
        None,
        description="how often to look for new, changed and removed bundles; None looks once",
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="log level")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or JSON")
    log_requests: bool = Field(True, description="log a line for every request")
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="where OpenTelemetry spans are sent (OTLP over HTTP, such as "
        "http://collector:4318/v1/traces); it needs the extra `telemetry`",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file of hashed API keys (`python -m service keys`); None asks for none, and "
        "answers nothing under /admin",
    )
    allowed_hosts: str | None = Field(
        None,
        description="names in Host that are answered, parted by commas, `*` for all; None is this "
        "machine's own on a loopback address, so that no page of elsewhere can ask by way of a "
        "name that it made point here, and all on others",
    )
    cors_origins: str = Field(
        "", description="origins whose pages may ask, parted by commas; empty allows none"
    )
    max_connections: Count = Field(1000, description="most connections, a process")
    max_url_bytes: Count = Field(8192, description="longest URL")
    max_header_bytes: Count = Field(16_384, description="largest headers of a request, in all")
    keep_alive_s: Seconds = Field(
        20.0,
        description="longest time for which a connection may idle between requests; clients and "
        "proxies that keep theirs for longer meet closed ones",
    )
    header_timeout_s: float = Field(10.0, gt=0, description="longest time for a head to arrive")
    body_timeout_s: float = Field(30.0, gt=0, description="longest time for a body to arrive")
    max_body_bytes: Count = Field(8 * 2**20, description="largest request body")
    max_inputs: Count = Field(1024, description="most texts in one request")
    max_prompt_chars: Count = Field(100_000, description="longest prompt of /generate")
    max_details: Count = Field(
        480_000,
        description="most details (`tokens`, `logprobs`) in an answer, counted as tokens · (4 + "
        "alternatives); the default takes 0.3 GB of memory at most",
    )
    max_tokens: Count = Field(4096, description="most tokens that one choice may generate")
    max_n: Count = Field(16, description="most choices a prompt, and hypotheses a source")
    max_beam_size: Count = Field(32, description="widest beam of /translate")
    max_cost_tokens: Count = Field(
        262_144,
        description="most tokens that one request may generate: inputs · n · max_tokens, and "
        "sources · beam_size · max_tokens",
    )
    max_stop: Count = Field(16, description="most stop strings")
    max_stop_chars: Count = Field(256, description="longest stop string")
    max_pattern_chars: Count = Field(1024, description="longest pattern")
    max_pattern_states: Count = Field(
        2048,
        description="most states of a pattern's automaton, and most characters of a pattern with "
        "its repetitions written out",
    )
    max_pattern_steps: Count = Field(
        1_000_000,
        description="most steps that compiling a pattern may take (a million: about 0.3 s)",
    )
    max_choices: Count = Field(1024, description="most texts in `choices`")
    max_choices_chars: Count = Field(
        8192, description="most characters of all `choices`, and of `allowed_chars`"
    )
    pattern_cache_bytes: int = Field(
        8 * 2**20, ge=0, description="memory for compiled patterns, a model; 0 is off"
    )
    max_rows: Count = Field(64, description="rows that step together, a model")
    max_search_rows: Count = Field(
        1024, description="rows of beams that step together, an encoder-decoder"
    )
    max_queue_requests: Count = Field(1024, description="requests that may wait, a model")
    max_queue_rows: Count = Field(4096, description="rows that may wait, a model")
    max_queue_tokens: Count = Field(16 * 2**20, description="tokens that may wait, a model")
    max_queue_s: Seconds | None = Field(
        None,
        description="longest time that what is before a request may be expected to take, from the "
        "measured rate; None bounds the queue by what is in it alone",
    )
    max_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the bounds on a queue that the requests with one API key may fill",
    )
    request_timeout_s: float = Field(
        120.0,
        gt=0,
        description="longest time for one request; its header X-Request-Timeout (seconds) may ask "
        "for less",
    )
    watchdog_s: float = Field(
        30.0, gt=0, description="longest time for one step of an engine: after that it hangs"
    )
    lame_duck_s: float = Field(
        1.0,
        ge=0,
        description="after SIGTERM, how long everything is still answered while /readyz says 503",
    )
    grace_s: float = Field(
        10.0, ge=0, description="after that, how long requests in flight may take to end"
    )
    max_line_bytes: Count = Field(
        2**20, description="longest line of a streamed /score; longer ones are told and skipped"
    )
    stream_batch_bytes: Count = Field(
        64 * 2**10, description="most bytes of a streamed /score that are scored together"
    )
    stream_idle_s: float = Field(
        3600.0, gt=0, description="longest time for which a streamed body may stand still"
    )
    heartbeat_s: float = Field(
        10.0, gt=0, description="a stream without an event for so long gets a comment"
    )
    state_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="secret that state handles are signed with, the same on every replica; better "
        "set in the environment, since others can read command lines; None draws one, and handles "
        "end with the server",
    )
    state_max_age_s: float = Field(86_400.0, gt=0, description="how long a state handle is taken")
    max_states: Count = Field(256, description="most state handles in one answer")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        return ",".join(_origin(part) for part in _parted(value))

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names in Host that are answered; None for all."""
        if self.allowed_hosts is None:
            return LOOPBACK if self.host in LOOPBACK else None
        names = _parted(self.allowed_hosts)
        return None if "*" in names else tuple(name.lower() for name in names)

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins whose pages may ask."""
        return _parted(self.cors_origins)

    def redacted(self) -> dict[str, Any]:
        """Every setting, and of a secret that there is one."""
        return self.model_dump(mode="json")

    def signing_key(self) -> SecretStr:
        """What states are signed with: the key, or a fresh one where none was given."""
        return self.state_key or SecretStr(secrets.token_urlsafe(32))


def _origin(text: str) -> str:
    """An origin as browsers send it: no path, small letters, no port that goes without saying."""
    if text in {"*", "null"}:
        return text
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        raise ValueError(
            "an origin is scheme://host or scheme://host:port, such as https://page.example"
        )
    scheme, host, port = found.groups()
    known = {"http": "80", "https": "443"}.get(scheme)
    return f"{scheme}://{host}" + ("" if port in {None, known} else f":{port}")


def _parted(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _read_secret(key: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{key}: {path}: {cause}") from error


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and environment. Raises SettingsError; `--help` exits."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve the bundles of a folder over HTTP.",
        epilog="Commands: generate, score, translate, models, keys; each has a --help of its own.",
    )
    for name, field in Settings.model_fields.items():
        help_text = f"{field.description} (default: {field.default}; {PREFIX}{name.upper()})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=help_text
        )
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    files = {f"{key}{FILE_SUFFIX}": key for key in known}
    for key in environment:
        if key.startswith(PREFIX) and key not in known and key not in files:
            raise SettingsError(f"{key}: no such setting; there are {', '.join(known)}")
    given = {key: environment[key] for key in known if key in environment}
    for key, named in files.items():
        # A name that is a setting itself, such as UNROLL_API_KEYS_FILE, is none of these.
        if key in environment and key not in known:
            if named in given:
                raise SettingsError(f"{key}: {named} is set, too; one of them has to go")
            given[named] = _read_secret(key, environment[key])
    values = {known[key]: value for key, value in given.items()}
    flags = vars(parser.parse_args(arguments))
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(mistake['loc'][0]).upper()}: "
            + mistake["msg"].removeprefix("Value error, ")
            for mistake in error.errors(include_url=False)
        ]
        raise SettingsError("\n".join(lines)) from error
