"""Messages in flight: packet ids, slices, order, loss; and the ping barrier of QoS 0."""

import asyncio
import random

import pytest

from connectors.mqtt_window import PACKET_ID_MAX, PAHO_PACKET_IDS, Delivery, PingBarrier, Watchdog, Window
from pipelines.errors import NotConnected


async def test_settles_after_the_last_puback() -> None:
    """Not before, whatever their order."""
    window, delivery = Window(10), Delivery()
    ids = window.take(delivery, 0, 3)
    settled = asyncio.ensure_future(delivery.settled())
    window.acknowledge([ids[2], ids[0], ids[0], 999])
    await asyncio.sleep(0)
    assert not settled.done() and len(window) == 1
    window.acknowledge([ids[1]])
    await settled
    assert len(window) == 0


async def test_refused_messages_are_named_by_their_place_in_the_write() -> None:
    """Over several slices."""
    window, delivery = Window(4), Delivery()
    first = window.take(delivery, 0, 9)
    window.acknowledge(first)
    second = window.take(delivery, 4, 5)
    window.refuse(second[1], 0x87)
    window.acknowledge([second[0], *second[2:]])
    await delivery.settled()
    assert delivery.refused == [(5, 0x87)]


async def test_room_waits_for_half_a_window() -> None:
    """Not for each single PUBACK: slices stay large."""
    window, delivery = Window(8), Delivery()
    ids = window.take(delivery, 0, 8)
    room = asyncio.ensure_future(window.room(100))
    await asyncio.sleep(0)
    window.acknowledge(ids[:3])
    await asyncio.sleep(0)
    assert not room.done()
    window.acknowledge(ids[3:4])
    await room
    assert len(window.take(delivery, 8, 100)) == 4


async def test_ids_are_unique_in_flight_and_never_pahos() -> None:
    """Thousands of writes with PUBACKs out of order: no id is given twice, none is paho's, nothing is forgotten."""
    rng = random.Random(1)
    window, delivery = Window(PACKET_ID_MAX), Delivery()
    flying: list[int] = []
    straggler = window.take(delivery, 0, 1)[0]
    for _ in range(400):
        await window.room(1)
        ids = window.take(delivery, 0, rng.randint(1, 2000))
        assert set(ids).isdisjoint(flying) and straggler not in ids and 0 not in ids
        assert set(ids).isdisjoint(PAHO_PACKET_IDS) and len(ids) > 0
        flying += ids
        rng.shuffle(flying)
        done, flying = flying[: len(flying) * 2 // 3], flying[len(flying) * 2 // 3 :]
        window.acknowledge(done)
        assert len(window) == len(flying) + 1
    window.acknowledge([*flying, straggler])
    await delivery.settled()


async def test_loss_reaches_every_delivery_and_whoever_waits_for_room() -> None:
    """A broken connection leaves nobody waiting."""
    window = Window(2)
    deliveries = [Delivery(), Delivery()]
    for delivery in deliveries:
        window.take(delivery, 0, 1)
    settled = [asyncio.ensure_future(delivery.settled()) for delivery in deliveries]
    room = asyncio.ensure_future(window.room(1))
    await asyncio.sleep(0)
    window.fail(NotConnected("gone"))
    await room
    for future in settled:
        with pytest.raises(NotConnected, match="gone"):
            await future


async def test_barrier_shares_pings() -> None:
    """One ping is under way; writes made meanwhile wait for the next one, never for one that was sent before them."""
    sent: list[str] = []
    barrier = PingBarrier(lambda: sent.append("ping"))
    first, second, third = (Delivery() for _ in range(3))
    assert barrier.join(first) is True
    assert barrier.join(second) is False and barrier.join(third) is False
    later = asyncio.ensure_future(second.settled())
    assert barrier.answered() is False and sent == ["ping"]
    await first.settled()
    await asyncio.sleep(0)
    assert not later.done()
    assert barrier.answered() is False and sent == ["ping"]
    await later
    await third.settled()
    assert len(barrier) == 0


async def test_barrier_tells_pahos_pings_apart() -> None:
    """Answers come in the order of the pings: paho's keep-alive confirms nothing that was sent after it."""
    barrier = PingBarrier(lambda: None)
    barrier.foreign_ping()
    delivery = Delivery()
    assert barrier.join(delivery) is True
    assert barrier.answered() is True
    assert len(barrier) == 1
    assert barrier.answered() is False
    await delivery.settled()


async def test_barrier_loss() -> None:
    """Asked and not yet asked alike."""
    barrier = PingBarrier(lambda: None)
    deliveries = [Delivery(), Delivery()]
    for delivery in deliveries:
        barrier.join(delivery)
    barrier.fail(NotConnected("gone"))
    for delivery in deliveries:
        with pytest.raises(NotConnected):
            await delivery.settled()


def test_watchdog_looks_at_movement() -> None:
    """A slow queue that moves is alive; one that stands still for the time-out is not."""
    dog = Watchdog(10)
    assert not any(dog.stalled(("message", now), now) for now in range(0, 100, 5))
    assert not dog.stalled("same", 100) and not dog.stalled("same", 109)
    assert dog.stalled("same", 110)
    assert not dog.stalled(None, 111) and not dog.stalled(None, 200)


def test_an_upload_that_moves_is_not_counted() -> None:
    """From the moment when the broker's system has all that was sent by then, or nothing moves any more, it is."""
    moving, silent = Watchdog(10), Watchdog(10)
    for now, uploaded in ((0, 100), (9, 150), (18, 190), (27, 250)):  # whole at 200; the next messages follow
        assert not moving.stalled("same", now, uploaded, 100)
    assert not moving.stalled("same", 36, 300, 100)
    assert moving.stalled("same", 37, 350, 100)
    assert not silent.stalled("same", 0, 100, 100) and not silent.stalled("same", 9, 150, 50)
    assert not silent.stalled("same", 18, 150, 50)
    assert silent.stalled("same", 19, 150, 50)


async def test_one_by_one() -> None:
    """`take_one` gives what `take` does, steps over what is in flight, and comes round."""
    window, delivery = Window(PACKET_ID_MAX), Delivery()
    straggler = window.take_one(delivery, 0)
    while window.take_one(delivery, 1) != PACKET_ID_MAX:
        window.acknowledge(range(straggler + 1, PACKET_ID_MAX))
    window.acknowledge([PACKET_ID_MAX])
    assert [window.take_one(delivery, 2), straggler] == [2, 1]
    assert (len(window), window.free) == (2, PACKET_ID_MAX - 2)
    window.refuse(2, 0x87)
    window.acknowledge([straggler])
    await delivery.settled()
    assert delivery.refused == [(2, 0x87)]


async def test_nothing_is_free_while_somebody_waits() -> None:
    """Who waits for half a window is not kept waiting by single messages."""
    window, delivery = Window(4), Delivery()
    ids = window.take(delivery, 0, 4)
    room = asyncio.ensure_future(window.room(4))
    await asyncio.sleep(0)
    window.acknowledge(ids[:1])
    assert window.free == 0
    window.acknowledge(ids[1:])
    await room
    assert window.free == 4
