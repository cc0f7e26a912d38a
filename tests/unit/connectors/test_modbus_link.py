"""Nothing but the reply to the current request is ever taken for it: real sockets, a device that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from connectors.modbus_frames import BAD_COMMUNICATION_ERROR, BAD_CONNECTION_CLOSED, Query, RequestFailed, query
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, Table
from connectors.modbus_url import parse_url
from pipelines.batch import BAD_TIMEOUT
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from tests.unit.connectors.modbus_device import (
    Answer,
    Device,
    read_pdu,
    registers,
    rtu_frame,
    tcp_frame,
    until,
    within,
)

UNIT = 7
DATA = registers(1, 2, 3)
TIMEOUT_NS = 60_000_000_000
"""What is answered is never late, however busy the machine is."""
HOLDING = Block(Table.HOLDING, 10, 3, ())


class Setup:
    """A link to a device, and the request that the tests make."""

    def __init__(self, device: Device) -> None:
        url = parse_url(device.url)
        self.device = device
        self.counters = Counters("source", "m")
        self.link = ModbusLink(url, TIMEOUT_NS, SystemClock(), self.counters)
        self.query = query(url, HOLDING)

    async def data(self, request: Query | None = None) -> bytes:
        """The reply's data. Raises its RequestFailed, and NotConnected where the connection was lost."""
        [reply] = await self.link.read([request or self.query])
        if self.link.lost:
            raise NotConnected(self.link.lost)
        if reply.failure:
            raise reply.failure
        return reply.data

    async def time_out(self) -> None:
        """One request that the device reads, and leaves without a reply."""
        seen = len(self.device.requests)
        with within(self.link, 0.05):
            assert (await failure(self.data())).status == BAD_TIMEOUT
        await until(lambda: len(self.device.requests) > seen)

    def count(self, name: str) -> int:
        return self.counters.totals[name]


@asynccontextmanager
async def linked(answer: Answer, *, rtu: bool = False) -> AsyncIterator[Setup]:
    async with Device(answer, rtu=rtu) as device:
        setup = Setup(device)
        await setup.link.connect()
        try:
            yield setup
        finally:
            await setup.link.close()


async def failure(request: Awaitable[object]) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        await request
    return caught.value


