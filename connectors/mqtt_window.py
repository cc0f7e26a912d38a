"""What was sent and is not confirmed yet: QoS 1 messages by packet id, QoS 0 writes by the ping sent behind them.

No I/O. Packet ids are shared with paho, which publishes the status: ours are 1..PACKET_ID_MAX, paho's the rest up to
65,535. The window is the broker's Receive Maximum (MQTT 5 section 4.9) less one for paho, or all ids of ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipelines.errors import GatewayError

PACKET_ID_MAX = 65_000
PAHO_PACKET_IDS = range(PACKET_ID_MAX + 1, 65_536)


class Delivery:
    """One `write()`: how many of its messages are not confirmed, and which ones the broker refused."""

    __slots__ = ("_done", "_open", "_sealed", "error", "refused")

    def __init__(self) -> None:
        self._done: asyncio.Future[None] | None = None  # while somebody waits
        self._open = 0
        self._sealed = False
        self.refused: list[tuple[int, int]] = []
        """(message of the write, reason code)."""
        self.error: GatewayError | None = None

    def sent(self, messages: int) -> None:
        """So many more wait to be confirmed."""
        self._open += messages

    def confirmed(self, messages: int = 1) -> None:
        """So many have been, be it with a refusal."""
        self._open -= messages
        if self._sealed and self._open == 0:
            self._wake()

    def lost(self, error: GatewayError) -> None:
        """The connection ended first."""
        self.error = self.error or error
        self._wake()

    async def settled(self) -> None:
        """No message will follow; returns when every one is confirmed. Raises what `lost` was given."""
        self._sealed = True
        if self._open and not self.error:
            self._done = asyncio.get_running_loop().create_future()
            await self._done
        if self.error:
            raise self.error

    def _wake(self) -> None:
        if self._done and not self._done.done():
            self._done.set_result(None)


class _Slice(NamedTuple):
    """Consecutive packet ids of one delivery: message `first_message` has `first_id`."""

    delivery: Delivery
    first_id: int
    first_message: int


class Window:
    """QoS 1 messages in flight."""

    def __init__(self, size: int) -> None:
        self.size = min(size, PACKET_ID_MAX)
        self._slices: dict[int, _Slice] = {}
        self._next_id = 1
        self._room: tuple[int, asyncio.Future[None]] | None = None

    def __len__(self) -> int:
        return len(self._slices)

    @property
    def oldest(self) -> object | None:
        """The message that waits longest (compare with ==); None when nothing is in flight."""
        return next(iter(self._slices.items()), None)

    @property
    def free(self) -> int:
        """How many messages there is room for; 0 while somebody waits for room."""
        return 0 if self._room else self.size - len(self._slices)

    async def room(self, messages: int) -> None:
        """Waits until so many fit, or half the window does. One waiter at a time; ended by `fail` too."""
        wanted = min(messages, max(1, self.size // 2))
        if self.size - len(self._slices) < wanted:
            self._room = (wanted, asyncio.get_running_loop().create_future())
            await self._room[1]

    def take(self, delivery: Delivery, first_message: int, messages: int) -> range:
        """Packet ids for the next messages of the delivery: as many of them as there is room for, at least one.

        Call `room` before: there must be some.
        """
        messages = min(messages, self.size - len(self._slices))
        assert messages > 0
        packet_ids = self._free_ids(messages)
        part = _Slice(delivery, packet_ids.start, first_message)
        self._slices.update(dict.fromkeys(packet_ids, part))
        delivery.sent(len(packet_ids))
        return packet_ids

    def take_one(self, delivery: Delivery, message: int) -> int:
        """As `take`: a packet id; something must be `free`."""
        packet_id = self._next_id
        while packet_id in self._slices:
            packet_id = packet_id % PACKET_ID_MAX + 1
        self._next_id = packet_id % PACKET_ID_MAX + 1
        self._slices[packet_id] = _Slice(delivery, packet_id, message)
        delivery.sent(1)
        return packet_id

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """The broker has these messages; an id that is not in flight is ignored."""
        slices = self._slices
        last: Delivery | None = None
        run = 0
        for packet_id in packet_ids:
            part = slices.pop(packet_id, None)
            if part is None:
                continue
            if part.delivery is last:
                run += 1
                continue
            if last is not None:
                last.confirmed(run)
            last, run = part.delivery, 1
        if last is not None:
            last.confirmed(run)
        self._wake()

    def refuse(self, packet_id: int, reason: int) -> None:
        """The broker will not have this message."""
        part = self._slices.pop(packet_id, None)
        if part is not None:
            part.delivery.refused.append((part.first_message + packet_id - part.first_id, reason))
            part.delivery.confirmed()
        self._wake()

    def fail(self, error: GatewayError) -> None:
        """The connection ended: everything in flight is lost, and whoever waits for room is woken."""
        for delivery in {part.delivery for part in self._slices.values()}:
            delivery.lost(error)
        self._slices.clear()
        self._wake()

    def _free_ids(self, messages: int) -> range:
        """The next consecutive free ids, up to `messages`; at least one while any is free.

        PUBACKs come in order from every known broker, but need not: a straggler's id is stepped over.
        """
        taken = self._slices
        while (first := self._next_id) in taken:
            self._next_id = first % PACKET_ID_MAX + 1
        end = min(first + messages, PACKET_ID_MAX + 1)
        if not taken.keys().isdisjoint(range(first, end)):
            end = next(packet_id for packet_id in range(first, end) if packet_id in taken)
        self._next_id = end if end <= PACKET_ID_MAX else 1
        return range(first, end)

    def _wake(self) -> None:
        if self._room and self.size - len(self._slices) >= self._room[0]:
            future = self._room[1]
            self._room = None
            if not future.done():
                future.set_result(None)


class Watchdog:
    """Says when the same message or ping has been the oldest one for too long.

    Not the age of a message counts but whether the queue moves: a slow link with much in flight is not a dead one, and
    neither is one over which a single message takes longer than the time-out. Its time begins when the broker's system
    has the last byte of it, or when no more bytes arrive there.
    """

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._oldest: object | None = None
        self._since_ns = 0
        self._uploaded = self._whole = 0
        """Bytes at the broker's system: the newest figure, and the one at which it has all of the oldest."""

    def stalled(self, oldest: object | None, now_ns: int, uploaded: int = 0, waiting: int = 0) -> bool:
        """To be asked regularly, with a monotonic time, and what `tcp.uploaded` says."""
        if oldest is None or oldest != self._oldest:
            self._oldest, self._since_ns = oldest, now_ns
            self._uploaded, self._whole = uploaded, uploaded + waiting
            return False
        if self._uploaded < min(uploaded, self._whole):
            self._uploaded, self._since_ns = uploaded, now_ns
        return now_ns - self._since_ns >= self._timeout_ns


