"""paho-mqtt as the protocol engine of a session: CONNECT, CONNACK, keep-alive, will, status, DISCONNECT.

paho does no I/O of its own here: `Link` is its socket, the session feeds it whole packets, and its packet ids are kept
apart from those of data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, DisconnectFlags, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from connectors.mqtt_errors import connack_error, place
from connectors.mqtt_link import Link
from connectors.mqtt_settings import MqttTarget
from connectors.mqtt_status import Notice, Status
from connectors.mqtt_window import PACKET_ID_MAX, PAHO_PACKET_IDS
from connectors.mqtt_wire import (
    CONNACK_TYPE,
    RECEIVED_PACKET_BYTES_MAX,
    REMAINING_LENGTH_MAX,
    MalformedPacket,
    connack_code,
)
from pipelines.errors import GatewayError, NotConnected, Permanent

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker's CONNACK allows (MQTT 5 section 3.2.2.3); the defaults are those of MQTT 3.1.1."""

    receive_maximum: int = 65_535
    maximum_qos: int = 2
    retain_available: bool = True
    packet_bytes_max: int = REMAINING_LENGTH_MAX

    @classmethod
    def of(cls, properties: Properties | None) -> Limits:
        """From a CONNACK's properties; what is absent has its default."""
        return cls(
            getattr(properties, "ReceiveMaximum", 65_535),
            getattr(properties, "MaximumQoS", 2),
            bool(getattr(properties, "RetainAvailable", 1)),
            min(getattr(properties, "MaximumPacketSize", REMAINING_LENGTH_MAX), REMAINING_LENGTH_MAX),
        )

    @property
    def window(self) -> int:
        """Data messages in flight: one less than the broker takes, for the status."""
        return max(1, min(self.receive_maximum - 1, PACKET_ID_MAX))

    def check(self, settings: MqttTarget) -> None:
        """Raises Permanent where the settings ask for what the broker does not do."""
        if settings.qos > self.maximum_qos:
            raise Permanent(f"{place(settings)}: it takes QoS {self.maximum_qos} only: set qos: {self.maximum_qos}")
        if settings.retain and not self.retain_available:
            raise Permanent(f"{place(settings)}: it keeps no retained messages: set retain: false")


class Engine:
    """paho for one session: `connect`, `feed` it what arrives, `keep_alive` it, `publish`, `disconnect`."""

    def __init__(
        self,
        settings: MqttTarget,
        status: Status | None,
        client_id: str,
        link: Link,
        end: Callable[[GatewayError], None],
    ) -> None:
        self.limits = Limits()
        self.accepted = False
        """The broker's CONNACK said yes, and the session has not ended."""
        self._settings = settings
        self._link = link
        self._end = end
        self._client = _Client(settings, client_id, link)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._status = status
        self._waiting: dict[int, asyncio.Future[None]] = {}
        """What is waited for, by packet id; the CONNACK is number 0."""

    async def connect(self, now_ns: int) -> None:
        """CONNECT, with the will, and waits for CONNACK. Raises what `end` was called with."""
        if self._status:
            self._client.will_set(
                self._status.topic, self._status.payload(False, now_ns), qos=self._settings.qos, retain=True
            )
        self._client.send_connect(self._settings)
        await self._answer(0)

    async def publish_status(self, online: bool, now_ns: int) -> None:
        """The retained status, waiting for its PUBACK at QoS 1. A refused one is logged: data goes on without it."""
        if self._status is None:
            return
        status = Notice(self._status.topic, self._status.payload(online, now_ns))
        await self.publish(status, retain=self.limits.retain_available)

    async def publish(self, notice: Notice, *, retain: bool = False) -> None:
        """One message, waiting for its PUBACK at QoS 1; a refused one is logged."""
        qos = self._settings.qos
        info = self._client.publish(notice.topic, notice.payload, qos, retain)
        if qos:
            await self._answer(info.mid)

    def disconnect(self) -> None:
        """DISCONNECT; paho then closes the link behind it."""
        self.accepted = False
        self._client.on_disconnect = None
        self._client.disconnect()

    def feed(self, packet: bytes) -> None:
        """One whole packet from the broker. Raises MalformedPacket."""
        if packet[0] == CONNACK_TYPE and (code := connack_code(packet)):
            self._end(connack_error(self._settings, self._client.client_id, code))
            return
        if packet[0] != CONNACK_TYPE and self._connecting:
            raise MalformedPacket(f"a packet of type {packet[0] >> 4} before CONNACK")
        self._link.inbox += packet
        while self._link.inbox and self._client.socket() is not None:
            self._client.loop_read()
        self._flush()

    def keep_alive(self) -> None:
        """To be called regularly: sends PINGREQ when it is time, ends the session when the last one has no answer."""
        self._client.loop_misc()
        self._flush()

    def fail(self, error: GatewayError) -> None:
        """The session has ended: whoever waits for an answer is told."""
        self.accepted = False
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    @property
    def _connecting(self) -> bool:
        return 0 in self._waiting and not self.accepted

    async def _answer(self, number: int) -> None:
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            del self._waiting[number]

    def _flush(self) -> None:
        """What paho queued while it was in a callback."""
        if self._client.want_write():
            self._client.loop_write()

    def _answered(self, number: int) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(None)

    def _on_connect(self, _c: Client, _u: Any, _f: Any, _reason: ReasonCode, properties: Properties | None) -> None:
        self.limits = Limits.of(properties)
        self.accepted = True
        self._answered(0)

    def _on_publish(self, _c: Client, _u: Any, mid: int, reason: ReasonCode, _p: Properties) -> None:
        if reason.is_failure and self._status:
            _log.warning("%s: refused the status on %s: %s", place(self._settings), self._status.topic, reason)
        self._answered(mid)

    def _on_disconnect(
        self, _c: Client, _u: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        who = "ended the session" if flags.is_disconnect_packet_from_server else "session ended"
        more = getattr(properties, "ReasonString", "")
        self._end(NotConnected(f"{place(self._settings)}: {who}: {reason}{': ' + more if more else ''}"))


class _Client(Client):
    """paho's client on a connection that is open already."""

    def __init__(self, settings: MqttTarget, client_id: str, link: SocketLike) -> None:
        self._link = link
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTv5 if settings.protocol == "5" else MQTTv311,
            reconnect_on_failure=False,
        )
        self.client_id = client_id
        if settings.auth:
            password = settings.auth.password
            self.username_pw_set(settings.auth.user, password.get_secret_value() if password else None)

    def send_connect(self, settings: MqttTarget) -> None:
        """CONNECT with clean start."""
        keep_alive_s = -(-settings.keep_alive // 10**9)
        if settings.protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = RECEIVED_PACKET_BYTES_MAX
            self.connect(settings.host, settings.port, keep_alive_s, clean_start=True, properties=properties)
        else:
            self.connect(settings.host, settings.port, keep_alive_s)

    def _create_socket(self) -> SocketLike:
        return self._link

    def _mid_generate(self) -> int:
        following = self._last_mid + 1
        self._last_mid = following if following in PAHO_PACKET_IDS else PAHO_PACKET_IDS.start
        return self._last_mid