def in_turn(*answers: Answer) -> Answer:
    """The first request gets the first answer, and so on; the last one stays."""
    left = list(answers)

    def answer(request: bytes) -> bytes | None:
        return (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


def tcp(pdu: bytes, unit: int = UNIT, shift: int = 0) -> Answer:
    return lambda request: tcp_frame((int.from_bytes(request[:2], "big") + shift) & 0xFFFF, unit, pdu)


def rtu(pdu: bytes, unit: int = UNIT) -> Answer:
    return lambda request: rtu_frame(unit, pdu)


def nothing(request: bytes) -> bytes:
    return b""


def cut(request: bytes) -> None:
    return None


GOOD = read_pdu(3, DATA)


@pytest.mark.parametrize("table", Table)
async def test_requests_are_those_of_the_standard(table: Table) -> None:
    """V1.1b3, sections 6.1-6.4: function, address, quantity."""
    block = Block(table, 0x1234, 9, ())
    data = bytes(block.reply_bytes)
    async with linked(tcp(read_pdu(table.function, data))) as setup:
        assert await setup.data(query(parse_url(setup.device.url), block)) == data
        assert setup.device.requests[0][2:].hex() == f"0000000607{table.function:02x}12340009"


async def test_transaction_ids_go_up() -> None:
    async with linked(tcp(GOOD)) as setup:
        assert [await setup.data() for _ in range(3)] == [DATA] * 3
        assert [request[:2].hex() for request in setup.device.requests] == ["0001", "0002", "0003"]


@pytest.mark.parametrize("serial", [False, True])
async def test_a_reply_in_pieces_is_put_together(serial: bool) -> None:
    async with linked(nothing, rtu=serial) as setup:
        request = asyncio.create_task(setup.data())
        await until(lambda: bool(setup.device.requests))
        frame = rtu_frame(UNIT, GOOD) if serial else tcp_frame(1, UNIT, GOOD)
        for at in range(len(frame)):
            setup.device.send(frame[at : at + 1])
            await until(lambda sent=at + 1: setup.count("received_bytes") == sent)  # type: ignore[misc]
            assert not request.done() or at == len(frame) - 1
        assert await request == DATA


@pytest.mark.parametrize(
    ("answer", "serial", "reason"),
    [
        (tcp(GOOD, unit=8), False, "unit 8 came, 7 was asked for"),
        (tcp(read_pdu(4, DATA)), False, "function 4 came, 3 was asked for"),
        (tcp(read_pdu(3, DATA[:4])), False, "byte count 4 came, 6 was asked for"),
        (tcp(read_pdu(3, DATA + b"\0\0")), False, "byte count 8 came, 6 was asked for"),
        (tcp(GOOD[:-2]), False, "byte count 4 came, 6 was asked for"),
        (tcp(GOOD + b"\0"), False, "byte count 7 came, 6 was asked for"),
        (rtu(GOOD, unit=8), True, "unit 8 came, 7 was asked for"),
        (rtu(read_pdu(4, DATA)), True, "function 4 came, 3 was asked for"),
        (rtu(read_pdu(3, DATA[:4])), True, "byte count 4 came, 6 was asked for"),
        (rtu(read_pdu(3, DATA + b"\0\0")), True, "byte count 8 came, 6 was asked for"),
        (lambda request: rtu_frame(UNIT, GOOD)[:-1] + b"\0", True, "CRC"),
        (lambda request: b"\xff\xfe\xfd\xfc\xfb\xfa", True, "unit 255 came"),
        (lambda request: rtu_frame(UNIT, b"\x83\x02")[:-1] + b"\0", True, "CRC"),
    ],
)
async def test_a_wrong_reply_is_refused_and_the_next_one_is_right(answer: Answer, serial: bool, reason: str) -> None:
    async with linked(in_turn(answer, rtu(GOOD) if serial else tcp(GOOD)), rtu=serial) as setup:
        failed = await failure(setup.data())
        assert failed.status == BAD_COMMUNICATION_ERROR
        assert reason in failed.reason
        assert setup.count("bad_replies") == 1
        assert await setup.data() == DATA
        assert setup.device.connections == (2 if serial else 1)


@pytest.mark.parametrize("serial", [False, True])
async def test_an_exception_is_named_and_the_connection_stays(serial: bool) -> None:
    wrap = rtu if serial else tcp
    async with linked(in_turn(wrap(b"\x83\x02"), wrap(b"\x83\x63"), wrap(GOOD)), rtu=serial) as setup:
        failed = await failure(setup.data())
        assert (failed.exception_code, failed.status) == (2, 0x80340000)
        assert "illegal data address (exception 2)" in failed.reason
        assert (await failure(setup.data())).status == 0x808B0000
        assert await setup.data() == DATA
        assert setup.count("exceptions") == 2
        assert setup.device.connections == 1


async def test_a_late_reply_is_never_the_current_one() -> None:
    """Not every device gives it the transaction id of its own request: after a time-out there is a new connection."""
    async with linked(in_turn(nothing, tcp(GOOD))) as setup:
        await setup.time_out()
        setup.device.send(tcp_frame(2, UNIT, read_pdu(3, registers(9, 9, 9))))
        assert await setup.data() == DATA
        assert (setup.count("timeouts"), setup.device.connections) == (1, 2)


async def test_a_reply_with_a_foreign_transaction_id_is_dropped() -> None:
    def foreign_then_right(request: bytes) -> bytes:
        transaction = int.from_bytes(request[:2], "big")
        foreign = tcp_frame(transaction - 1, UNIT, read_pdu(3, registers(9, 9, 9)))
        return foreign + tcp_frame(transaction, UNIT, GOOD)

    async with linked(foreign_then_right) as setup:
        assert [await setup.data() for _ in range(2)] == [DATA] * 2
        assert (setup.count("stale_replies"), setup.device.connections) == (2, 1)


async def test_a_late_reply_on_a_serial_line_arrives_nowhere() -> None:
    """RTU has no transaction id: after a time-out the next request has a connection of its own."""
    async with linked(in_turn(nothing, rtu(GOOD)), rtu=True) as setup:
        await setup.time_out()
        setup.device.send(rtu_frame(UNIT, read_pdu(3, registers(9, 9, 9))))
        assert await setup.data() == DATA
        assert setup.device.connections == 2


async def test_surplus_bytes_on_a_serial_line_are_not_the_next_reply() -> None:
    twice = rtu_frame(UNIT, read_pdu(3, registers(9, 9, 9)))
    async with linked(in_turn(lambda request: twice + twice, rtu(GOOD)), rtu=True) as setup:
        assert await setup.data() == registers(9, 9, 9)
        assert await setup.data() == DATA
        assert setup.device.connections == 2


async def test_a_reply_that_nobody_waits_for_spends_a_serial_connection() -> None:
    async with linked(rtu(GOOD), rtu=True) as setup:
        assert await setup.data() == DATA
        setup.device.send(rtu_frame(UNIT, read_pdu(3, registers(9, 9, 9))))
        await until(lambda: setup.count("stale_replies") == 1)
        assert await setup.data() == DATA
        assert setup.device.connections == 2


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\1\0\0\0\1\1\1\1", b"\0\1\0\0\xff\xff\1\1\1"]
)
async def test_what_is_not_modbus_ends_the_connection(garbage: bytes) -> None:
    async with linked(lambda request: garbage) as setup:
        with pytest.raises(NotConnected, match="is not Modbus TCP"):
            await setup.data()


