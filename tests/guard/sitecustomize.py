"""Refuses every address but this machine's.

`tests/conftest.py` calls `block_network` for the tests and puts this folder on PYTHONPATH, so that Python imports
this file at the start of every child process as well: recipes and stages that tests launch are blocked alike. A test
that must leave the machine removes PYTHONPATH from its child's environment and says why.
"""

import ipaddress
import socket


class NetworkBlockedError(ConnectionError):
    """A test reached for an address that is not this machine's."""


def is_loopback(address: object) -> bool:
    """Whether a socket address stays on this machine: a Unix socket, localhost or a loopback IP."""
    if not isinstance(address, tuple):
        return True  # Unix sockets take a path
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False  # a name: looking it up already leaves the machine


def _refuse(host: object) -> None:
    raise NetworkBlockedError(f"tests reach loopback only, not {host!r}: make the data in the test")


def block_network() -> None:
    """Refuse connections, datagrams and name look-ups that leave this machine, until the process ends."""
    if getattr(socket.socket, "_loopback_only", False):
        return
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    getaddrinfo = socket.getaddrinfo
    own_names = {None, "", b"", "0.0.0.0", "::", socket.gethostname()}  # what a local server binds to

    def guarded_connect(self, address):
        return connect(self, address) if is_loopback(address) else _refuse(address)

    def guarded_connect_ex(self, address):
        return connect_ex(self, address) if is_loopback(address) else _refuse(address)

    def guarded_sendto(self, data, *rest):
        return sendto(self, data, *rest) if is_loopback(rest[-1]) else _refuse(rest[-1])

    def guarded_getaddrinfo(host, *rest, **named):
        own = host in own_names or is_loopback((host,))
        return getaddrinfo(host, *rest, **named) if own else _refuse(host)

    socket.socket.connect, socket.socket.connect_ex = guarded_connect, guarded_connect_ex
    socket.socket.sendto = guarded_sendto
    socket.getaddrinfo = guarded_getaddrinfo
    socket.socket._loopback_only = True


block_network()
