"""The reference of `benchmarks.latency`: asyncua's handler and paho, as their manuals show them, on uvloop.

python -m benchmarks.latency_stock URL NODE HOST PORT TOPIC
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import orjson
import paho.mqtt.client as paho
from asyncua import Client, Node
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.measure import on_loop


class Publishing:
    """An asyncua subscription handler."""

    def __init__(self, client: paho.Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._said = False

    def status_change_notification(self, status: Any) -> None:
        """asyncua wants it to be there."""

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        """asyncua calls this for every value."""
        found = data.monitored_item.Value
        t_us = int(found.SourceTimestamp.timestamp() * 1e6)
        row = {
            "tag": node.nodeid.Identifier,
            "t": t_us,
            "v": value,
            "q": "good" if found.StatusCode.is_good() else "bad",
        }
        self._client.publish(self._topic, orjson.dumps({"device": "machine", "samples": [row]}), 1)
        if not self._said:
            self._said = True
            print("relaying", flush=True)


async def relay(url: str, node: str, host: str, port: int, topic: str) -> None:
    """For ever."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(0)  # no limit: with one, every PUBACK walks through all messages in flight
    client.connect(host, port)
    client.loop_start()
    async with Client(url, timeout=30) as machine:
        machine.session_timeout = 60_000  # gopcua answers 0, which ends asyncua's watchdog after a second
        subscription = await machine.create_subscription(1, Publishing(client, topic))
        await subscription.subscribe_data_change(machine.get_node(node), queuesize=100, sampling_interval=0)
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    on_loop(relay(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]))
