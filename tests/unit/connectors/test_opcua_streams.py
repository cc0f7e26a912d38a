"""The numbering of subscriptions: what is asked for again, what is lost, what may be acknowledged."""

from __future__ import annotations

from connectors.opcua_response import DataChange, PublishResponse
from connectors.opcua_state import Subscription
from connectors.opcua_streams import LATE_MAX, Step, Streams
from pipelines.origin import LAST_PART, SEQUENCES, Entry, entries

ID, STREAM = 7, 1_000


def subscription(id_: int = ID, stream: int = STREAM) -> Subscription:
    return Subscription(id_, stream, 100.0, 50, 1200, [])


def begun(*resume: bytes) -> Streams:
    streams = Streams()
    streams.begin([subscription()], resume)
    return streams


def data(number: int, *available: int) -> PublishResponse:
    return PublishResponse(0, ID, number, available, changes=[DataChange(0, 0, 1)])


def held(number: int, part: int = LAST_PART) -> bytes:
    return begun().origin(ID, number, part, 5)


def test_what_comes_in_order_needs_nothing() -> None:
    """Data takes a number, a keep-alive announces the next one."""
    streams = begun()
    assert [streams.step(data(n)) for n in (1, 2)] == [Step(), Step()]
    assert streams.step(PublishResponse(0, ID, 3)) == Step() == streams.step(data(3))


def test_a_hole_is_asked_for_as_far_as_the_server_has_it() -> None:
    """Two of three missing ones are available; the response is given again once they were asked for."""
    streams = begun()
    streams.step(data(1))
    assert streams.step(data(5, 3, 4, 5)) == Step(ask=[3, 4], lost=1)
    assert streams.step(data(5, 3, 4, 5)) == Step()
    assert streams.step(data(6)) == Step()


def test_the_numbers_wrap() -> None:
    """2^32 - 1 is followed by 1, also in a hole."""
    streams = begun(held(SEQUENCES - 1))
    assert streams.step(data(2, 1, SEQUENCES, 2)) == Step(ask=[SEQUENCES, 1])


def test_late_and_foreign_numbers() -> None:
    """A little behind: it overtook another and was asked for; far behind, or of nobody: not ours."""
    streams = begun(held(5 * LATE_MAX))
    streams.step(data(5 * LATE_MAX + 1))
    assert streams.step(data(5 * LATE_MAX)) == Step(late=True)
    assert streams.step(data(3)) == Step(foreign=True)
    assert streams.step(PublishResponse(0, ID + 1, 1)) == Step(foreign=True)


def test_after_a_takeover_only_what_a_lane_lacks_is_asked_for() -> None:
    """What every durable lane has entirely is acknowledged at once; a part of a notification is not all of it."""
    streams = begun(held(4), held(6, part=0))
    assert streams.resume(ID, [], [4, 5, 6, 7]) == Step(ask=[5, 6, 7])
    assert streams.take_acks() == [(ID, 4)]
    assert streams.step(data(8)) == Step()


def test_what_fell_out_of_the_servers_queue_while_we_were_away_is_lost() -> None:
    """The lanes end at 4, the server begins with 7."""
    assert begun(held(4)).resume(ID, [], [7, 8]) == Step(ask=[7, 8], lost=2)


def test_in_one_process_what_was_not_acknowledged_is_asked_for_again() -> None:
    """After a reactivation the server says nothing of itself: what this process knows is asked for."""
    streams = begun()
    for number in (1, 2, 3):
        streams.step(data(number))
        streams.delivered(10 + number, ID, number)
    streams.commit(11)
    pending = streams.begin([subscription()], [])
    assert pending == {ID: [2, 3]} and streams.take_acks() == [(ID, 1)]
    assert streams.resume(ID, pending[ID], None) == Step(ask=[2, 3])
    assert streams.step(data(4)) == Step()


def test_what_was_asked_for_and_not_answered_is_asked_for_again() -> None:
    """The session ends between the takeover and the last answer: the next one has it in mind, listed or not."""
    streams = begun(held(1))
    assert streams.resume(ID, [], [2, 3, 4]) == Step(ask=[2, 3, 4])
    streams.answered(ID, 2, has=True)
    streams.delivered(1, ID, 2)
    again = streams.begin([subscription()], [held(1)])
    assert again == {ID: [3, 4, 2]}
    assert streams.resume(ID, again[ID], None) == Step(ask=[2, 3, 4])
    for number in (2, 3, 4):
        streams.answered(ID, number, has=False)
    assert streams.begin([subscription()], [held(4)]) == {}


def test_what_was_read_in_part_is_asked_for_again() -> None:
    """A session that ends between the parts of a message, or before the first one, may be reactivated: then nobody
    lists what the server keeps."""
    streams = begun()
    streams.step(data(1))
    streams.delivered(1, ID, 1)
    streams.step(data(2))
    pending = streams.begin([subscription()], [])
    assert pending == {ID: [1, 2]} and streams.resume(ID, pending[ID], None) == Step(ask=[1, 2])
    for number in pending[ID]:
        streams.answered(ID, number, has=True)
        streams.acknowledge(ID, number)
    assert streams.begin([subscription()], []) == {}


def test_what_cannot_be_read_is_asked_for_once_more() -> None:
    """Damaged on its way it is whole the next time; else it is acknowledged, so that no session ends by it again."""
    streams = begun()
    streams.step(data(1))
    assert streams.unreadable() is None
    pending = streams.begin([subscription()], [])
    assert streams.resume(ID, pending[ID], None) == Step(ask=[1])
    streams.answered(ID, 1, has=True)
    assert streams.unreadable() == ID
    assert streams.begin([subscription()], []) == {}
    assert not streams.resume(ID, [], [1]).ask and streams.take_acks() == [(ID, 1)]


def test_a_recreated_subscription_with_the_same_id_begins_anew() -> None:
    """The server was restarted and gave the id again: nothing of the old stream is acknowledged, skipped or missed."""
    streams = begun()
    streams.step(data(1))
    streams.delivered(1, ID, 1)
    streams.commit(1)
    assert streams.begin([subscription(stream=STREAM + 1)], [held(1)]) == {}
    assert streams.take_acks() == [] and streams.step(data(1)) == Step()
    assert [entry.stream for entry in entries(streams.origin(ID, 1, LAST_PART, 9))] == [STREAM + 1]


def test_origins_hold_every_stream_and_the_newest_time() -> None:
    """The batch's own stream first; the time never goes back."""
    streams = Streams()
    streams.begin([subscription(), subscription(8, STREAM + 1)], [])
    streams.origin(ID, 1, LAST_PART, 50)
    origin = streams.origin(8, 1, 0, 40)
    assert list(entries(origin)) == [Entry(STREAM + 1, 1, 0, 40), Entry(STREAM, 1, LAST_PART, 50)]
    assert next(entries(streams.origin(ID, 2, 0, 45))).ts_ns == 50 and streams.newest_ns == 50


def test_a_session_that_another_process_takes_up_is_asked_for_what_its_first_response_lists() -> None:
    """Nothing was listed at the takeover: what some lane lacks, of the hole and before it, comes first."""
    streams = begun(held(4), held(6))
    assert not streams.resume(ID, [], None).ask
    assert streams.step(data(9, 4, 5, 6, 7, 8, 9)) == Step(ask=[5, 6, 7, 8])
    assert streams.step(data(9, 5, 6, 7, 8, 9)) == Step()
    empty = begun()
    empty.resume(ID, [], None)
    assert empty.step(data(3, 1, 2, 3)) == Step(ask=[1, 2])
