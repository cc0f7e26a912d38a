"""One MQTT session, from CONNECT to DISCONNECT: paho for what is rare, `mqtt_wire` for what is frequent.

Bytes that arrive are cut into packets here. PUBACKs of data go to the window, PINGRESPs to the ping barrier, everything
else to paho. A session that has ended stays ended; its first error is the one that everybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping

from connectors.mqtt_client import Engine
from connectors.mqtt_errors import opening_error, place
from connectors.mqtt_link import Link, open_link, tls_refusal
from connectors.mqtt_settings import MqttTarget
from connectors.mqtt_status import Status
from connectors.mqtt_window import PACKET_ID_MAX, PingBarrier, Watchdog, Window
from connectors.mqtt_wire import PINGREQ, PINGRESP, MalformedPacket, Received, Splitter
from connectors.network_paths import Watched
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected
from pipelines.quantities import format_duration

CONNECT_TIMEOUT_S = 10.0
"""For TCP and TLS, and again for the broker's answer."""
CLOSE_TIMEOUT_S = 0.8
_BEAT_S = 1.0
REST_IN_FLIGHT_MIN = 64
REST_S = 0.001
"""A broker sends each PUBACK by itself. With so many to come, reading pauses for this long: one wake-up instead of
hundreds, which are most of what QoS 1 costs."""
_log = logging.getLogger(__name__)


async def open_session(
    settings: MqttTarget, status: Status | None, client_id: str, clock: Clock, counters: Counters
) -> Session:
    """A session that the broker has accepted, `status` published. Raises NotConnected or Permanent.

    Cancelled or failed in the middle it leaves no connection behind.
    """
    link = await open_link(settings, CONNECT_TIMEOUT_S)
    session = Session(settings, status, client_id, clock, counters, link)
    try:
        await session.start()
    except NotConnected as error:
        if not (settings.secure and isinstance(link.cause, ConnectionError)):
            raise
        raise await tls_refusal(settings, CLOSE_TIMEOUT_S) or error from error
    except BaseException:
        session.end(NotConnected(f"{place(settings)}: not connected"))
        raise
    return session


