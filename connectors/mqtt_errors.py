"""What can go wrong with a broker -> the errors of the contract, each one clear line that names the server. Pure."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from connectors.mqtt_settings import MqttTarget
from pipelines.errors import GatewayError, NotConnected, Permanent

QUOTA_EXCEEDED = 0x97
PACKET_TOO_LARGE = 0x95

_NAMES: Mapping[int, Mapping[str, list[int]]] = ReasonCode(PacketTypes.CONNACK, "Success").names
"""paho's table: code -> its name, and the packets that may carry it."""
_PROTOCOL = "it does not speak MQTT {protocol}: write protocol: {other}"
_CLIENT_ID = "it refuses the client id {client_id!r}: set client_id"
_PASSWORD = "it refuses user or password: check auth"
_AUTHORIZED = "it does not authorize this client: check auth, and what the broker allows this user"
_REFUSED: dict[int, str] = {
    0x01: _PROTOCOL,
    0x02: _CLIENT_ID,
    0x04: _PASSWORD,
    0x05: _AUTHORIZED,
    0x84: _PROTOCOL,
    0x85: _CLIENT_ID,
    0x86: _PASSWORD,
    0x87: _AUTHORIZED,
    0x9A: "it keeps no retained messages: set status_topic: null",
    0x9B: "it takes QoS 0 only: set qos: 0",
}
"""Return codes of MQTT 3.1.1 (section 3.2.2.3) and reason codes of MQTT 5 (section 3.2.2.2)."""
_PASSING = frozenset((0x03, 0x80, 0x83, 0x88, 0x89, QUOTA_EXCEEDED, 0x9C, 0x9F))
"""Refusals that may be over by the next attempt: server unavailable or busy, unspecified, rate exceeded, ..."""

_CERTIFICATE_WANTED = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_CERTIFICATE_REFUSED = ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE", "ALERT_ACCESS_DENIED")
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "HTTP_REQUEST")


def place(settings: MqttTarget) -> str:
    """`host:port`, and the path where there are several, as every text begins."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"MQTT broker {host}:{settings.port}" + (f" by {settings.path}" if settings.path else "")


def reason_name(code: int) -> str:
    """A reason code in the words of MQTT 5 section 2.4."""
    names = _NAMES.get(code)
    return f"{next(iter(names))} (0x{code:02X})" if names else f"reason code 0x{code:02X}"


def connack_error(settings: MqttTarget, client_id: str, code: int) -> GatewayError:
    """Why the broker refused the session."""
    name = reason_name(code) if code >= 0x80 else f"return code {code}"
    if code in _PASSING:
        return NotConnected(f"{place(settings)}: not available now: {name}")
    other = "3.1.1" if settings.protocol == "5" else "5"
    text = _REFUSED.get(code, "it refuses the session")
    text = text.format(protocol=settings.protocol, other=f'"{other}"' if other == "5" else other, client_id=client_id)
    return Permanent(f"{place(settings)}: {text} ({name})")


def opening_error(settings: MqttTarget, error: OSError | None) -> GatewayError:
    """Why there is no connection, before the broker said yes; None where it closed without a word."""
    if isinstance(error, ssl.SSLError):
        return _tls_error(settings, error)
    hint = "check that this port speaks TLS" if settings.secure else "if this port speaks TLS, write mqtts://"
    if error is None or isinstance(error, ConnectionResetError):
        return NotConnected(f"{place(settings)}: closed the connection before it accepted the session; {hint}")
    if isinstance(error, socket.gaierror):
        return NotConnected(f"{place(settings)}: its name cannot be resolved: {error.strerror}")
    if isinstance(error, TimeoutError):
        return NotConnected(f"{place(settings)}: no answer in time")
    return NotConnected(f"{place(settings)}: cannot connect: {error.strerror or error}")


def _tls_error(settings: MqttTarget, error: ssl.SSLError) -> GatewayError:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return NotConnected(f"{place(settings)}: closed the connection during the TLS handshake")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Permanent(
            f"{place(settings)}: its certificate is not trusted: {error.verify_message.rstrip('.')};"
            " set tls: {ca: FILE} to the authority that signed it, and use the name it was issued for"
        )
    reason = getattr(error, "reason", None) or str(error)
    if any(word in reason for word in _CERTIFICATE_WANTED):
        text = "it demands a client certificate: set tls: {cert: FILE, key: FILE}"
    elif any(word in reason for word in _CERTIFICATE_REFUSED):
        text = "it does not accept the gateway's certificate: check tls: {cert: FILE, key: FILE}"
    elif any(word in reason for word in _NO_TLS):
        text = "that port does not speak TLS: check the port, or write mqtt:// for plain TCP"
    else:
        text = "TLS failed"
    return Permanent(f"{place(settings)}: {text} ({reason})")