class PingBarrier:
    """QoS 0 writes, confirmed when the broker answers a ping that was sent behind them.

    A broker reads its connection in order, so a PINGRESP says that everything before its PINGREQ has arrived. At most
    one ping of ours is under way; all writes made meanwhile share the next one.
    """

    def __init__(self, send_ping: Callable[[], None]) -> None:
        self._send_ping = send_ping
        self._waiting: list[Delivery] = []
        self._asked: deque[list[Delivery] | None] = deque()
        """Pings under way: the writes that wait for each, None for paho's own."""
        self._answers = 0
        self._unconfirmed = 0

    def __len__(self) -> int:
        return self._unconfirmed

    @property
    def oldest(self) -> object | None:
        """Number of the ping that waits longest for its answer; None when there is none."""
        return self._answers if self._asked else None

    def join(self, delivery: Delivery) -> bool:
        """What the delivery sends up to now will be confirmed. True: the caller sends a PINGREQ right behind it."""
        delivery.sent(1)
        self._unconfirmed += 1
        self._waiting.append(delivery)
        return self._ask()

    def foreign_ping(self) -> None:
        """paho sent one of its own, for keep-alive."""
        self._asked.append(None)

    def answered(self) -> bool:
        """A PINGRESP arrived; true where the ping was paho's. One that nobody asked for confirms nothing."""
        if not self._asked:
            return False
        self._answers += 1
        asked = self._asked.popleft()
        for delivery in asked or ():
            self._unconfirmed -= 1
            delivery.confirmed()
        if self._ask():
            self._send_ping()
        return asked is None

    def fail(self, error: GatewayError) -> None:
        """The connection ended: nothing will be answered."""
        for delivery in [*self._waiting, *(one for asked in self._asked for one in asked or ())]:
            delivery.lost(error)
        self._waiting.clear()
        self._asked.clear()
        self._unconfirmed = 0

    def _ask(self) -> bool:
        """Whether a ping is to be sent now; it is then counted as sent."""
        if not self._waiting or any(asked is not None for asked in self._asked):
            return False
        self._asked.append(self._waiting)
        self._waiting = []
        return True
