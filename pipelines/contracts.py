"""The four contracts. Their prose lives here and only here.

A **source** is read, **stages** are plain functions, a **lane** holds batches, a **sink** is written. Acknowledgements
are returns: `append` returned, so the lane has it; `sync` returned, so the disk has it; `write` returned, so the broker
has it. Then, and only then, `commit` goes back one step: the span in the lane after `write`, the machine's notification
after `sync`. The lane is the only retry queue: a failed write ends the pump, and the next pump reads again what was not
committed. Connectors have no reconnect loop of their own; they raise what `pipelines.errors` names and the supervisor
acts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from pipelines.batch import Batch
from pipelines.counters import Counters


class Part(Enum):
    """Which batches of a lane a reader is for."""

    ALL = "all"
    """Everything pending, in order."""
    LIVE = "live"
    """What is appended after the reader's last `rewind` (or since its creation)."""
    BACKLOG = "backlog"
    """Everything pending that is not LIVE."""


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets [start, end) of a lane: consecutive batches that were read together."""

    start: int
    end: int


class Source(Protocol):
    """A machine. Its constructor does no I/O; it adds its tags to the TagTable."""

    name: str
    replayable: bool
    """The far side keeps what was not acknowledged (`commit`) and sends it again."""
    counters: Counters

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one clear line, for each tag that cannot be read now while the others can."""

    @property
    def info(self) -> str:
        """One line for people: how the present session came about, what goes on in it; may be empty."""

    async def connect(self, resume: Sequence[bytes]) -> None:
        """Makes ready for `read`; `resume` holds each durable lane's newest origin (b"": none).

        Raises NotConnected or Permanent. May be called again after `close`. Cancelled in the middle it leaves nothing
        open behind.
        """

    async def read(self) -> Batch:
        """Waits for the next batch; called again only when every lane holds the previous one. Raises NotConnected."""

    def commit(self, number: int) -> None:
        """Every batch up to and with `number` is safe in each durable lane and may be acknowledged. Idempotent."""

    async def close(self) -> None:
        """Idempotent, allowed before `connect`, bounded in time, leaves nothing running."""


class Stage(Protocol):
    """One step between source and lane. Deterministic; may keep state; never awaits."""

    def process(self, batch: Batch) -> Batch | None:
        """A new batch (columns may be shared), the same one, or None when no row is left."""


class Reader(Protocol):
    """One consumer's way through a lane."""

    @property
    def unread(self) -> bool:
        """There is something that `read` gives without another append."""

    async def wait(self) -> None:
        """Returns as soon as something is `unread`; takes nothing."""

    async def read(self, rows_max: int) -> tuple[Span, Sequence[Batch]]:
        """The next unread batches of one interval: what is there, up to `rows_max` rows, but at least one batch. Waits
        while there is nothing; cancelled meanwhile, it has taken nothing."""

    def commit(self, span: Span) -> None:
        """Delivered: never read again. In any order; idempotent."""

    def rewind(self) -> None:
        """All of this part that is not committed is unread again; what another reader has in hand stays its own.

        What was LIVE becomes BACKLOG.
        """


class Lane(Protocol):
    """A bounded queue between stages and sink; several readers see each batch once, together."""

    name: str
    """The stream's name in what is sent; (gateway, stream, seq) is the consumer's key against duplicates."""
    durable: bool
    """`sync` puts what was appended on disk."""
    counters: Counters

    @property
    def pending_rows(self) -> int:
        """Rows appended and neither committed nor dropped."""

    @property
    def pending_bytes(self) -> int:
        """What they take, in memory or on disk."""

    @property
    def oldest_ns(self) -> int | None:
        """Wall clock when the oldest pending batch arrived; None where nothing is pending."""

    def origin(self, source: str) -> bytes | None:
        """The newest origin that the lane has of a source, by its name; survives what the lane survives."""

    async def append(self, batch: Batch) -> None:
        """Returned: the lane has it, numbered with a `seq`.

        A full lane acts on its policy and counts what it drops; what a reader has in hand is not dropped. A dropped
        batch has used up its number, so that a consumer sees the gap.
        """

    async def sync(self) -> None:
        """Returned: everything appended before the call is on disk (a memory lane returns at once)."""

    def reader(self, part: Part, synced: bool = False) -> Reader:
        """A reader, as after `rewind`; ALL stands alone, LIVE and BACKLOG beside each other, one at a time of each.

        `synced`: it gives what is on disk only (of a memory lane: all). For a sink that keeps positions: what a power
        cut takes, the machine sends again, and it comes back under another seq.
        """

    def position(self, span: Span | None = None) -> bytes:
        """What is still pending, once `span` is delivered. What is appended later is pending by itself."""

    def restore(self, position: bytes) -> None:
        """The far side knows better what is pending. A foreign lane's position is not believed (raises Corrupt)."""

    async def close(self) -> None:
        """Idempotent."""