@pytest.mark.parametrize("serial", [False, True])
async def test_a_cut_connection_is_not_connected_until_connect(serial: bool) -> None:
    async with linked(in_turn(cut, rtu(GOOD) if serial else tcp(GOOD)), rtu=serial) as setup:
        for _ in range(2):
            with pytest.raises(NotConnected, match=r"modbus (rtu\+)?tcp://127.0.0.1:\d+/7: connection closed"):
                await setup.data()
        await setup.link.connect()
        assert await setup.data() == DATA


@pytest.mark.parametrize("serial", [False, True])
async def test_the_next_request_goes_out_behind_the_reply_before_it(serial: bool) -> None:
    async with linked(nothing, rtu=serial) as setup:
        reading = asyncio.create_task(setup.link.read([setup.query] * 3))
        for number in range(1, 4):
            await until(lambda asked=number: len(setup.device.requests) == asked)  # type: ignore[misc]
            pdu = read_pdu(3, registers(number, 0, 0))
            setup.device.send(rtu_frame(UNIT, pdu) if serial else tcp_frame(number, UNIT, pdu))
        assert [reply.data for reply in await reading] == [registers(number, 0, 0) for number in range(1, 4)]
        assert (setup.count("requests"), setup.device.connections) == (3, 1)


async def test_what_came_with_a_reply_never_answers_the_request_behind_it() -> None:
    """The device guesses the next transaction id: its frame was there before that request was."""

    def ahead(request: bytes) -> bytes:
        transaction = int.from_bytes(request[:2], "big")
        return tcp_frame(transaction, UNIT, GOOD) + tcp_frame(transaction + 1, UNIT, read_pdu(3, registers(9, 9, 9)))

    async with linked(in_turn(ahead, tcp(GOOD))) as setup:
        assert [reply.data for reply in await setup.link.read([setup.query] * 2)] == [DATA] * 2
        assert setup.count("stale_replies") == 1


@pytest.mark.parametrize("serial", [False, True])
async def test_a_request_without_reply_fails_alone(serial: bool) -> None:
    good = rtu(GOOD) if serial else tcp(GOOD)
    async with linked(in_turn(good, nothing, good), rtu=serial) as setup:
        with within(setup.link, 0.5):
            replies = await setup.link.read([setup.query] * 3)
        assert [reply.failure and reply.failure.status for reply in replies] == [None, BAD_TIMEOUT, None]
        assert [reply.data for reply in replies] == [DATA, bytes(len(DATA)), DATA]
        assert setup.count("timeouts") == 1


@pytest.mark.parametrize("serial", [False, True])
async def test_what_was_read_before_the_connection_was_cut_is_kept(serial: bool) -> None:
    async with linked(in_turn(rtu(GOOD) if serial else tcp(GOOD), cut), rtu=serial) as setup:
        first, *others = await setup.link.read([setup.query] * 3)
        assert (first.data, first.failure) == (DATA, None)
        assert [reply.failure and reply.failure.status for reply in others] == [BAD_CONNECTION_CLOSED] * 2
        assert "connection closed" in setup.link.lost
        assert setup.count("requests") == 2


async def test_a_refused_connection_is_one_clear_line() -> None:
    async with Device(nothing) as device:
        setup = Setup(device)
    with pytest.raises(NotConnected, match=r"modbus tcp://127.0.0.1:\d+/7: connection refused"):
        await setup.link.connect()
    with pytest.raises(NotConnected, match="connection refused"):
        await setup.data()


async def test_an_unknown_host_is_one_clear_line() -> None:
    link = ModbusLink(parse_url("tcp://no-such-host.invalid"), TIMEOUT_NS, SystemClock(), Counters("source", "m"))
    with pytest.raises(NotConnected, match="host name not found"):
        await link.connect()


async def test_close_is_idempotent_and_ends_a_waiting_request() -> None:
    async with linked(nothing) as setup:
        request = asyncio.create_task(setup.data())
        await until(lambda: bool(setup.device.requests))
        await setup.link.close()
        await setup.link.close()
        with pytest.raises(NotConnected):
            await request


@pytest.mark.parametrize("serial", [False, True])
async def test_a_cancelled_request_leaves_the_link_usable(serial: bool) -> None:
    """Also on RTU, once the reply to it would be too late."""
    wrap = rtu if serial else tcp
    async with linked(in_turn(nothing, wrap(GOOD)), rtu=serial) as setup:
        with within(setup.link, 0.2):
            request = asyncio.create_task(setup.data())
            await until(lambda: bool(setup.device.requests) or request.done())
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        assert await setup.data() == DATA


async def test_a_cancelled_connect_leaves_nothing_open() -> None:
    async with Device(nothing) as device:
        setup = Setup(device)
        for steps in range(6):
            dialling = asyncio.create_task(setup.link.connect())
            for _ in range(steps):
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.gather(dialling, return_exceptions=True)
            await setup.link.close()
        await until(lambda: all(writer.is_closing() for writer in device.writers))
