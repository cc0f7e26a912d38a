"""What the source shows ahead of `read`: each reply by itself, in the step of its arrival, and nothing twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipelines.batch import BAD_TIMEOUT, GOOD, Batch
from pipelines.few import FewRows
from tests.unit.connectors.modbus_device import Image, set_timeout, tcp_frame, until, within
from tests.unit.connectors.test_modbus_source import Setup, started, words

ILLEGAL = 0x8034_0000
BUSY = 6


class Shown:
    """Batches as they were shown, each with how many requests the device had had by then."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.batches: list[Batch] = []
        self.asked: list[int] = []
        setup.source.show(self._ahead)

    def _ahead(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.asked.append(self._setup.source.counters.totals["requests"])

    @property
    def rows(self) -> list[dict[str, tuple[Any, int]]]:
        return [self._setup.rows(batch) for batch in self.batches]


def good(*addresses: int) -> dict[str, tuple[Any, int]]:
    return {f"h{address}": (address, GOOD) for address in addresses}


async def cycle(setup: Setup, batches: int) -> list[Batch]:
    """What `read` gives of one poll cycle: so many batches."""
    return [await setup.source.read() for _ in range(batches)]


async def test_what_is_shown_is_what_read_gives() -> None:
    """The very batch, as `read` alone would have made it but for the time it takes."""
    async with started(Image(), tags=words(1, 2)) as setup:
        before = await setup.source.read()
        shown = Shown(setup)
        [batch] = await cycle(setup, 1)
        assert shown.batches == [batch] and shown.asked == [2]
        assert setup.rows(batch) == setup.rows(before)
        assert (batch.source_id, batch.number, batch.origin) == (0, before.number + 1, None)
        assert batch.kind.tolist() == before.kind.tolist() and batch.flags.tolist() == before.flags.tolist()
        assert batch.ts_ns.tolist() == [batch.received_ns] * 2 and batch.clock is setup.clock.state
        assert batch.received_ns > before.received_ns
        setup.source.show(None)
        assert (await setup.source.read()).number == batch.number + 1
        assert len(shown.batches) == 1


TYPES = {
    "text": "holding 0 string 4",
    "wide": "holding 2 uint64",
    "bit": "holding 6.1",
    "float": "holding 7 float32",
    "small": "holding 9 int8",
    "list": "holding 10 int16[3]",
    "none": {"register": "holding 13 uint16", "invalid": [13]},
    "scaled": {"register": "holding 14 uint16", "scale_from": "holding 15 int16"},
}


@pytest.mark.parametrize("names", [[name] for name in TYPES] + [["wide", "none", "bit"], list(TYPES)])
async def test_a_few_rows_are_what_columns_would_be(names: list[str]) -> None:
    """Without columns or with them: values, kinds, statuses and what no float64 can hold are the same."""
    image = Image(value=lambda address: 2 if address == 15 else address)
    async with started(image, tags={name: TYPES[name] for name in names}) as setup:
        plain = await setup.source.read()
        shown = Shown(setup)
        batch = await setup.source.read()
        assert shown.batches == [batch] and isinstance(batch, FewRows) is (len(names) < 6)
        for column in ("tag", "status", "kind", "flags"):
            assert getattr(batch, column).tolist() == getattr(plain, column).tolist()
        assert list(batch.values()) == list(plain.values())


async def test_each_reply_of_several_is_shown_before_the_next_request() -> None:
    """A batch each, in their order; `read` gives them when the cycle is over."""
    image = Image()
    async with started(image, tags=words(1, 500, 1000, 1500)) as setup:
        [first] = await cycle(setup, 1)
        shown = Shown(setup)
        read = await cycle(setup, 4)
        assert shown.batches == read and shown.asked == [5, 6, 7, 8]
        assert shown.rows == [good(1), good(500), good(1000), good(1500)]
        assert [batch.number for batch in read] == [first.number + number for number in (1, 2, 3, 4)]
        assert setup.source.counters.totals["requests"] == 8
        again = await cycle(setup, 4)
        assert again == shown.batches[4:] and setup.clock.sleeps_s == [1.0, 1.0]


async def test_replies_that_come_together_are_shown_in_order() -> None:
    """Several requests under way: each still shows by itself."""
    async with started(Image(), tags=words(1, 500, 1000), pipeline=4) as setup:
        shown = Shown(setup)
        assert await cycle(setup, 3) == shown.batches
        assert shown.rows == [good(1), good(500), good(1000)]


async def test_a_refused_block_comes_behind_what_was_shown() -> None:
    """Exception 2: the block is cut and explored as always, and its rows are one batch more; every tag once."""
    async with started(Image(holes=[501]), tags=words(1, 500, 501, 1000)) as setup:
        shown = Shown(setup)
        *ahead, rest = await cycle(setup, 3)
        assert ahead == shown.batches and shown.rows == [good(1), good(1000)]
        assert setup.rows(rest) == good(500) | {"h501": (None, ILLEGAL)}
        assert rest.number == ahead[-1].number + 1
        assert list(setup.source.faults) == ["h501"]
        *ahead, rest = await cycle(setup, 4)  # planned anew, without what the device has not got
        assert ahead == shown.batches[2:] and shown.rows[2:] == [good(1), good(500), good(1000)]
        assert setup.rows(rest) == {"h501": (None, ILLEGAL)}


async def test_a_busy_device_is_asked_again() -> None:
    """Exception 6: what comes of the second request is not shown, and not missing."""
    image, refused = Image(), [True]

    def busy_once(request: bytes) -> bytes:
        if request[8:10] == (500).to_bytes(2, "big") and refused:
            refused.clear()
            return tcp_frame(int.from_bytes(request[:2], "big"), request[6], bytes([0x83, BUSY]))
        return image(request)

    async with started(busy_once, tags=words(1, 500)) as setup:
        shown = Shown(setup)
        first, second = await cycle(setup, 2)
        assert shown.batches == [first]
        assert (setup.rows(first), setup.rows(second)) == (good(1), good(500))
        assert setup.source.counters.totals["exceptions"] == 1


async def test_a_silent_block_is_a_row_behind_what_was_shown() -> None:
    image = Image()

    def deaf_at_500(request: bytes) -> bytes:
        if request[8:10] == (500).to_bytes(2, "big"):
            return b""
        set_timeout(setup.source._link, 0.05)  # for the next request, the one at 500
        return image(request)

    async with started(deaf_at_500, tags=words(1, 500)) as setup:
        shown = Shown(setup)
        first, second = await cycle(setup, 2)
        assert shown.batches == [first] and setup.rows(second) == {"h500": (None, BAD_TIMEOUT)}
        assert setup.source.counters.totals["timeouts"] == 1


async def test_a_silent_device_shows_nothing_and_is_given_up_as_always() -> None:
    image = Image()
    async with started(image, tags=words(1, 500)) as setup:
        shown = Shown(setup)
        image.silent = True
        with within(setup.source._link, 0.05):
            [batch] = await cycle(setup, 1)
        assert shown.batches == [] and setup.rows(batch) == {f"h{at}": (None, BAD_TIMEOUT) for at in (1, 500)}


async def test_a_connection_that_is_cut_within_a_cycle() -> None:
    """What was shown is read, and then what the cycle has not got."""
    image = Image()

    def cut_at_500(request: bytes) -> bytes | None:
        return None if request[8:10] == (500).to_bytes(2, "big") else image(request)

    async with started(cut_at_500, tags=words(1, 500)) as setup:
        shown = Shown(setup)
        first, second = await cycle(setup, 2)
        assert shown.batches == [first] and shown.rows == [good(1)]
        [(value, status)] = setup.rows(second).values()
        assert value is None and status != GOOD


async def test_a_cancelled_read_loses_nothing_that_was_shown() -> None:
    """The next one gives it, after `close` and `connect` too: a durable route may not have it yet."""
    image = Image()
    async with started(image, tags=words(1, 500)) as setup:
        shown = Shown(setup)
        setup.device.answer = lambda request: image(request) if len(image.reads) < 1 else b""
        reading = asyncio.ensure_future(setup.source.read())
        await until(lambda: len(setup.device.requests) == 2)
        reading.cancel()
        await asyncio.wait([reading])
        assert await setup.source.read() is shown.batches[0]
        setup.device.answer = lambda request: image(request) if request[8] == 0 and request[9] == 1 else b""
        reading = asyncio.ensure_future(setup.source.read())
        await until(lambda: len(shown.batches) == 2)
        reading.cancel()
        await asyncio.wait([reading])
        await setup.source.close()
        setup.device.answer = image
        await setup.source.connect([])
        assert await setup.source.read() is shown.batches[1]


async def test_only_the_polls_of_fast_tags_are_shown_where_there_are_such() -> None:
    """The others stay one batch a cycle."""
    async with started(Image(), tags=words(1, 2, 500, 1000), apart=["h2"]) as setup:
        shown = Shown(setup)
        first, second = await cycle(setup, 2)
        assert shown.batches == [first] and setup.rows(first) == good(2)
        assert setup.rows(second) == good(1, 500, 1000)


async def test_scales_of_other_blocks_are_waited_for() -> None:
    """A value whose scale comes in another reply is not shown alone; the cycle gives it."""
    tags: dict[str, Any] = {
        "near": "holding 5 uint16",
        "far": {"register": "holding 1 uint16", "scale_from": "holding 900 int16"},
    }
    async with started(Image(value=lambda at: 1 if at == 900 else at), tags=tags) as setup:
        shown = Shown(setup)
        batches = await cycle(setup, 1)
        assert shown.batches == []
        assert setup.rows(batches[0]) == {"near": (5, GOOD), "far": (10, GOOD)}
