"""OPC UA source: subscriptions whose notifications become batches, never an object per value.

One read() gives one part (at most `ROWS_MAX` rows) of one notification message, so that a message of 65,000 values does
not hold the event loop. A notification is acknowledged with the PublishRequest that follows its commit.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from asyncua import Client, ua

from connectors.opcua_binary import DecodeError
from connectors.opcua_decode import OVERFLOW_BITS, Columns, PublishResponse, decode_changes, parse_response
from connectors.opcua_items import MonitoredItems
from connectors.opcua_requests import ServiceError, status_name
from connectors.opcua_security import secure
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from connectors.tcp import MACHINE_PATIENCE, notice_dead_peer
from pipelines.batch import Batch, BatchBuilder, Flag, Kind
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent
from pipelines.gaps import Ledger, NoLedger
from pipelines.tags import Tag, TagTable

ROWS_MAX: Final = 1000
"""Rows of one batch: about 0.1 ms of decoding when they are numbers."""
CLOSE_S: Final = 1.0
OUTSTANDING_MIN: Final = 4
SILENCE_KEEP_ALIVES: Final = 3
"""Keep-alive times without any PublishResponse after which the connection counts as dead."""

_Origin: Final = struct.Struct("<III")
_REFUSED: Final = (
    ua.StatusCodes.BadUserAccessDenied,
    ua.StatusCodes.BadIdentityTokenInvalid,
    ua.StatusCodes.BadIdentityTokenRejected,
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadSecurityModeRejected,
    ua.StatusCodes.BadSecurityPolicyRejected,
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadCertificateInvalid,
    ua.StatusCodes.BadApplicationSignatureInvalid,
)
TOO_MANY_PUBLISH_REQUESTS: Final = 0x8078_0000


class OpcUaSource:
    """See `contracts.Source`. Origins are (subscription id, sequence number, part), little-endian u32 each."""

    replayable = True

    def __init__(
        self,
        name: str,
        source_id: int,
        settings: OpcUaDevice,
        tags: TagTable,
        clock: Clock,
        data_dir: Path,
        ledger: Ledger | None = None,
    ) -> None:
        self.name = name
        self._ledger = ledger or NoLedger()
        self.counters = Counters("source", name)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"subject": f"source {name}"})
        self._source_id = source_id
        self._settings = settings
        self._clock = clock
        self._data_dir = data_dir
        self._tag_ids = np.array([tags.add(tag) for tag in _tags(name, settings)], dtype=np.uint32)
        self._number = 0
        self._client: Client | None = None
        self._session: PublishSession | None = None
        self._items: MonitoredItems | None = None
        self._batches: Iterator[Batch] = iter(())
        self._to_arm = 0
        self._unacknowledged: deque[tuple[int, int, int]] = deque()  # batch number, subscription id, sequence number
        self._acks: list[tuple[int, int]] = []
        self._expected: dict[int, int] = {}  # subscription id -> next sequence number

    @property
    def faults(self) -> Mapping[str, str]:
        return self._items.faults if self._items else {}

    async def connect(self, resume: Sequence[bytes]) -> None:
        try:
            await self._open()
        except BaseException as error:
            await self.close()
            mapped = self._mapped(error)
            if mapped is error:
                raise
            raise mapped from error

    async def read(self) -> Batch:
        while True:
            batch = next(self._batches, None)
            if batch is not None:
                return batch
            self._batches = await self._next_batches()

    def commit(self, number: int) -> None:
        while self._unacknowledged and self._unacknowledged[0][0] <= number:
            _, subscription_id, sequence_number = self._unacknowledged.popleft()
            self._acks.append((subscription_id, sequence_number))

    async def close(self) -> None:
        client, self._client = self._client, None
        self._session = None
        self._batches = iter(())
        if client is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await client.disconnect()
        except (TimeoutError, OSError, ua.UaError) as error:
            self._log.debug("the session was not closed in order: %s", error)
        finally:
            client.disconnect_socket()

    async def _open(self) -> None:
        settings = self._settings
        timeout_s = settings.timeout / 1e9
        client = self._client = Client(settings.opcua, timeout=timeout_s, watchdog_intervall=5.0)
        client.name = client.description = "mec-gateway"
        if settings.auth:
            client.set_user(settings.auth.user)
            client.set_password(settings.auth.password.get_secret_value())
        if settings.security == "best":
            await secure(client, self._data_dir)
        session = self._session = PublishSession(client.uaclient, self._clock, timeout_s)
        client.uaclient.session = session
        client.connection_lost_callback = self._connection_lost
        await client.connect()
        if (protocol := client.uaclient.protocol) and protocol.transport:
            notice_dead_peer(protocol.transport.get_extra_info("socket"), MACHINE_PATIENCE * settings.timeout)
        # A server may answer 0; asyncua's watchdog would then give its probe no time at all.
        client.session_timeout = max(client.session_timeout, 30_000)
        self._items = MonitoredItems(session, settings, self._clock, self._log)
        await self._items.create(client)
        self._expected = dict.fromkeys(self._items.subscription_ids, 1)
        self._acks.clear()
        self._unacknowledged.clear()
        self._batches = iter(self._bad_rows())
        self._to_arm = max(OUTSTANDING_MIN, 2 * len(self._expected))
        self._arm()

    async def _connection_lost(self, error: Exception) -> None:
        if self._session:
            self._session.lose(f"{self._settings.opcua}: the connection was lost: {error}")

    async def _next_batches(self) -> Iterator[Batch]:
        """The parts of the next notification, or the rows of tags whose state has changed."""
        if self._session is None or self._items is None:
            raise NotConnected(f"{self._settings.opcua}: not connected")
        self._arm()
        retry_s = self._items.retry_in_s()
        wait_s = self._items.keep_alive_s * SILENCE_KEEP_ALIVES
        try:
            async with asyncio.timeout(wait_s if retry_s is None else min(wait_s, retry_s)):
                body = await self._session.response()
        except TimeoutError:
            if retry_s is None or retry_s > wait_s:
                reason = f"{self._settings.opcua}: no publish response for {wait_s:.0f} s"
                raise NotConnected(reason) from None
            await self._items.retry()
            return iter(self._bad_rows())
        self._to_arm += 1
        return self._open_response(body)

    def _open_response(self, body: bytes) -> Iterator[Batch]:
        try:
            response = parse_response(body)
        except DecodeError as error:
            self.counters.add("undecodable")
            raise NotConnected(f"{self._settings.opcua}: invalid PublishResponse: {error}") from error
        if response.result & 0x8000_0000:
            self._refused(response.result)
            return iter(())
        if response.status_change is not None:
            state = status_name(response.status_change)
            raise NotConnected(
                f"{self._settings.opcua}: the server ended subscription {response.subscription_id}: {state}"
            )
        self._check_sequence(response)
        self.counters.add("unread_notifications", response.skipped)
        if not response.rows:
            return iter(())
        return self._parts(body, response)

    def _refused(self, status: int) -> None:
        if status & 0xFFFF_0000 == TOO_MANY_PUBLISH_REQUESTS:
            self._to_arm -= 1
            return
        raise NotConnected(f"{self._settings.opcua}: publishing ended: {status_name(status)}")

    def _check_sequence(self, response: PublishResponse) -> None:
        """Notifications are numbered 1, 2, ... 2^32 - 1, 1, ... per subscription; a keep-alive carries the next one."""
        expected = self._expected.get(response.subscription_id)
        number = response.sequence_number
        if expected is not None and number != expected:
            self.counters.add("missed_notifications", max(number - expected, 1))
            id_ = response.subscription_id
            self._log.warning("subscription %d skipped from notification %d to %d", id_, expected, number)
        self._expected[response.subscription_id] = number % 0xFFFF_FFFF + 1 if response.rows else number

    def _parts(self, body: bytes, response: PublishResponse) -> Iterator[Batch]:
        arrival_ns = self._clock.wall_ns()
        left = response.rows
        part = 0
        try:
            for columns in decode_changes(body, response, arrival_ns, ROWS_MAX):
                left -= len(columns.handle)
                origin = _Origin.pack(response.subscription_id, response.sequence_number, part)
                part += 1
                batch = self._batch(columns, arrival_ns, origin)
                if not left:
                    self._unacknowledged.append((batch.number, response.subscription_id, response.sequence_number))
                yield batch
        except DecodeError as error:
            self.counters.add("undecodable")
            raise NotConnected(f"{self._settings.opcua}: invalid notification: {error}") from error

    def _batch(self, columns: Columns, arrival_ns: int, origin: bytes) -> Batch:
        handle = columns.handle
        if int(handle.max()) >= len(self._tag_ids):
            raise DecodeError(f"client handle {int(handle.max())} was never given to the server")
        overflows = int(np.count_nonzero((columns.status & OVERFLOW_BITS) == OVERFLOW_BITS))
        if overflows:
            self.counters.add("queue_overflows", overflows)
        self._number += 1
        return Batch(
            source_id=self._source_id,
            number=self._number,
            origin=origin,
            received_ns=arrival_ns,
            tag=self._tag_ids[handle],
            ts_ns=columns.ts_ns,
            value=columns.value,
            status=columns.status,
            kind=columns.kind,
            flags=columns.flags,
            extra=columns.extra or None,
            clock=self._clock.state,
        )

    def _bad_rows(self) -> list[Batch]:
        """One row for each tag that has just turned out bad: its status, no value."""
        assert self._items is not None
        builder = BatchBuilder()
        now = self._clock.wall_ns()
        for index, status in self._items.take_changed():
            builder.add(int(self._tag_ids[index]), now, None, Kind.NULL, status, Flag.ARRIVAL_TIME)
        if not len(builder):
            return []
        self._number += 1
        return [builder.build(self._source_id, self._number, now, clock=self._clock.state)]

    def _arm(self) -> None:
        """Sends the PublishRequests that are due; what may be acknowledged goes with the first."""
        assert self._session is not None
        for _ in range(self._to_arm):
            acks, self._acks = self._acks, []
            self._session.arm(acks)
        self._to_arm = 0

    def _mapped(self, error: BaseException) -> BaseException:
        """What connecting raised, as the contract names it."""
        url = self._settings.opcua
        if isinstance(error, Permanent | NotConnected):
            return type(error)(f"{url}: {error}")
        if isinstance(error, ua.UaStatusCodeError):
            name = status_name(error.code)
            if error.code in _REFUSED:
                return Permanent(f"{url}: the server refuses this gateway: {name}; check auth and security")
            return NotConnected(f"{url}: {name}")
        if isinstance(error, TimeoutError):
            return NotConnected(f"{url}: no answer within {self._settings.timeout / 1e9:g} s")
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
            return NotConnected(f"{url}: {reason}; is the machine on, are address and port right?")
        if isinstance(error, ServiceError | DecodeError | ua.UaError):
            return NotConnected(f"{url}: {error}")
        return error


def _tags(device: str, settings: OpcUaDevice) -> list[Tag]:
    return [
        Tag(device, name, unit=tag.unit, scale=tag.scale, offset=tag.offset, deadband=tag.deadband)
        for name, tag in settings.tags.items()
    ]
