"""What a device has of its line: `connect`, then `read`, also several at a time, then `close`.

There is no reconnect loop: a wire that is spent is dialled anew once, by the line; what cannot be repaired so is
NotConnected, and the supervisor's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from connectors.modbus_frames import BAD_CONNECTION_CLOSED, Query, Reply, RequestFailed
from connectors.modbus_line import Line, line_for
from connectors.modbus_url import Manners, ModbusUrl
from connectors.modbus_wire import Arrived, Exchange, without_values
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent

ALONE = Manners()
_GREETED = ("rtu", "udp", "tls")
"""A port opens and a datagram is sent whoever is there; with TLS 1.3 a certificate is refused after the handshake."""
_NO_CERTIFICATE = "; most devices want a certificate of the gateway that they know: set tls: {cert: FILE, key: FILE}"


class ModbusLink:
    """Counts requests, timeouts, exceptions, bad_replies, stale_replies, received_bytes."""

    def __init__(
        self, url: ModbusUrl, timeout_ns: int, clock: Clock, counters: Counters, manners: Manners = ALONE
    ) -> None:
        self.lost = "not connected"
        """Why nothing is read until the next `connect`; empty while all is well."""
        self._url = url
        self._timeout_s = timeout_ns / 1e9
        self._clock = clock
        self._counters = counters
        self._manners = manners
        self._line: Line | None = None
        self._exchanges: set[Exchange] = set()
        """Under way: a write may come in between the requests of a poll cycle."""

    async def connect(self, first: Sequence[Query] = ()) -> None:
        """Dials once, or joins the line that others have. Raises NotConnected, Permanent.

        Where that says nothing of the device it is sent `first`, one read of its own. Cancelled in the middle it leaves
        nothing open.
        """
        await self.close()
        try:
            line = self._line = self._line or line_for(self._url, self._manners)
            await line.join(self, self._url, self._manners, self._timeout_s, self._clock, self._counters)
            self.lost = ""
            if first and self._url.scheme in _GREETED:
                await self._greet(first[:1])
        except NotConnected as error:
            raise NotConnected(await self._give_back(str(error))) from error
        except Permanent as error:
            raise Permanent(await self._give_back(str(error))) from error

    async def read(self, queries: Sequence[Query], before_ns: int = 0, arrived: Arrived | None = None) -> list[Reply]:
        """A reply to each. What has no values has a `failure`: BAD_CONNECTION_CLOSED, with `lost` as its reason, where
        the connection was lost. `before_ns`, on the monotonic clock: on a shared line the earliest goes first."""
        exchange = Exchange(queries, self._timeout_s, before_ns, self._counters, arrived)
        if not self.lost and self._line:
            self._exchanges.add(exchange)
            try:
                await self._line.run(exchange, self._clock)
            except (NotConnected, Permanent) as error:
                self.give_up(str(error))
            finally:
                self._exchanges.discard(exchange)
        replies = exchange.replies
        if exchange.missing:
            failure = RequestFailed(BAD_CONNECTION_CLOSED, self.lost)
            return [
                reply or without_values(query, self._clock, failure)
                for query, reply in zip(queries, replies, strict=True)
            ]
        return replies  # type: ignore[return-value]  # none is missing

    def adjust(self, timeout_ns: int, manners: Manners) -> None:
        """From the next request on, but for who shares the line."""
        self._timeout_s = timeout_ns / 1e9
        self._manners = manners
        if self._line:
            self._line.adjust(self, manners)

    def give_up(self, reason: str) -> str:
        """Nothing is read until the next `connect`, because of `reason`; returns `lost`."""
        self.lost = f"modbus {self._url}: {reason}"
        return self.lost

    async def close(self) -> None:
        """Idempotent; returns when the connection is gone, or only others use it. A `read` that is under way ends as
        when it is lost."""
        self.lost = self.lost or "not connected"
        for exchange in self._exchanges:
            exchange.drop()
        if self._line:
            await self._line.leave(self)

    async def _greet(self, first: Sequence[Query]) -> None:
        [reply] = await self.read(first)
        if self.lost:
            hint = _NO_CERTIFICATE if self._url.scheme == "tls" else ""
            raise NotConnected(self.lost.removeprefix(f"modbus {self._url}: ") + hint)
        if reply.failure and not reply.failure.exception_code:
            raise NotConnected(reply.failure.reason)

    async def _give_back(self, reason: str) -> str:
        await self.close()
        return self.give_up(reason)
