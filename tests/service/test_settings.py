"""Settings from the environment and from flags."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.settings import Settings, SettingsError, load_settings


def refusal(arguments: list[str], environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(arguments, environment)
    return str(refused.value)


def test_nothing_said_is_the_defaults() -> None:
    assert load_settings([], {}) == Settings()
    assert load_settings([], {"PATH": "/bin", "unroll_port": "1"}) == Settings()


def test_the_server_listens_to_this_machine_alone_unless_told_otherwise() -> None:
    assert Settings().host == "127.0.0.1"


def test_the_environment_sets() -> None:
    settings = load_settings(
        [],
        {
            "UNROLL_HOST": "0.0.0.0",  # noqa: S104
            "UNROLL_PORT": "0",
            "UNROLL_MODELS_DIR": "/srv/my models",
            "UNROLL_LOG_LEVEL": "debug",
            "UNROLL_REQUEST_TIMEOUT_S": "0.5",
        },
    )
    assert settings.host == "0.0.0.0"  # noqa: S104
    assert settings.port == 0
    assert settings.models_dir == Path("/srv/my models")
    assert settings.log_level == "debug"
    assert settings.request_timeout_s == 0.5


@pytest.mark.parametrize("flags", [["--port", "9"], ["--port=9"]])
def test_a_flag_wins_over_the_environment(flags: list[str]) -> None:
    environment = {"UNROLL_PORT": "8", "UNROLL_MAX_ROWS": "7"}
    settings = load_settings(flags, environment)
    assert (settings.port, settings.max_rows) == (9, 7)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_a_flag_a_variable_and_a_description(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(["--help"], {})
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"--{name.replace('_', '-')} VALUE" in shown
    assert f"UNROLL_{name.upper()}" in re.sub(r"\s", "", shown)
    words = {"host": "h", "models_dir": "m", "log_level": "error", "precision": "int8"}
    words |= {"state_key": "a key of enough characters", "max_queue_share": "0.25"}
    words |= {"on_bad_bundle": "skip", "log_format": "json", "log_requests": "False"}
    words |= {"otlp_endpoint": "http://127.0.0.1:4318/v1/traces"}
    words |= {"cors_origins": "https://page.example"}
    value = words.get(name, "7")
    by_flag = load_settings([f"--{name.replace('_', '-')}", value], {})
    by_variable = load_settings([], {f"UNROLL_{name.upper()}": value})
    assert by_flag == by_variable
    found = getattr(by_flag, name)
    if isinstance(found, SecretStr):
        found = found.get_secret_value()
    assert str(found) in {value, "7.0"}


def test_an_unknown_variable_is_refused_with_the_known_ones() -> None:
    message = refusal([], {"UNROLL_PROT": "1"})
    assert message.startswith("UNROLL_PROT: no such setting; there are UNROLL_HOST, UNROLL_PORT")


def test_an_unknown_flag_ends_with_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(["--prot", "1"], {})
    assert ended.value.code == 2
    assert "--prot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", ""),
        ("PORT", "8000.5"),
        ("LOG_LEVEL", "loud"),
        ("PRECISION", "int4"),
        ("ENGINE_THREADS", "0"),
        ("ENGINE_THREADS", "all"),
        ("WORKERS", "0"),
        ("PREFIX_CACHE_BYTES", "-1"),
        ("MAX_ROWS", "0"),
        ("MAX_ROWS", "-3"),
        ("MAX_BODY_BYTES", "8M"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("REQUEST_TIMEOUT_S", "inf"),
        ("STATE_KEY", "fifteen letters"),
        ("STATE_MAX_AGE_S", "0"),
    ],
)
def test_a_bad_value_is_named_by_its_setting(name: str, value: str) -> None:
    message = refusal([], {f"UNROLL_{name}": value})
    assert message.startswith(f"UNROLL_{name}: ")
    assert "\n" not in message
    flag = f"--{name.lower().replace('_', '-')}={value}"
    assert refusal([flag], {}) == message


def test_a_key_that_is_refused_is_not_repeated() -> None:
    message = refusal([], {"UNROLL_STATE_KEY": "too short"})
    assert message.startswith("UNROLL_STATE_KEY: ")
    assert "too short" not in message
    assert "16" in message


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("a key of enough characters\n")
    settings = load_settings([], {"UNROLL_STATE_KEY_FILE": str(secret)})
    assert settings.signing_key().get_secret_value() == "a key of enough characters"
    both = {"UNROLL_STATE_KEY_FILE": str(secret), "UNROLL_STATE_KEY": "another key of mine"}
    assert "UNROLL_STATE_KEY is set, too" in refusal([], both)
    missing = refusal([], {"UNROLL_STATE_KEY_FILE": str(tmp_path / "no")})
    assert missing.startswith("UNROLL_STATE_KEY_FILE: ")
    assert "No such file" in missing


def test_what_is_told_of_the_settings_holds_no_secret() -> None:
    told = Settings(state_key=SecretStr("a key of enough characters")).redacted()
    assert set(told) == set(Settings.model_fields)
    assert told["port"] == 8000
    assert "enough" not in str(told)


@pytest.mark.parametrize(
    ("values", "hosts"),
    [
        ({}, ("127.0.0.1", "::1", "localhost")),
        ({"host": "0.0.0.0"}, None),  # noqa: S104
        ({"allowed_hosts": "*"}, None),
        ({"allowed_hosts": "Models.example, 10.0.0.7"}, ("models.example", "10.0.0.7")),
    ],
)
def test_which_names_are_answered(values: dict[str, str], hosts: tuple[str, ...] | None) -> None:
    assert Settings.model_validate(values).hosts == hosts


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        ("https://a.example/, HTTP://B.example:80", ("https://a.example", "http://b.example")),
        ("http://[::1]:3000,null", ("http://[::1]:3000", "null")),
        ("https://a.example:8443", ("https://a.example:8443",)),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
    ],
)
def test_origins_are_read_as_browsers_send_them(written: str, origins: tuple[str, ...]) -> None:
    assert Settings(cors_origins=written).origins == origins


@pytest.mark.parametrize(
    "written", ["page.example", "https://a.example/app", "https://a.example:x"]
)
def test_what_no_browser_sends_is_no_origin(written: str) -> None:
    with pytest.raises(SettingsError, match=r"UNROLL_CORS_ORIGINS: .*scheme://host:port"):
        load_settings([], {"UNROLL_CORS_ORIGINS": written})


def test_every_bad_value_has_its_own_line() -> None:
    lines = refusal([], {"UNROLL_PORT": "x", "UNROLL_MAX_ROWS": "y"}).splitlines()
    assert [line.split(":")[0] for line in lines] == ["UNROLL_PORT", "UNROLL_MAX_ROWS"]
