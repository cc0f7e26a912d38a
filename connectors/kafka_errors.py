"""aiokafka's and the sockets' errors -> the gateway's, in one clear line. The only place that does it for Kafka."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

from aiokafka import errors

from pipelines.errors import GatewayError, NotConnected, Permanent

_PERMANENT: dict[type[BaseException], str] = {
    errors.SaslAuthenticationFailed: "user or password refused",
    errors.AuthenticationFailedError: "user or password refused",
    errors.UnsupportedSaslMechanismError: "the broker does not offer this auth.mechanism",
    errors.IllegalSaslStateError: "the broker's listener does not expect `auth`",
    errors.TopicAuthorizationFailedError: "the user may not use the topic (ACL: WRITE, DESCRIBE; position_topic: READ)",
    errors.TransactionalIdAuthorizationFailed: "the user may not use the transactional id (ACL: WRITE, DESCRIBE)",
    errors.InvalidTransactionTimeout: "request_timeout is longer than the brokers allow (transaction.max.timeout.ms)",
    errors.ClusterAuthorizationFailedError: "the user may not write idempotently (ACL: IDEMPOTENT_WRITE)",
    errors.IncompatibleBrokerVersion: "the broker is too old",
    errors.UnsupportedVersionError: "the broker is too old",
    errors.UnsupportedForMessageFormatError: "the broker's message format is too old",
    errors.InvalidTopicError: "the broker does not accept the topic's name",
    errors.InvalidTimestampError: "the topic refuses the records' times (message.timestamp.*.max.ms)",
    errors.PolicyViolationError: "a policy of the broker refuses it",
    errors.InvalidRequiredAcksError: "the topic refuses acks=all",
}
_FENCED = (errors.ProducerFenced, errors.InvalidProducerEpoch)
"""InvalidProducerEpoch is what brokers answer aiokafka's old protocol versions; 90, PRODUCER_FENCED, the newer ones."""
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


class Spent(NotConnected):
    """The producer cannot go on, another one can at once: no fault of its path."""


class BatchTooLarge(Spent):
    """The topic takes only smaller record batches; the producer cannot go on (its sequence has a hole)."""

    def __init__(self, message: str, topic: str, records: int, batch_bytes: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.records = records
        self.batch_bytes = batch_bytes


def mapped(error: BaseException, servers: str) -> GatewayError:
    """Permanent where trying again as it is cannot help, else NotConnected; the text names the bootstrap servers."""
    for cause in _causes(error):
        if isinstance(cause, _FENCED):
            return Permanent(
                f"Kafka at {servers}: another gateway with the same gateway.id took this route over: stop one of the "
                "two, or give each an id of its own"
            )
        reason = _PERMANENT.get(type(cause))
        if reason is not None:
            said = f": {_text(cause)}" if all(isinstance(part, str) for part in cause.args) else ""
            return Permanent(f"Kafka at {servers}: {reason}{said}")
        if _tls_refused(cause):
            return Permanent(f"Kafka at {servers}: TLS: {_text(cause)}")
    return NotConnected(f"Kafka at {servers}: {_text(error)}")


def greeting_failed(error: BaseException, server: str) -> GatewayError:
    """As `mapped`, for a broker's first answers: a broker that hangs up has other ideas of encryption or passwords."""
    failure = mapped(error, server)
    hung_up = isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError | errors.KafkaConnectionError)
    if isinstance(failure, NotConnected) and hung_up:
        return NotConnected(f"{failure}: it hung up: do `tls` and `auth` fit this listener?")
    return failure


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _tls_refused(error: BaseException) -> bool:
    """A certificate or protocol was refused, by us or by the broker; not merely a connection that broke."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__