class Session:
    """See the module's docstring."""

    def __init__(
        self,
        settings: MqttTarget,
        status: Status | None,
        client_id: str,
        clock: Clock,
        counters: Counters,
        link: Link,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._counters = counters
        self._status = status
        self._link = link
        self._engine = Engine(settings, status, client_id, link, self.end)
        self._splitter = Splitter(PACKET_ID_MAX)
        self._heart = _Heart(settings, clock, self._beat)
        self.window = Window(PACKET_ID_MAX)
        self.packet_bytes_max = self._engine.limits.packet_bytes_max
        """The broker takes no larger packet."""
        self.barrier = PingBarrier(lambda: link.write(PINGREQ))
        self.ended = asyncio.Event()
        self.error: GatewayError | None = None
        """Why it ended."""

    @property
    def in_flight(self) -> int:
        """Messages (QoS 1) and writes (QoS 0) that are not confirmed yet."""
        return len(self.window) + len(self.barrier)

    @property
    def watched(self) -> Watched:
        """For whom watches its path."""
        return Watched(self._waiting, self.ping, self.end, self.ended)

    async def start(self) -> None:
        """CONNECT, CONNACK and the online status."""
        link, engine = self._link, self._engine
        link.on_data, link.on_lost, link.on_send = self._received, self._lost, self._paho_sent
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await engine.connect(self._clock.wall_ns())
                engine.limits.check(self._settings)
                self.window, self.packet_bytes_max = Window(engine.limits.window), engine.limits.packet_bytes_max
                await engine.publish_status(True, self._clock.wall_ns())
        except TimeoutError as error:
            raise opening_error(self._settings, error) from error
        self.check()
        self._heart.start()

    async def announce(self) -> None:
        """Publishes the status whenever it changes, and notices as they come. Ends with the session's error only."""
        status = self._status
        while status:
            await status.changed.wait()
            status.changed.clear()
            await self._engine.publish_status(True, self._clock.wall_ns())
            while notice := status.next_notice():
                try:
                    await self._engine.publish(notice)
                except BaseException:
                    status.put_back(notice)
                    raise
        await self.ended.wait()
        self.check()

    def check(self) -> None:
        """Raises why the session has ended, if it has."""
        if self.error is not None:
            raise self.error

    async def writable(self) -> None:
        """Waits while the broker is slow to read. Raises when the session has ended."""
        await self._link.writable.wait()
        self.check()

    @property
    def ready(self) -> bool:
        """It works, and `writable` would not wait."""
        return self.error is None and self._link.writable.is_set()

    def send(self, packets: bytes) -> None:
        """Whole packets, behind everything sent before; call `writable` first, or see that it is `ready`."""
        self._link.write(packets)
        self._counters.add("bytes_sent", len(packets))

    def ping(self) -> None:
        """Asks whether the broker is still there."""
        self._link.write(PINGREQ)
        self.barrier.foreign_ping()

    def end(self, error: GatewayError) -> None:
        """Ends it now: everything in flight is lost. The first error counts; a second call changes nothing."""
        if self.error is None:
            self.error = error
            self._heart.stop()
            self.window.fail(error)
            self.barrier.fail(error)
            self._engine.fail(error)
            self.ended.set()
        self._link.abort()

    async def close(self) -> None:
        """The offline status, DISCONNECT, and the end; takes at most twice CLOSE_TIMEOUT_S."""
        try:
            if self.error is None:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._engine.publish_status(False, self._clock.wall_ns())
                    self._engine.disconnect()
                    await self._link.closed.wait()
        except (TimeoutError, GatewayError) as error:
            _log.info("%s: closed without a farewell: %r", place(self._settings), error)
        finally:
            self.end(NotConnected(f"{place(self._settings)}: closed by the gateway"))
        with contextlib.suppress(TimeoutError):  # a TLS peer that is silent is not waited for
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._link.closed.wait()

    def _waiting(self) -> Mapping[socket.socket, object | None]:
        sock = self._link.socket
        return {sock: self.window.oldest or self.barrier.oldest} if sock else {}

    def _received(self, data: bytes) -> None:
        self._heart.quiet_beats = 0
        try:
            self._dispatch(self._splitter.feed(data))
        except MalformedPacket as error:
            self.end(NotConnected(f"{place(self._settings)}: sent what is not MQTT: {error}"))

    def _dispatch(self, received: Received) -> None:
        if received.acknowledged:
            self.window.acknowledge(received.acknowledged)
        for packet_id, reason in received.refused:
            self.window.refuse(packet_id, reason)
        pubacks = len(received.acknowledged) + len(received.refused)
        if pubacks:
            self._counters.add("pubacks", pubacks)
            if len(self.window) >= REST_IN_FLIGHT_MIN:
                self._link.rest(REST_S)
        for _ in range(received.pings):
            if self.barrier.answered():
                self._engine.feed(PINGRESP)
        for packet in received.others:
            self._engine.feed(packet)

    def _paho_sent(self, packet: bytes) -> None:
        if packet == PINGREQ:
            self.barrier.foreign_ping()

    def _lost(self, cause: Exception | None) -> None:
        """The connection is gone."""
        if self._engine.accepted:
            text = f": {cause}" if cause else ""
            self.end(NotConnected(f"{place(self._settings)}: connection lost{text}"))
        else:
            self.end(opening_error(self._settings, cause if isinstance(cause, OSError) else None))

    def _beat(self) -> None:
        self._engine.keep_alive()
        if self._heart.stalled(self.window.oldest, self.barrier.oldest, *self._link.uploaded()):
            within = f"ack_timeout ({format_duration(self._settings.ack_timeout)})"
            self.end(NotConnected(f"{place(self._settings)}: no acknowledgement within {within}"))
        elif not self.in_flight and self.barrier.oldest is None and self._heart.quiet:
            self.ping()


class _Heart:
    """A timer of the loop, and what it watches: that messages and pings in flight move on, and when nothing comes."""

    def __init__(self, settings: MqttTarget, clock: Clock, beat: Callable[[], None]) -> None:
        self._clock = clock
        self._beat = beat
        self._interval_s = min(_BEAT_S, settings.ack_timeout / 10e9, settings.keep_alive / 4e9)
        self._quiet_s = settings.ack_timeout / 4e9
        self.quiet_beats = 0
        """Beats since something came."""
        self._messages = Watchdog(settings.ack_timeout)
        self._pings = Watchdog(settings.ack_timeout)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    @property
    def quiet(self) -> bool:
        """Nothing has come for a quarter of `ack_timeout`: time to ask whether the broker is still there."""
        return self.quiet_beats * self._interval_s >= self._quiet_s

    def stalled(self, message: object | None, ping: object | None, uploaded: int, waiting: int) -> bool:
        """Whether the oldest message, or the oldest ping, has not moved on for `ack_timeout`."""
        known = self._clock.mono_ns(), uploaded, waiting
        return self._messages.stalled(message, *known) | self._pings.stalled(ping, *known)

    def _tick(self) -> None:
        self.start()
        self.quiet_beats += 1
        self._beat()
