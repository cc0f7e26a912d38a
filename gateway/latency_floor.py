"""The floor of a route's latency: a relay of raw sockets, which reads a notification's bytes and writes one PUBLISH.

    python -m gateway.latency_floor opc.tcp://10.0.0.5:4840 "ns=2;s=Press4.Temp" 127.0.0.1 1883 floor/press4 [SECONDS]

Only connecting is done with libraries. Then the loop stands still and two blocking sockets are left: bytes in from the
machine, out to the broker in a PUBLISH of QoS 0 as they came, without a look into them; behind that, the next
PublishRequest. What this costs is the system's and the wire's; what a gateway takes beyond it is its own. It says
`relaying` when the first notification has passed, and ends after SECONDS or with SIGTERM.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Final

from asyncua import Client, ua
from asyncua.ua.ua_binary import nodeid_to_binary, struct_to_binary

from connectors import opcua_requests
from connectors.mqtt_wire import PublishEncoder, variable_byte_integer
from connectors.opcua_binary import DecodeError
from connectors.opcua_channel import HEADERS, Channel, ChannelClient
from connectors.opcua_response import parse_response
from connectors.opcua_session import PublishSession
from gateway.command import on_loop
from pipelines.clock import SystemClock

TIMEOUT_S: Final = 10.0
PUBLISHING_MS: Final = 1.0
OUTSTANDING: Final = 4
PATIENCE_S: Final = 0.2
"""How often a relay that has nothing to do looks whether it is to end."""
RECEIVE_BYTES: Final = 1 << 16


async def relay(url: str, node: str, host: str, port: int, topic: str, seconds: float) -> int:
    """Relays every change of `node` for so long (or until SIGTERM): how many messages. Security None, anonymous."""
    client = Client(url, timeout=TIMEOUT_S)
    client.uaclient = ChannelClient(TIMEOUT_S)
    session = client.uaclient.session = PublishSession(client.uaclient, SystemClock(), TIMEOUT_S)
    await client.connect()
    try:
        wanted = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=PUBLISHING_MS, RequestedLifetimeCount=60_000, RequestedMaxKeepAliveCount=5_000
        )
        subscription = await session.create_subscription(wanted, lambda _: None)
        item = opcua_requests.Item(opcua_requests.encode_node_id(node), 0, 0.0, 10, opcua_requests.NO_FILTER, True)
        body = await session.request(
            lambda header: opcua_requests.create_monitored_items(header, int(subscription.SubscriptionId), [item])
        )
        status = opcua_requests.created_items(body, 1)[0].status
        if status & 0x8000_0000:
            raise ConnectionError(f"{url}: {node}: {opcua_requests.status_name(status)}")
        channel = client.uaclient.protocol
        assert isinstance(channel, Channel) and channel.transport is not None
        channel.transport.pause_reading()
        machine = socket.socket(fileno=os.dup(channel.transport.get_extra_info("socket").fileno()))
        requests = _Requests(channel, session)
        with machine, _broker(host, port) as broker:
            try:
                return _relay(machine, broker, requests, topic.encode(), seconds)
            finally:
                session.keep_session = True  # the answers went past asyncua: it is closed here
                machine.sendall(requests.close_session())
                machine.setblocking(False)
    finally:
        with suppress(TimeoutError, ConnectionError, ua.UaError):
            await client.disconnect()


class _Requests:
    """Messages to the machine, made ahead of their time."""

    def __init__(self, channel: Channel, session: PublishSession) -> None:
        self._channel = channel
        self._session = session
        self._token = nodeid_to_binary(session.authentication_token)

    def next(self, acks: list[tuple[int, int]]) -> bytes:
        """A PublishRequest as it goes over the wire."""
        number = self._number()
        header = opcua_requests.RequestHeader(self._token, number, time.time_ns())
        return self._channel.message(opcua_requests.publish(header, acks), number)

    def close_session(self) -> bytes:
        """CloseSession, with what was subscribed (Part 4, 5.7.4)."""
        request = ua.CloseSessionRequest(DeleteSubscriptions=True)
        request.RequestHeader.AuthenticationToken = self._session.authentication_token
        return self._channel.message(struct_to_binary(request), self._number())

    def _number(self) -> int:
        self._channel._request_id += 1
        return self._channel._request_id


def _relay(machine: socket.socket, broker: socket.socket, requests: _Requests, topic: bytes, seconds: float) -> int:
    """The loop; `machine` and `broker` block."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    machine.setblocking(True)
    patience = struct.pack("ll", 0, int(PATIENCE_S * 1e6))
    machine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    machine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    encoder, topic = PublishEncoder(0, False, None), struct.pack(">H", len(topic)) + topic
    end_ns, relayed = time.monotonic_ns() + int(seconds * 1e9), 0
    for _ in range(OUTSTANDING):
        machine.sendall(requests.next([]))
    following = requests.next([])
    gc.collect()
    gc.disable()
    while not ended and time.monotonic_ns() < end_ns:
        try:
            data = machine.recv(RECEIVE_BYTES)
        except BlockingIOError:
            continue
        broker.sendall(encoder.encode([topic], [data], range(0)))
        if not data:
            raise ConnectionError("the machine closed the connection")
        machine.sendall(following)
        if not relayed:
            print("relaying", flush=True)
        relayed += 1
        following = requests.next(_acknowledging(data))
    gc.enable()
    return relayed


def _acknowledging(data: bytes) -> list[tuple[int, int]]:
    """What may be acknowledged of a message that came whole and alone; else nothing."""
    try:
        response = parse_response(data[HEADERS:])
    except DecodeError:
        return []
    return [(response.subscription_id, response.sequence_number)] if response.rows else []


def _broker(host: str, port: int) -> socket.socket:
    """A session of MQTT 3.1.1 that only sends. Raises ConnectionError."""
    connection = socket.create_connection((host, port), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = f"mec-floor-{os.getpid()}".encode()
    hello = struct.pack(">H4sBBHH", 4, b"MQTT", 4, 2, 0, len(name)) + name  # clean session, no keep-alive
    connection.sendall(b"\x10" + variable_byte_integer(len(hello)) + hello)
    answer = connection.recv(4)
    if answer != b"\x20\x02\x00\x00":
        connection.close()
        raise ConnectionError(f"{host}:{port}: the broker refused: {answer.hex()}")
    connection.settimeout(None)
    return connection


def main(url: str, node: str, host: str, port: str, topic: str, seconds: str = "inf") -> None:
    """Relays and says how much."""
    asked_s = min(float(seconds), 1e9)
    relayed = on_loop(lambda: relay(url, node, host, int(port), topic, asked_s))
    print(f"relayed {relayed}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
