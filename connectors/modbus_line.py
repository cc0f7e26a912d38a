"""The line to an endpoint: dials its wire, again where that is spent, for one device or for several that share it."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

from connectors.modbus_serial import SerialTransport, open_port
from connectors.modbus_url import Manners, ModbusUrl
from connectors.modbus_wire import Exchange, Wire, os_error_text
from connectors.modbus_wire_rtu import Owed, RtuWire, SerialWire
from connectors.modbus_wire_tcp import TcpWire, UdpWire
from connectors.network import over
from connectors.tcp import MACHINE_PATIENCE, notice_dead_peer
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent

_shared: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Line]]] = WeakKeyDictionary()
"""Lines that several devices may have, by endpoint. They stay: a line knows which late replies may still come."""


def line_for(url: ModbusUrl, manners: Manners) -> Line:
    """One of its own, or the one that all devices of this endpoint share."""
    if not manners.shared and url.serial is None:
        return Line(url)
    lines = _shared.setdefault(asyncio.get_running_loop(), {})
    return lines.setdefault(url.endpoint, Line(url))


class Line:
    """`join`, then `run` exchanges, then `leave`, and again. There is a wire while somebody has joined."""

    def __init__(self, url: ModbusUrl) -> None:
        self._url = url
        self._users: dict[object, Manners] = {}
        self._wire: Wire | None = None
        self._owed: Owed = {}
        self._lock = asyncio.Lock()
        self._dialled = 0
        self._failure: NotConnected | Permanent | None = None
        """Of the last attempt: those who waited for it do not try again."""

    async def join(
        self,
        user: object,
        url: ModbusUrl,
        manners: Manners,
        timeout_s: float,
        clock: Clock,
        counters: Counters,
    ) -> None:
        """Dials where nobody has. Raises NotConnected, Permanent."""
        if self._users and self._url.serial != url.serial:
            raise Permanent(f"another device has this port open with {self._url.serial}, this one wants {url.serial}")
        self._url = url
        self._users[user] = manners
        await self._usable(timeout_s, clock, counters)
        self._behave()

    async def leave(self, user: object) -> None:
        """Idempotent. The last one hangs up; returns when the connection is gone."""
        self._users.pop(user, None)
        if self._users:
            self._behave()
        else:
            await self._hang_up()

    def adjust(self, user: object, manners: Manners) -> None:
        """What one of the users wants now; nothing where it has not joined."""
        if user in self._users:
            self._users[user] = manners
            self._behave()

    async def run(self, exchange: Exchange, clock: Clock) -> None:
        """Returns when all replies are there, or it is dropped. Raises NotConnected, Permanent; what came is kept."""
        while exchange.missing and not exchange.dropped:
            wire = self._wire
            if wire is None or wire.spent:
                wire = await self._usable(exchange.timeout_s, clock, exchange.counters)
            exchange.done = wire.loop.create_future()
            wire.submit(exchange)
            try:
                await exchange.done
            finally:
                if exchange.missing:
                    wire.forget(exchange)
            if exchange.missing and wire.error:
                raise wire.error

    async def _usable(self, timeout_s: float, clock: Clock, counters: Counters) -> Wire:
        dialled = self._dialled
        async with self._lock:
            if self._dialled != dialled and self._failure:
                raise self._failure
            wire = self._wire
            if wire is not None and wire.usable:
                return wire
            if wire is not None and (others := wire.under_way):
                await asyncio.wait(others)
            await self._hang_up()
            return await self._dial(timeout_s, clock, counters)

    async def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.closed

    async def _dial(self, timeout_s: float, clock: Clock, counters: Counters) -> Wire:
        wire, self._failure = self._make(clock, counters), None
        try:
            async with asyncio.timeout(timeout_s):
                await self._open(wire, timeout_s)
            self._wire = wire
        except TimeoutError as error:
            self._failure = NotConnected(f"no connection within {timeout_s:g} s")
            raise self._failure from error
        except ssl.SSLError as error:
            self._failure = _tls_failure(error)
            raise self._failure from error
        except OSError as error:
            self._failure = NotConnected(os_error_text(error))
            raise self._failure from error
        except (NotConnected, Permanent) as error:
            self._failure = error
            raise
        finally:
            self._dialled += 1
            if self._wire is not wire:
                wire.abort()
        self._behave()
        return wire

    def _make(self, clock: Clock, counters: Counters) -> Wire:
        if self._url.serial:
            return SerialWire(clock, counters, self._owed, self._url.serial)
        if self._url.rtu:
            return RtuWire(clock, counters, self._owed)
        return (UdpWire if self._url.scheme == "udp" else TcpWire)(clock, counters)

    async def _open(self, wire: Wire, timeout_s: float) -> None:
        if self._url.serial:
            SerialTransport(open_port(self._url.host, self._url.serial), wire)
            return
        host, port = self._url.host, self._url.port
        with over(self._newest.network):
            if self._url.scheme == "udp":
                await wire.loop.create_datagram_endpoint(lambda: wire, remote_addr=(host, port))
                return
            transport, _ = await wire.loop.create_connection(lambda: wire, host, port, ssl=self._tls())
        notice_dead_peer(transport.get_extra_info("socket"), int(MACHINE_PATIENCE * timeout_s * 1e9))

    def _tls(self) -> ssl.SSLContext | None:
        if self._url.scheme != "tls":
            return None
        tls = self._newest.tls
        return tls.context() if tls else ssl.create_default_context()

    @property
    def _newest(self) -> Manners:
        """Those of who joined last."""
        [*_, manners] = self._users.values()
        return manners

    def _behave(self) -> None:
        """As the most careful of the users wants it."""
        if self._wire and self._users:
            users = list(self._users.values())
            careful = replace(
                users[0],
                pipeline=min(manners.pipeline for manners in users),
                pause_ns=max(manners.pause_ns for manners in users),
                echo=any(manners.echo for manners in users),
            )
            self._wire.behave(careful)


def _tls_failure(error: ssl.SSLError) -> NotConnected | Permanent:
    """Modbus/TCP Security V2.1, section 8: both sides show a certificate."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return NotConnected("closed by the device during the TLS handshake")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Permanent(
            f"the device's certificate is not trusted: {error.verify_message.rstrip('.')}; set tls: {{ca: FILE}} to "
            "the authority that signed it, and use the host name that it was issued for"
        )
    return Permanent(
        f"TLS failed ({error.reason or error}): most devices want a certificate of the gateway that they know: set "
        "tls: {cert: FILE, key: FILE}"
    )
