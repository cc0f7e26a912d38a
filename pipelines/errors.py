"""The errors of the contracts. Each connector maps its library's errors to these, once, at its border."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GatewayError(Exception):
    """Base of every error that a contract names; its text is one clear line: what, where, what to do."""


class NotConnected(GatewayError):
    """The far side is not there or went away: reconnect with back-off."""


class Transient(GatewayError):
    """The far side cannot take this now: back off for `retry_after_s`, rewind, write again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(GatewayError):
    """These rows will never be taken, all others of the same write were delivered.

    `rows` are (index of the batch in the write, row in that batch), so that a dead letter names each one.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], reason: str) -> None:
        super().__init__(f"{len(rows)} rows rejected: {reason}")
        self.rows = rows
        self.reason = reason


class Permanent(GatewayError):
    """Trying again as it is cannot help (credentials, certificate, protocol version): faulted, tried again slowly.

    `cured` is asked about once a second meanwhile and must be cheap: True, and it is tried again at once.
    """

    def __init__(self, message: str, cured: Callable[[], bool] | None = None) -> None:
        super().__init__(message)
        self.cured = cured


class Corrupt(GatewayError):
    """Stored or received bytes fail their own checks: counted, set aside, reading goes on behind them."""


class Poisoned(GatewayError):
    """Storage failed in a way that makes further writes unsafe (a failed fsync): the process ends with code 3."""
