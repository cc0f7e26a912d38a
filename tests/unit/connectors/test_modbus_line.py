"""What devices share: one connection, its pace and its turns; several requests outstanding; datagrams."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from connectors.modbus_frames import BAD_CONNECTION_CLOSED, query
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, Table
from connectors.modbus_url import Manners, parse_url
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from tests.unit.connectors.modbus_device import Answer, Device, read_pdu, registers, tcp_frame, until, within

TIMEOUT_NS = 60_000_000_000


def right(request: bytes) -> bytes:
    """Every register holds its address."""
    start, count = int.from_bytes(request[8:10], "big"), int.from_bytes(request[10:12], "big")
    pdu = read_pdu(request[7], registers(*range(start, start + count)))
    return tcp_frame(int.from_bytes(request[:2], "big"), request[6], pdu)


def nothing(request: bytes) -> bytes:
    return b""


def address(request: bytes) -> int:
    return int.from_bytes(request[8:10], "big")


class User:
    """One device of the line."""

    def __init__(self, url: str, unit: int, manners: Manners) -> None:
        self.url = parse_url(f"{url.rpartition('/')[0]}/{unit}")
        self.counters = Counters("source", f"unit{unit}")
        self.link = ModbusLink(self.url, TIMEOUT_NS, SystemClock(), self.counters, manners)

    async def read(self, *addresses: int, before_ns: int = 0) -> list[bytes]:
        queries = [query(self.url, Block(Table.HOLDING, address, 1, ())) for address in addresses]
        return [reply.data for reply in await self.link.read(queries, before_ns)]


@asynccontextmanager
async def users(answer: Answer, *manners: Manners) -> AsyncIterator[tuple[Device, list[User]]]:
    """Connected to one device, units 1, 2, ..."""
    async with Device(answer) as device, AsyncExitStack() as stack:
        found = [User(device.url, unit, how) for unit, how in enumerate(manners, 1)]
        for user in found:
            await user.link.connect()
            stack.push_async_callback(user.link.close)
        yield device, found


SHARED = Manners(shared=True)


@pytest.mark.parametrize(("manners", "connections"), [(Manners(), 2), (SHARED, 1)])
async def test_devices_share_a_connection_where_they_say_so(manners: Manners, connections: int) -> None:
    async with users(right, manners, manners) as (device, (one, two)):
        values = await asyncio.gather(one.read(1, 2, 3), two.read(4, 5))
        assert values == [[registers(1), registers(2), registers(3)], [registers(4), registers(5)]]
        assert device.connections == connections
        assert {(request[6], address(request)) for request in device.requests} == {
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 4),
            (2, 5),
        }
        assert (one.counters.totals["requests"], two.counters.totals["requests"]) == (3, 2)


async def test_a_shared_connection_stays_until_the_last_one_leaves() -> None:
    async with users(right, SHARED, SHARED) as (device, (one, two)):
        await one.link.close()
        assert await two.read(7) == [registers(7)]
        await one.link.connect()
        assert (await one.read(8), device.connections) == ([registers(8)], 1)
        await asyncio.gather(one.link.close(), two.link.close())
        await until(device.writers[0].is_closing)


async def test_closing_ends_ones_own_read_and_nobody_elses() -> None:
    async with users(nothing, SHARED, SHARED) as (device, (one, two)):
        reading = [asyncio.create_task(user.read(unit)) for unit, user in enumerate((one, two), 1)]
        await until(lambda: len(device.requests) == 1)
        await two.link.close()
        assert await reading[1] == [registers(0)]
        device.send(right(device.requests[0]))
        assert await reading[0] == [registers(1)]


async def test_a_lost_shared_connection_is_lost_for_all_and_comes_back_once() -> None:
    async with users(right, SHARED, SHARED) as (device, (one, two)):
        device.answer = lambda request: None
        replies = await asyncio.gather(
            *(user.link.read([query(user.url, Block(Table.HOLDING, 1, 1, ()))]) for user in (one, two))
        )
        assert {reply.failure.status for [reply] in replies if reply.failure} == {BAD_CONNECTION_CLOSED}
        assert one.link.lost and two.link.lost
        device.answer = right
        await asyncio.gather(one.link.connect(), two.link.connect())
        assert await asyncio.gather(one.read(5), two.read(6)) == [[registers(5)], [registers(6)]]
        assert device.connections == 2


async def test_who_is_due_first_has_the_next_request() -> None:
    """A long cycle that is under way lets others in between; a write (0) goes before everything."""
    async with users(nothing, SHARED, SHARED, SHARED) as (device, (slow, fast, write)):
        assert slow.link._line
        wire = slow.link._line._wire
        reading = [asyncio.create_task(slow.read(1, 2, before_ns=3_000))]
        await until(lambda: len(device.requests) == 1)
        reading.append(asyncio.create_task(fast.read(3, 4, before_ns=2_000)))
        reading.append(asyncio.create_task(write.read(5)))
        await until(lambda: wire is not None and len(wire._waiting) == 3)
        for answered in range(5):
            await until(lambda asked=answered: len(device.requests) > asked)  # type: ignore[misc]
            device.send(right(device.requests[answered]))
        await asyncio.gather(*reading)
        assert [address(request) for request in device.requests] == [1, 5, 3, 4, 2]


async def test_a_device_may_write_while_its_cycle_is_under_way() -> None:
    async with users(nothing, Manners()) as (device, [user]):
        reading = [asyncio.create_task(user.read(1, 2, before_ns=9))]
        await until(lambda: len(device.requests) == 1)
        reading.append(asyncio.create_task(user.read(5)))
        await until(lambda: len(user.link._exchanges) == 2)
        for answered in range(3):
            await until(lambda asked=answered: len(device.requests) > asked)  # type: ignore[misc]
            device.send(right(device.requests[answered]))
        assert await asyncio.gather(*reading) == [[registers(1), registers(2)], [registers(5)]]
        assert [address(request) for request in device.requests] == [1, 5, 2]


async def test_several_requests_are_outstanding_and_replies_find_theirs() -> None:
    async with users(nothing, Manners(pipeline=3)) as (device, [user]):
        reading = asyncio.create_task(user.read(*range(10, 15)))
        await until(lambda: len(device.requests) == 3)
        for at in (2, 0, 1):
            device.send(right(device.requests[at]))
        await until(lambda: len(device.requests) == 5)
        for at in (4, 3):
            device.send(right(device.requests[at]))
        assert await reading == [registers(at) for at in range(10, 15)]


async def test_the_most_careful_device_of_a_shared_connection_sets_the_pace() -> None:
    async with users(nothing, Manners(shared=True, pipeline=4), Manners(shared=True, pipeline=1)) as (
        device,
        (one, two),
    ):
        reading = asyncio.create_task(one.read(1, 2, 3))
        await until(lambda: len(device.requests) == 1)
        assert await asyncio.wait([reading], timeout=0.05) == (set(), {reading})
        assert len(device.requests) == 1
        await two.link.close()
        device.send(right(device.requests[0]))
        await until(lambda: len(device.requests) == 3)
        for request in device.requests[1:]:
            device.send(right(request))
        assert await reading == [registers(1), registers(2), registers(3)]


async def test_a_time_out_of_one_unit_costs_another_neither_its_reply_nor_its_connection() -> None:
    """Both are asked at the same time; the connection is given up only when nothing is under way on it."""
    both = Manners(shared=True, pipeline=2)
    async with users(nothing, both, both) as (device, (one, two)):
        slow = asyncio.create_task(two.read(20))
        await until(lambda: len(device.requests) == 1)
        with within(one.link, 0.02):
            assert await one.read(10) == [registers(0)]
        again = asyncio.create_task(one.read(11))
        assert await asyncio.wait([again, slow], timeout=0.05) == (set(), {again, slow})
        device.send(right(device.requests[0]))
        assert await slow == [registers(20)]
        await until(lambda: len(device.requests) == 3)
        device.send(right(device.requests[2]))
        assert await again == [registers(11)]
        assert device.connections == 2


async def test_a_pause_is_kept_between_a_reply_and_the_next_request() -> None:
    times_s: list[float] = []

    def answer(request: bytes) -> bytes:
        times_s.append(time.monotonic())
        return right(request)

    async with users(answer, Manners(shared=True, pause_ns=50_000_000), SHARED) as (_, (one, two)):
        await asyncio.gather(one.read(1, 2), two.read(3))
        assert all(later - earlier >= 0.05 for earlier, later in itertools.pairwise(times_s))
        assert len(times_s) == 3


class _Peer(asyncio.DatagramProtocol):
    """Answers every datagram with some that are no reply, and one that is."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        reply = right(data)
        stale = (int.from_bytes(reply[:2], "big") - 1 & 0xFFFF).to_bytes(2, "big") + reply[2:-2] + registers(999)
        for datagram in (b"", b"x", b"HTTP/1.1 400 Bad Request", reply[:-1], reply + b"\0", stale, reply):
            self.transport.sendto(datagram, address)


async def test_a_datagram_is_a_frame_or_nothing() -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Peer, ("127.0.0.1", 0))
    user = User(f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}/1", 1, Manners())
    await user.link.connect([query(user.url, Block(Table.HOLDING, 9, 1, ()))])
    try:
        for at in range(5):
            assert await user.read(at) == [registers(at)]
        assert user.counters.totals["bad_replies"] and user.counters.totals["stale_replies"]
    finally:
        await user.link.close()
        transport.close()


async def test_nobody_behind_a_udp_port_is_not_connected() -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Peer, ("127.0.0.1", 0))
    user = User(f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}/1", 1, Manners())
    transport.close()
    await asyncio.sleep(0)
    with pytest.raises(NotConnected, match=r"modbus udp://127.0.0.1:\d+/1: connection refused"):
        await user.link.connect([query(user.url, Block(Table.HOLDING, 9, 1, ()))])
