"""Settings from the environment and from flags."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.environment import service_links, unknown_variables
from service.setting_sources import KNOWN, load_settings
from service.settings import SUBJECTS, Settings, SettingsError


def refusal(arguments: list[str], environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(arguments, environment)
    return str(refused.value)


def test_nothing_said_is_the_defaults() -> None:
    assert load_settings([], {}) == Settings()
    assert load_settings([], {"PATH": "/bin", "unroll_port": "1"}) == Settings()


def test_the_server_listens_to_this_machine_alone_unless_told_otherwise() -> None:
    assert Settings().host == "127.0.0.1"


def test_connections_are_kept_for_longer_than_proxies_keep_theirs() -> None:
    assert Settings().keep_alive_s > 60


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
    assert re.search(rf"--{name.replace('_', '-')} [A-Z{{]", shown)
    assert f"UNROLL_{name.upper()}" in re.sub(r"\s", "", shown)
    words = {"host": "h", "models_dir": "m", "log_level": "error", "precision": "int8"}
    words |= {"state_key": "a key of enough characters", "max_queue_share": "0.25"}
    words |= {"root_path": "/unroll", "frame_ancestors": "self"}
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


def test_help_groups_settings_and_shows_choices_units_and_what_unset_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--help"], {})
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    places = [shown.index(f" {subject}: ") for subject in SUBJECTS.values()]
    assert places == sorted(places)
    assert next(iter(Settings.model_fields)) in SUBJECTS
    assert "--log-level {debug,info,warning,error}" in shown
    assert "--log-requests {true,false}" in shown
    assert "--keep-alive-s SECONDS" in shown
    assert "default: 8388608, 8 MiB; UNROLL_MAX_BODY_BYTES" in shown
    assert "unset looks once, at the start (default: unset; UNROLL_WATCH_MODELS_S)" in shown
    assert "None" not in shown


# What Kubernetes sets in every container beside services named `unroll` and `unroll-api`.
LINKS = {
    "UNROLL_PORT": "tcp://10.0.0.1:8000",
    "UNROLL_SERVICE_HOST": "10.0.0.1",
    "UNROLL_SERVICE_PORT": "8000",
    "UNROLL_SERVICE_PORT_HTTP": "8000",
    "UNROLL_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "UNROLL_PORT_8000_TCP_PROTO": "tcp",
    "UNROLL_PORT_8000_TCP_PORT": "8000",
    "UNROLL_PORT_8000_TCP_ADDR": "10.0.0.1",
    "UNROLL_API_SERVICE_HOST": "10.0.0.2",
    "UNROLL_API_PORT": "udp://10.0.0.2:53",
    "UNROLL_API_PORT_53_UDP_ADDR": "10.0.0.2",
}


def test_links_to_a_service_are_no_settings() -> None:
    assert load_settings([], LINKS) == Settings()
    assert service_links(LINKS | {"UNROLL_HOST": "x", "PATH": "/"}) == [*LINKS]
    assert list(unknown_variables(LINKS, KNOWN)) == []
    assert service_links({"UNROLL_PORT": "8000"}) == []
    assert load_settings(["--port", "9"], LINKS).port == 9
    # Whoever means a flag gets no link.
    assert refusal(["--port", "tcp://10.0.0.1:8000"], {}).startswith("UNROLL_PORT: ")


def test_an_unknown_variable_is_passed_over_and_the_nearest_one_named() -> None:
    environment = {"UNROLL_PROT": "secret", "UNROLL_ZZZ": "1", "PATH": "/", "UNROLL_PORT": "9"}
    assert load_settings([], environment).port == 9
    near, far = unknown_variables(environment, KNOWN)
    assert near == "UNROLL_PROT is not a setting and is ignored; did you mean UNROLL_PORT?"
    assert far.startswith("UNROLL_ZZZ is not a setting and is ignored; `python -m service --help`")


def test_what_compose_and_the_readme_set_is_known() -> None:
    root = Path(__file__).parents[2]
    files = ("docker/compose.yaml", "README.md", "Dockerfile", "Makefile")
    texts = [(root / name).read_text("utf-8") for name in files]
    named = {x for text in texts for x in re.findall(r"UNROLL_[A-Z0-9_]*[A-Z]", text)}
    assert {"UNROLL_UID", "UNROLL_GID", "UNROLL_WORK"} <= named
    assert list(unknown_variables(dict.fromkeys(named, "1"), KNOWN)) == []


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_variable_is_as_unset(value: str) -> None:
    names = dict.fromkeys(KNOWN, value)
    assert load_settings([], names) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("log_level", "INFO", "info"),
        ("log_level", " Warning\n", "warning"),
        ("precision", "FP32", "fp32"),
        ("log_requests", " Off ", False),
        ("log_requests", "0", False),
        ("log_requests", "YES", True),
        ("port", " 9 ", 9),
        ("models_dir", "~/models", Path.home() / "models"),
    ],
)
def test_the_form_of_a_value_does_not_matter(name: str, value: str, expected: object) -> None:
    assert getattr(load_settings([], {f"UNROLL_{name.upper()}": value}), name) == expected


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


@pytest.mark.parametrize(
    ("flag", "allowed"),
    [
        ("--precision=int4", "UNROLL_PRECISION: it must be one of auto, int8, fp32"),
        ("--port=65536", "UNROLL_PORT: it must be a whole number, at least 0 and at most 65535"),
        ("--port=", "UNROLL_PORT: it must be a whole number, at least 0 and at most 65535"),
        ("--keep-alive-s=0", "UNROLL_KEEP_ALIVE_S: it must be a number of seconds, above 0"),
        (
            "--watch-models-s=off",
            "UNROLL_WATCH_MODELS_S: it must be a number of seconds, above 0, or leave it unset",
        ),
        ("--engine-threads=0", "UNROLL_ENGINE_THREADS: it must be a whole number, at least 1,"),
        ("--log-requests=maybe", "UNROLL_LOG_REQUESTS: it must be true or false (also 1 or 0,"),
        ("--root-path=unroll/", "UNROLL_ROOT_PATH: it must be a path such as /unroll"),
        ("--frame-ancestors=https://a.example; x", "UNROLL_FRAME_ANCESTORS: it must be self or"),
        ("--host=", "UNROLL_HOST: it must be a text of at least 1 character"),
    ],
)
def test_an_error_says_what_is_allowed(flag: str, allowed: str) -> None:
    assert refusal([flag], {}).startswith(allowed)


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
        ({"host": "LOCALHOST"}, ("127.0.0.1", "::1", "localhost")),
        ({"host": "127.0.0.2"}, ("127.0.0.1", "::1", "localhost", "127.0.0.2")),
        ({"host": "127.1"}, ("127.0.0.1", "::1", "localhost", "127.1")),
        ({"host": "0:0:0:0:0:0:0:1"}, ("127.0.0.1", "::1", "localhost", "0:0:0:0:0:0:0:1")),
        ({"host": "::ffff:127.0.0.1"}, ("127.0.0.1", "::1", "localhost")),
        ({"host": "[::1]"}, ("127.0.0.1", "::1", "localhost")),
        ({"host": "localhost."}, ("127.0.0.1", "::1", "localhost")),
        ({"host": "0.0.0.0"}, None),  # noqa: S104
        ({"host": "::"}, None),
        ({"host": "localhost.example"}, None),
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