class Sink(Protocol):
    """A session to a destination, shared by the lanes that it serves. Its constructor does no I/O."""

    name: str
    in_flight_max: int
    """Writes that may be outstanding at a time."""
    keeps_positions: bool
    """`write` stores the position with the rows, and `connect` returns it. Else it is given an empty one."""
    counters: Counters

    @property
    def server(self) -> str:
        """Address in use now; empty while there is no connection, and where the far side has no such thing."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Address -> one clear line, for each server that would be used before the present one, if it worked."""

    async def connect(self) -> Mapping[str, bytes]:
        """Lane name -> position where the far side keeps it, else empty. Raises NotConnected or Permanent.

        May be called again after `close`. Cancelled in the middle it leaves nothing open behind.
        """

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        """Returned: the broker has acknowledged every row. Writes started one after the other are sent in that order,
        but that live data may overtake what is `historical`: the lane's backlog, written behind it.

        Raises NotConnected, Transient, Permanent (nothing of the write may be taken as delivered), or Rejected (all
        rows but the named ones were delivered).
        """

    async def wait_closed(self) -> None:
        """Returns or raises NotConnected as soon as the session has ended, also while nothing is written.

        A sink does here what it does beside writes: it waits to be called, once per session, for as long as it lasts.
        """

    async def close(self) -> None:
        """Idempotent, allowed before `connect`, bounded in time, leaves nothing running."""


@runtime_checkable
class Announcer(Protocol):
    """A sink with a place for what the gateway says about itself."""

    def announce(self, kind: str, message: Mapping[str, Any]) -> None:
        """`status` replaces the one before; any other kind is a notice, kept (bounded) until it could be sent.

        Never waits, never raises; allowed at any time.
        """


@runtime_checkable
class OverPaths(Protocol):
    """A sink that may reach its far side by several ways."""

    @property
    def info(self) -> str:
        """One line for people about them; may be empty."""

    @property
    def path_counters(self) -> Sequence[Counters]:
        """Of each of them."""


# --- Cut-through ----------------------------------------------------------------------------------------------------
# What a connector or a lane may have besides, so that a batch that finds its route idle gets all the way in the step in
# which its bytes arrive. What these do not take goes the way of every batch, and in order.


@runtime_checkable
class CutThroughSource(Protocol):
    """A source that shows a batch before `read` returns it."""

    def show(self, ahead: Callable[[Batch], None] | None) -> None:
        """From now on `ahead` may be given, in the step of its arrival, what the waiting `read` returns next, and what
        those after it return, in order; None: nobody is shown anything. Nothing is missing for whom `read` alone is
        enough."""


@runtime_checkable
class CutThroughLane(Lane, Protocol):
    """A lane whose `append` never waits."""

    def put(self, batch: Batch) -> None:
        """`append`, and whoever is asked (`CutThroughReader.hand_over`) has been when this returns."""


@runtime_checkable
class CutThroughReader(Reader, Protocol):
    """A reader that can hand over a batch in the step of its append."""

    def hand_over(self, take: Callable[[int, Batch], bool] | None) -> None:
        """From now on `take` is asked about each batch that is appended while nothing else is unread, with its offset.

        True: it is in the caller's hand, as after `read`. None: nobody is asked. One of all readers of the lane.
        """


Acknowledged = Callable[[], Awaitable[None]]
"""To be called once; returns or raises what `Sink.write` would have."""


@runtime_checkable
class CutThroughSink(Protocol):
    """A sink that can send without waiting."""

    sent_max: int
    """What was sent in this way and is not acknowledged: so many at a time."""

    def send(self, lane: str, batch: Batch) -> Acknowledged | None:
        """Sent, behind everything that was sent before; or None, and nothing was: `write` is the way now.

        Nothing of the same lane may be in a `write` meanwhile.
        """
