"""Parts of a call: the smallest limit wins, and what is refused for its size is halved and remembered."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from asyncua import ua

from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import ServiceError

CODES = ua.StatusCodes


def limits() -> Limits:
    return Limits(logging.LoggerAdapter(logging.getLogger("test"), {}))


class Server:
    """Takes `at_most` operations a call and answers each with its double."""

    def __init__(self, at_most: int, status: int = CODES.BadTooManyOperations) -> None:
        self.at_most, self.status = at_most, status
        self.calls: list[int] = []

    async def call(self, part: Sequence[int]) -> list[int]:
        self.calls.append(len(part))
        if len(part) > self.at_most:
            raise ServiceError(self.status)
        return [2 * item for item in part]


@pytest.mark.parametrize(
    "status", [CODES.BadTooManyOperations, CODES.BadEncodingLimitsExceeded, CODES.BadRequestTooLarge]
)
async def test_a_call_that_is_too_large_is_halved_until_it_fits_and_the_half_remembered(status: int) -> None:
    """No stated limit, 300 taken: 1000, 500, then 250 for ever; every item has its own result."""
    one, server = limits(), Server(300, status)
    assert await one.in_parts(Service.READ, range(1000), server.call) == [2 * item for item in range(1000)]
    assert server.calls == [1000, 500, 250, 250, 250, 250]
    server.calls.clear()
    await one.in_parts(Service.READ, range(600), server.call)
    assert server.calls == [250, 250, 100]
    assert one.size(Service.WRITE) == Service.WRITE.default  # of that service only


async def test_another_refusal_is_no_matter_of_size() -> None:
    """It is raised, and nothing is remembered; so is the refusal of a single operation."""
    one = limits()
    with pytest.raises(ServiceError, match="BadUserAccessDenied"):
        await one.in_parts(Service.READ, range(10), Server(1, CODES.BadUserAccessDenied).call)
    assert one.size(Service.READ) == 1000
    with pytest.raises(ServiceError, match="BadTooManyOperations"):
        await one.in_parts(Service.READ, range(10), Server(0).call)


async def test_a_message_that_cost_the_connection_is_smaller_the_next_time() -> None:
    """BadTcpMessageTooLarge closes the connection: raised, and remembered for the next one."""
    one = limits()
    with pytest.raises(ServiceError):
        await one.in_parts(Service.MONITORED_ITEMS, range(100), Server(60, CODES.BadTcpMessageTooLarge).call)
    assert one.size(Service.MONITORED_ITEMS) == 50


def test_what_is_known_of_the_product_counts_where_it_is_less() -> None:
    one = limits()
    one.know({"read": 100, "browse": 5000, "items_per_subscription": 700})
    assert (one.size(Service.READ), one.size(Service.BROWSE)) == (100, Service.BROWSE.default)
    assert one.items_per_subscription == 700 and one.subscriptions_per_session is None
