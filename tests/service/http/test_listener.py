"""Where the server listens: both families, and one line where it cannot."""

import socket
from contextlib import closing
from typing import Any

import pytest

from service.__main__ import _with_own_names
from service.app import create_app
from service.http.listener import ListenError, bound_sockets, url_of
from service.processes.server import Alone
from service.setting_sources import load_settings
from service.settings import Settings


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def refusal(host: str, port: int) -> str:
    with pytest.raises(ListenError) as refused:
        bound_sockets(host, port)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_every_address_of_both_families_is_one_socket() -> None:
    (bound,) = bound_sockets("::", 0)
    with closing(bound):
        bound.listen()
        port = bound.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=5).close()
        assert url_of(bound).startswith(f"http://127.0.0.1:{port} (")
        assert "IPv4 and IPv6" in url_of(bound)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_ipv6_is_itself_alone() -> None:
    (bound,) = bound_sockets("::1", 0)
    with closing(bound):
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://[::1]:{port}"
        assert bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_name_is_all_of_its_addresses_on_one_port() -> None:
    found = bound_sockets("localhost", 0)
    try:
        assert len({x.getsockname()[1] for x in found}) == 1
        assert "127.0.0.1" in {x.getsockname()[0] for x in found}
    finally:
        for each in found:
            each.close()


def test_what_cannot_be_listened_on_says_why_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refusal("127.0.0.1", port)
        assert message.startswith(f"127.0.0.1:{port}: the port is in use; ")
        assert "UNROLL_PORT" in message
    # An address of documentation (RFC 5737), which is nobody's.
    assert "192.0.2.1:80: this machine has no such address; " in refusal("192.0.2.1", 80)
    assert "cannot resolve that name or address" in refusal("no such name", 80)


def test_a_port_that_takes_privileges_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    message = refusal("127.0.0.1", 80)
    assert message.startswith("127.0.0.1:80: this user may not listen on a port below 1024")


def test_of_two_that_are_started_at_once_one_says_that_the_port_is_in_use() -> None:
    (first,) = bound_sockets("127.0.0.1", 0)
    # Both may bind as long as neither listens.
    (second,) = bound_sockets("127.0.0.1", first.getsockname()[1])
    with closing(first), closing(second):
        first.listen()
        settings = Settings()
        with pytest.raises(ListenError, match="the port is in use"):
            Alone(create_app(settings, []), settings).run([second])


SPELLINGS = [
    "127.0.0.2", "127.1", "0x7f.1", "2130706433", "localhost", "LOCALHOST", "localhost.",
    "::ffff:127.0.0.1", "this-machine", "", " ",
]  # fmt: skip
SPELLINGS += ["::1", "[::1]", "0:0:0:0:0:0:0:1"] if has_ipv6() else []


@pytest.mark.parametrize("host", SPELLINGS)
def test_where_this_machine_alone_is_listened_to_others_names_are_refused(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = socket.getaddrinfo

    def with_own_name(name: str, *rest: Any, **options: Any) -> Any:
        # As /etc/hosts has it on many systems.
        return found("127.0.1.1" if name == "this-machine" else name, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", with_own_name)
    monkeypatch.setenv("UNROLL_ALLOWED_HOSTS", "")  # so that it is put back
    settings = load_settings([], {"UNROLL_HOST": host})
    sockets = bound_sockets(settings.host, 0)
    try:
        hosts = _with_own_names(settings, sockets).hosts
    finally:
        for each in sockets:
            each.close()
    assert hosts is not None
    assert {"localhost", "127.0.0.1", "::1", settings.host.lower()} >= set(hosts)


def test_where_others_reach_it_or_names_are_given_nothing_is_added() -> None:
    (bound,) = bound_sockets("0.0.0.0", 0)  # noqa: S104
    with closing(bound):
        assert _with_own_names(Settings(host="0.0.0.0"), [bound]).hosts is None  # noqa: S104
    (bound,) = bound_sockets("127.0.0.1", 0)
    with closing(bound):
        assert _with_own_names(Settings(allowed_hosts="*"), [bound]).hosts is None
