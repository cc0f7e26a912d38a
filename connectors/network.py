"""Over which interface and with which mark a connection's packets go: set on its socket before the SYN.

    with over(network):                       # a context variable: tasks made inside inherit it
        await loop.create_connection(...)     # also when a library calls it: asyncua, aiokafka

`new_loop` makes the loops that heed it, uvloop's or asyncio's own. Linux (socket(7), ip(7), ipv6(7)), where a plain
user may do all of it but priorities above 6. What the system refuses is an error with one clear line: nothing is left
out in silence.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any, Final

PRIORITY_FREE_MAX: Final = 6
"""Higher ones need CAP_NET_ADMIN (socket(7))."""
_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""linux/in.h: the port is chosen at connect, so that many connections may have the same one."""


@dataclass(frozen=True, slots=True)
class Network:
    """What is asked for; the defaults ask for nothing."""

    bind: str = ""
    """Interface."""
    source: str = ""
    """Address of this host."""
    dscp: int | None = None
    priority: int | None = None
    """Of the host's own queues (SO_PRIORITY)."""

    def __bool__(self) -> bool:
        return self != Network()

    def __str__(self) -> str:
        dscp = "" if self.dscp is None else f"DSCP {self.dscp}"
        priority = "" if self.priority is None else f"priority {self.priority}"
        return ", ".join(filter(None, (self.bind, self.source, dscp, priority)))


class NetworkRefused(OSError):
    """The system does not do what a key asks for; the text, which is all there is, says which one."""


PLAIN: Final = Network()
_NETWORK: Final[ContextVar[Network]] = ContextVar("network", default=PLAIN)


@contextmanager
def over(network: Network) -> Iterator[None]:
    """Connections made inside, and by tasks that were made inside, go that way. RuntimeError: not on this loop."""
    if network and not isinstance(asyncio.get_running_loop(), _NetworkLoop):
        raise RuntimeError("this event loop sets no options on sockets: take one made by network.new_loop")
    token = _NETWORK.set(network)
    try:
        yield
    finally:
        _NETWORK.reset(token)


async def knock(network: Network, host: str, port: int) -> None:
    """Returns when that system has taken a TCP connection; nothing is said. Raises OSError."""
    with over(network):
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
    transport.close()


def mark(sock: socket.socket, network: Network) -> None:
    """DSCP and priority; also of a socket that was accepted. Raises NetworkRefused."""
    if network.dscp is not None:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, network.dscp << 2)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, network.dscp << 2)  # with IPv6: of mapped addresses
    if network.priority is not None:  # behind IP_TOS, which changes it
        if not hasattr(socket, "SO_PRIORITY"):
            raise NetworkRefused("priority: this system has none for sockets")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, network.priority)
        except PermissionError as error:
            text = f"priority: {network.priority} needs CAP_NET_ADMIN: write {PRIORITY_FREE_MAX} or less"
            raise NetworkRefused(text) from error


def interfaces() -> list[str]:
    """Names of this host's network interfaces."""
    return sorted(name for _, name in socket.if_nameindex())


def meant(name: str, known: list[str]) -> str:
    """`: did you mean ...?` or nothing."""
    close = get_close_matches(name.lower(), known, n=1) or get_close_matches(name.upper(), known, n=1)
    return f": did you mean `{close[0]}`?" if close else ""


def no_interface(name: str) -> str:
    """One line about an interface that is not there."""
    known = interfaces()
    return f"bind: there is no interface `{name}`{meant(name, known) or ' (there are ' + ', '.join(known) + ')'}"


def new_loop() -> asyncio.AbstractEventLoop:
    """The gateway's event loop: uvloop's where that exists."""
    return _LOOP()


def _prepare(sock: socket.socket, network: Network) -> None:
    """Everything, before it connects. Raises NetworkRefused."""
    mark(sock, network)
    if network.bind:
        _bind_to(sock, network.bind)
    if network.source:
        with suppress(OSError):  # only spares ports
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind((network.source, 0))
        except OSError as error:
            raise NetworkRefused(f"source: {network.source}: {os.strerror(error.errno or 0)}") from error


def _bind_to(sock: socket.socket, interface: str) -> None:
    if not hasattr(socket, "SO_BINDTODEVICE"):
        raise NetworkRefused("bind: this system has no SO_BINDTODEVICE: write `source`, an address")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except PermissionError as error:
        raise NetworkRefused(f"bind: {interface} needs CAP_NET_RAW on this system (Linux before 5.7)") from error
    except OSError as error:
        gone = error.errno == errno.ENODEV
        text = no_interface(interface) if gone else f"bind: {interface}: {os.strerror(error.errno or 0)}"
        raise NetworkRefused(text) from error


class _NetworkLoop:
    """Makes sockets itself where a network is asked for; all else is the loop's own, to be mixed into which it is."""

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        server_hostname: str | None = None,
        sock: socket.socket | None = None,
        **options: Any,
    ) -> Any:
        connect = super().create_connection  # type: ignore[misc]
        network = _NETWORK.get()
        if not network or sock is not None or host is None or port is None:
            return await connect(
                protocol_factory, host, port, ssl=ssl, server_hostname=server_hostname, sock=sock, **options
            )
        sock = await self._dialled(network, host, port, socket.SOCK_STREAM)
        try:
            name = (server_hostname or host) if ssl else None
            return await connect(protocol_factory, sock=sock, ssl=ssl, server_hostname=name, **options)
        except BaseException:
            sock.close()
            raise

    async def create_datagram_endpoint(
        self, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        make = super().create_datagram_endpoint  # type: ignore[misc]
        network = _NETWORK.get()
        if not network or not isinstance(remote_addr, tuple):
            return await make(protocol_factory, local_addr=local_addr, remote_addr=remote_addr, **options)
        sock = await self._dialled(network, remote_addr[0], remote_addr[1], socket.SOCK_DGRAM)
        try:
            return await make(protocol_factory, sock=sock, **options)
        except BaseException:
            sock.close()
            raise

    async def _dialled(self, network: Network, host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        """Connected to the first address of `host` that answers. Raises OSError."""
        loop, family = asyncio.get_running_loop(), socket.AF_UNSPEC
        if network.source:
            family = socket.AF_INET if ip_address(network.source).version == 4 else socket.AF_INET6
        failures: dict[str, OSError] = {}
        for family_, kind_, proto, _, address in await loop.getaddrinfo(host, port, family=family, type=kind):
            sock = socket.socket(family_, kind_, proto)
            try:
                sock.setblocking(False)
                _prepare(sock, network)
                await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = _failure(error, str(address[0]), network)
                failures.setdefault(str(failure.strerror or failure), failure)
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        last = failures[next(reversed(failures))]
        raise last if len(failures) == 1 or last.errno is None else OSError(last.errno, "; ".join(failures))


def _failure(error: OSError, address: str, network: Network) -> OSError:
    """With the address and the way in it."""
    if error.errno is None:  # NetworkRefused
        return error
    return OSError(error.errno, f"{os.strerror(error.errno)} ({address} by {network})")


class _AsyncioLoop(_NetworkLoop, asyncio.SelectorEventLoop):
    """asyncio's own, where uvloop is missing."""


_LOOP: type[asyncio.AbstractEventLoop] = _AsyncioLoop
with suppress(ImportError):
    import uvloop

    class _UvLoop(_NetworkLoop, uvloop.Loop):  # type: ignore[misc]
        """uvloop's."""

    _LOOP = _UvLoop
