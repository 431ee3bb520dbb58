"""Settings: environment variables `UNROLL_<NAME>` and flags `--<name>`; a flag wins."""

import argparse
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "UNROLL_"

Count = Annotated[int, Field(gt=0)]


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
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="log level")
    max_connections: Count = Field(1000, description="most connections, a process")
    max_url_bytes: Count = Field(8192, description="longest URL")
    max_header_bytes: Count = Field(16_384, description="largest headers of a request, in all")
    header_timeout_s: float = Field(10.0, gt=0, description="longest time for a head to arrive")
    body_timeout_s: float = Field(30.0, gt=0, description="longest time for a body to arrive")
    max_body_bytes: Count = Field(8 * 2**20, description="largest request body")
    max_inputs: Count = Field(1024, description="most texts in one request")
    max_prompt_chars: Count = Field(100_000, description="longest prompt of /generate")
    max_detail_chars: Count = Field(
        20_000, description="most tokens with details (`tokens`, `logprobs`), a request"
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
    max_queue_rows: Count = Field(4096, description="rows that may wait, a model")
    max_queue_tokens: Count = Field(16 * 2**20, description="tokens that may wait, a model")
    request_timeout_s: float = Field(120.0, gt=0, description="longest time for one request")
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

    def signing_key(self) -> SecretStr:
        """What states are signed with: the key, or a fresh one where none was given."""
        return self.state_key or SecretStr(secrets.token_urlsafe(32))


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and environment. Raises SettingsError; `--help` exits."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve the bundles of a folder over HTTP.",
        epilog="Commands: generate, score, translate, models; each has a --help of its own.",
    )
    for name, field in Settings.model_fields.items():
        help_text = f"{field.description} (default: {field.default}; {PREFIX}{name.upper()})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=help_text
        )
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    unknown = [key for key in environment if key.startswith(PREFIX) and key not in known]
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; there are {', '.join(known)}")
    values = {name: environment[key] for key, name in known.items() if key in environment}
    flags = vars(parser.parse_args(arguments))
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(mistake['loc'][0]).upper()}: {mistake['msg']}"
            for mistake in error.errors(include_url=False)
        ]
        raise SettingsError("\n".join(lines)) from error
