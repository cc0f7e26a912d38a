"""Going on with what a server still has of us: the session on a new connection, else its subscriptions in another one.

Part 4, 6.7: ActivateSession with the old session's token on a new secure channel, else TransferSubscriptions
(5.13.7). Every step that a server refuses is one line, and the next one is tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from asyncua import Client, ua
from asyncua.common.shortcuts import Shortcuts

from connectors.opcua_channel import ChannelClient
from connectors.opcua_client import SecureClient
from connectors.opcua_limits import RESPONSE_BYTES_MAX, agree
from connectors.opcua_requests import status_name
from connectors.opcua_reverse import Calls
from connectors.opcua_state import DeviceState, Subscription

SESSION_TIMEOUT_MIN_MS: Final = 30_000

Log = logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True, slots=True)
class KeptSession:
    """What a session needs on its next connection (asyncua 2.1's names)."""

    token: ua.NodeId
    nonce: Any
    policies: Any
    certificate: Any
    timeout_ms: int
    channel: tuple[str, int] | None = None
    """Security policy and mode; a session goes on in a channel of the same ones only."""

    @classmethod
    def of(cls, client: Client) -> KeptSession | None:
        """None where the server has no session of this client."""
        token = client.uaclient.session.authentication_token
        if token.is_null():
            return None
        certificate = client.security_policy.peer_certificate
        return cls(
            token,
            client._server_nonce,
            client._policy_ids,
            certificate,
            int(client.session_timeout),
            channel_of(client),
        )

    @classmethod
    def anonymous(cls, session: tuple[str, str], timeout_ms: int) -> KeptSession:
        """Of a former process."""
        token, policy = session
        policies = [ua.UserTokenPolicy(PolicyId=policy, TokenType=ua.UserTokenType.Anonymous)]
        return cls(ua.NodeId.from_string(token), None, policies, None, timeout_ms)

    def as_anonymous(self) -> tuple[str, str]:
        """What `anonymous` needs."""
        policy = next((one for one in self.policies if one.TokenType == ua.UserTokenType.Anonymous), None)
        return self.token.to_string(), policy.PolicyId if policy is not None else ""


class ResumingClient(SecureClient):
    """A client whose `connect` first tries to go on with a session that the server may still have."""

    def __init__(
        self, url: str, timeout_s: float, kept: KeptSession | None, log: Log, calls: Calls | None = None
    ) -> None:
        super().__init__(url, timeout=timeout_s, watchdog_intervall=5.0)
        self.uaclient = ChannelClient(timeout_s)
        self.uaclient.pre_request_hook = self._wait_until_ready
        self.nodes = Shortcuts(self.uaclient.session)
        self.kept = kept
        """The session to go on with; None when the server has refused it."""
        self._calls = calls  # the server dials, not we
        self._log = log
        self._budget_s = timeout_s
        self.resumed = False
        """It is the old session, with its subscriptions."""
        self.request_bytes_max = 0
        """The server takes no larger requests; 0: any."""

    async def connect_socket(self) -> None:
        """Dials the server, or waits for its call."""
        if self._calls is None:
            await super().connect_socket()
        else:
            await self._calls.connect(self.uaclient)

    async def send_hello(self) -> None:
        """Hello, and what the two sides have agreed on."""
        assert self.uaclient.protocol is not None
        ack = await self.uaclient.send_hello(self.server_url.geturl(), RESPONSE_BYTES_MAX)
        self.request_bytes_max = agree(self.uaclient.protocol, ack)

    async def _create_and_activate_session(self) -> None:
        self.resumed = self.kept is not None and await self._reactivated(self.kept)
        if not self.resumed:
            self.uaclient.session.reset_authentication_token()
            await super()._create_and_activate_session()

    async def _renew_channel_loop(self) -> None:
        """As asyncua's; a channel that cannot be renewed is a lost connection rather than a task that nobody asks."""
        try:
            await super()._renew_channel_loop()
        except (TimeoutError, OSError, ua.UaError) as error:
            if self.connection_lost_callback:
                text = f"the secure channel was not renewed: {reason(error)}"
                await self.connection_lost_callback(ConnectionError(text))

    async def _reactivated(self, kept: KeptSession) -> bool:
        """False where the server does not go on with that session."""
        own = self.security_policy.peer_certificate
        if kept.certificate and own and kept.certificate != own:
            return False
        if kept.channel not in (None, channel_of(self)):  # whoever lists weaker endpoints gains nothing
            return False
        self._server_nonce, self._policy_ids, self.session_timeout = kept.nonce, kept.policies, kept.timeout_ms
        self.security_policy.peer_certificate = kept.certificate
        self.uaclient.session.restore_authentication_token(kept.token)
        try:
            async with asyncio.timeout(self._budget_s):
                await self._activate_with_credentials()
        except (ua.UaError, TimeoutError) as error:
            self._log.info("the session cannot be taken up again: %s", reason(error))
            if isinstance(error, ua.UaError):
                self.kept = None
            self.security_policy.peer_certificate = own
            self._server_nonce = None
            return False
        return True


def channel_of(client: Client) -> tuple[str, int]:
    """Its security policy and mode."""
    return client.security_policy.URI, int(client.security_policy.Mode)


async def server_start(client: Client) -> str:
    """When the server started, as text; empty where it does not say."""
    [value] = await client.uaclient.session.read_attributes(
        [ua.NodeId(ua.Int32(ua.ObjectIds.Server_ServerStatus_StartTime))], ua.AttributeIds.Value
    )
    start = value.Value.Value if value.Value is not None else None
    return start.isoformat() if start is not None else ""


async def transfer(client: Client, state: DeviceState, budget_s: float, log: Log) -> dict[int, Sequence[int]]:
    """Brings the subscriptions of `state` into this session.

    Returns, for each that came, the sequence numbers that the server keeps; of those that did not, one line says why.
    """
    wanted = [one for one in state.subscriptions if one is not None]
    if not wanted:
        return {}
    try:
        async with asyncio.timeout(budget_s):
            results = await client.uaclient.session.transfer_subscriptions(
                ua.TransferSubscriptionsParameters(SubscriptionIds=[one.id for one in wanted], SendInitialValues=False)
            )
    except (ua.UaError, TimeoutError) as error:
        log.info("the server does not hand over subscriptions: %s", reason(error))
        return {}
    taken = dict[int, Sequence[int]]()
    for subscription, result in zip(wanted, results, strict=False):
        if result.StatusCode.is_good():
            taken[subscription.id] = list(result.AvailableSequenceNumbers or ())
        else:
            log.info("subscription %d is not handed over: %s", subscription.id, status_name(result.StatusCode.value))
    return taken


async def delete(client: Client, subscriptions: Sequence[Subscription], budget_s: float, log: Log) -> None:
    """Of another plan: they are no use any more, and a server has room for so many only."""
    if not subscriptions:
        return
    try:
        async with asyncio.timeout(budget_s):
            await client.uaclient.session.delete_subscriptions([one.id for one in subscriptions])
    except (ua.UaError, TimeoutError) as error:
        log.info("the old subscriptions are left to expire: %s", reason(error))


def reason(error: BaseException) -> str:
    """A few words."""
    if isinstance(error, ua.UaStatusCodeError):
        return status_name(error.code)
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
