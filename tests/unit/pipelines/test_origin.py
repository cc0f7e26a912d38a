"""Origin vectors: what a lane has of a machine's streams, whatever the order in which they interleave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.origin import (
    LAST_PART,
    SEQUENCES,
    Entry,
    Mark,
    Vector,
    covers,
    distance,
    entries,
    following,
    is_after,
    merged,
    newest,
)

sequences = st.integers(1, SEQUENCES)
parts = st.integers(0, 3) | st.just(LAST_PART)


def vector(**streams: int) -> bytes:
    """a=3, b=7: streams 1 and 2 up to the end of notifications 3 and 7; the last one named is the batch's own."""
    made = Vector([])
    packed = b""
    for name, sequence in streams.items():
        packed = made.after(ord(name) - ord("a") + 1, sequence, LAST_PART, 0)
    return packed


def places(origin: bytes | None) -> dict[int, int]:
    return {entry.stream: entry.sequence for entry in entries(origin)}


@given(sequences, st.integers(0, 1000))
def test_sequence_numbers_wrap_to_one(start: int, steps: int) -> None:
    """2^32 - 1 is followed by 1 (Part 4, 5.13.1.1), and what comes behind the wrap is later."""
    end = start
    for _ in range(steps):
        end = following(end)
    assert 1 <= end <= SEQUENCES and distance(start, end) == steps
    later, earlier = Entry(1, end, 0, 0), Entry(1, start, LAST_PART, 0)
    assert is_after(later, earlier) == (steps > 0) and is_after(earlier, later) == (steps == 0)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=60), st.integers(0, 60), sequences)
def test_a_lane_has_what_was_offered_and_nothing_else(steps: list[tuple[int, int]], taken: int, first: int) -> None:
    """Streams interleave, notifications have parts: what was offered before a crash is covered, the rest is not."""
    made, next_ = Vector([]), dict.fromkeys(range(1, 5), first)
    origins = []
    for stream, count in steps:
        for part in range(count):
            origins.append(made.after(stream, next_[stream], part if part < count - 1 else LAST_PART, 0))
        next_[stream] = following(next_[stream])
    held = origins[min(taken, len(origins)) - 1] if min(taken, len(origins)) else None
    assert [covers(held, origin) for origin in origins] == [i < taken for i in range(len(origins))]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 1)), max_size=80), st.data())
def test_lanes_that_differ_get_each_batch_once_over_any_number_of_crashes(
    notifications: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Two lanes, of which each loses a tail of its own in a crash; then all that one lacks is sent again, stream by
    stream. Nothing is missing and nothing there twice, in either."""
    sent: list[tuple[int, int]] = []
    counts = dict.fromkeys((1, 2, 3), 0)
    lanes: list[list[tuple[tuple[int, int], bytes]]] = [[], []]
    marks = [Mark(), Mark()]
    made = Vector([])

    def offer(batch: tuple[int, int]) -> None:
        origin = made.after(batch[0], batch[1], LAST_PART, 0)
        for lane, mark in zip(lanes, marks, strict=True):
            if not mark.has(origin):
                ahead = mark.ahead(origin)
                assert ahead is not None
                lane.append((batch, ahead))
                mark.took(ahead)

    for stream, crash in notifications:
        counts[stream] += 1
        sent.append((stream, counts[stream]))
        offer(sent[-1])
        if crash:
            for lane in lanes:
                del lane[data.draw(st.integers(0, len(lane))) :]
            marks = [Mark(), Mark()]
            for lane, mark in zip(lanes, marks, strict=True):
                mark.rewind(lane[-1][1] if lane else None)
            made = Vector([Entry(stream, 0, 0, 0) for stream in counts])
            for again in sorted(sent):
                offer(again)
    for lane in lanes:
        assert sorted(batch for batch, _ in lane) == sorted(sent)


def test_a_stream_that_is_gone_leaves_the_vector() -> None:
    """A recreated subscription has a new stream: the old one's entry does not travel on for ever."""
    assert places(merged(vector(a=7, b=9), vector(b=8, c=1))) == {3: 1, 2: 9}


def test_what_is_no_vector_holds_nothing() -> None:
    """Origins of another source or of an older gateway skip nothing and are stored as they are."""
    for odd in (None, b"", b"o", bytes(12)):
        assert not covers(odd, vector(a=1)) and not covers(vector(a=1), odd) and not list(entries(odd))
    assert merged(vector(a=1), b"o") == b"o"
    mark = Mark()
    mark.rewind(b"o")
    assert not mark.has(b"o") and mark.ahead(b"o") == b"o" and mark.ahead(None) is None


def test_another_life_of_the_same_subscription_id_is_another_stream() -> None:
    """A restarted server counts from 1 again: the new stream's batches are all new."""
    assert not covers(vector(a=500), vector(b=1))


def test_within_a_session_nothing_is_skipped_that_the_lane_has_not() -> None:
    """What was cancelled on its way into the lane was not taken, so it is offered again; what was taken is not."""
    mark = Mark()
    mark.took(mark.ahead(vector(a=1)))
    mark.ahead(vector(a=2))  # cancelled here
    assert not mark.has(vector(a=1))  # the session goes on: the source does not repeat itself
    mark.rewind(None)
    assert mark.has(vector(a=1)) and not mark.has(vector(a=2))


def test_newest_takes_each_stream_where_any_lane_is_farthest() -> None:
    """Places per stream, and the newest time, whichever lane has it."""
    one = Vector([]).after(1, 5, 0, 100)
    two = Vector([]).after(1, 4, 0, 200)
    assert newest([one, None, two, vector(b=3)]) == {1: Entry(1, 5, 0, 200), 2: Entry(2, 3, LAST_PART, 0)}
