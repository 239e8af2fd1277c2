"""Pods are reached on every address that they have."""

import socket

import pytest

from promptrollout.listen import listening_socket


def reached(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=5) as connection:
        return connection.getpeername()[1] == port


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_without_an_address_ipv4_and_ipv6_are_both_answered() -> None:
    with listening_socket("", 0) as made:
        port = made.getsockname()[1]
        assert reached("127.0.0.1", port)
        if not has_ipv6():
            pytest.skip("this machine has no IPv6")
        assert reached("::1", port)


def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError("Address family not supported by protocol")
            super().__init__(family, *more)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    with listening_socket("", 0) as found:
        monkeypatch.setattr(socket, "socket", made)
        assert found.family == socket.AF_INET
        assert reached("127.0.0.1", found.getsockname()[1])


def test_one_address_is_only_that_one() -> None:
    with listening_socket("127.0.0.9", 0) as made:
        port = made.getsockname()[1]
        assert reached("127.0.0.9", port)
        with pytest.raises(OSError, match="refused"):
            reached("127.0.0.8", port)


def test_a_port_that_is_taken_is_an_error() -> None:
    with listening_socket("", 0) as made, pytest.raises(OSError, match="in use"):
        listening_socket("", made.getsockname()[1])
