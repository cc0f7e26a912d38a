"""The secure channel's common case, without asyncua's object per header: whole messages in one chunk.

Nearly all that a gateway sends and receives are such messages ("MSGF", Part 6, 6.7.2), and a notification has to pass
here before anything is done with it. Everything else (Hello, OpenSecureChannel, messages in several chunks, aborts, a
chunk under another token or key, one that is not as it should be) is left to asyncua as it came, errors too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, cast

from asyncua import ua
from asyncua.client.ua_client import UaClient, UASocketProtocol
from asyncua.common.utils import Buffer
from asyncua.crypto.uacrypto import InvalidSignature
from asyncua.ua import MessageType

MESSAGE: Final = b"MSGF"
_SECURE: Final = struct.Struct("<4sIII")  # MESSAGE, size of it all, channel id, token id
_SEQUENCE: Final = struct.Struct("<II")  # sequence number, request id
HEADERS: Final = _SECURE.size + _SEQUENCE.size
_NOT_SECURED: Final = ua.MessageSecurityMode.None_
SEQUENCE_MAX: Final = 2**32 - 1024
"""From here on the sequence numbers may begin again (Part 6, 6.7.2.4): asyncua's matter."""


class Channel(UASocketProtocol):
    """A `UASocketProtocol`; see the module."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.takers: dict[int, Callable[[bytes], None]] = {}
        """Request id -> who takes the response in the step of its arrival; its future then only hears of failures."""

    def message(self, body: bytes, request_id: int) -> bytes:
        """A request as it goes over the wire."""
        connection = self._connection
        size, number = HEADERS + len(body), connection._sequence_number + 1
        plain = connection.security_policy.Mode == _NOT_SECURED
        if not plain or size > connection._limits.max_send_buffer or number > SEQUENCE_MAX:
            return connection.message_to_binary(body, cast(MessageType, MessageType.SecureMessage), request_id)
        connection._sequence_number = number
        token = connection.security_token
        return _SECURE.pack(MESSAGE, size, token.ChannelId, token.TokenId) + _SEQUENCE.pack(number, request_id) + body

    def data_received(self, data: bytes) -> None:
        """asyncio calls this; what is left of a message that has not come in full stays in `receive_buffer`."""
        if self.receive_buffer:
            data = self.receive_buffer + data
            self.receive_buffer = None
        at, size = 0, len(data)
        while at < size:
            end = self._whole_message(data, at)
            if not end:
                self._process_received_data(data[at:] if at else data)
                return
            at = end

    def _whole_message(self, data: bytes, at: int) -> int:
        """Takes the message at `at` where it is a plain one: its end. Else 0, and nothing has changed."""
        if len(data) - at < HEADERS:
            return 0
        kind, size, channel, token = _SECURE.unpack_from(data, at)
        connection = self._connection
        current, before = connection.security_token, connection._peer_sequence_number
        if before is None:
            return 0
        end: int = at + size
        whole = kind == MESSAGE and end <= len(data) and HEADERS <= size <= connection._limits.max_recv_buffer
        ours = channel == current.ChannelId and token == current.TokenId
        if not whole or not ours or connection._incoming_parts:
            return 0
        if connection.security_policy.Mode == _NOT_SECURED:
            opened = data[at + _SECURE.size : end]
        else:
            opened = self._opened(data[at:end])
            if len(opened) < _SEQUENCE.size:
                return 0
        number, request_id = _SEQUENCE.unpack_from(opened)
        if number != before + 1 or request_id not in self._callbackmap:
            return 0
        connection._peer_sequence_number = number
        if request_id in self.takers:
            self._give(request_id, opened[_SEQUENCE.size :])
        else:
            self._call_callback(request_id, Buffer(opened[_SEQUENCE.size :]))
        return end

    def _call_callback(self, request_id: int, body: Buffer | ua.Acknowledge) -> None:
        if request_id in self.takers:
            self._give(request_id, bytes(cast(Buffer, body)))
        else:
            super()._call_callback(request_id, body)

    def _give(self, request_id: int, body: bytes) -> None:
        del self._callbackmap[request_id]
        self.takers.pop(request_id)(body)

    def _opened(self, chunk: bytes) -> bytes:
        """Sequence header and body, verified and decrypted (Part 6, 6.7.2.4); empty where it has to be looked into."""
        crypto: Any = self._connection.security_policy.symmetric_cryptography  # its methods have no types
        crypto.use_prev_key = False
        try:
            plain = crypto.decrypt(chunk[_SECURE.size :])
            signed = len(plain) - crypto.vsignature_size()
            crypto.verify(chunk[: _SECURE.size] + plain[:signed], plain[signed:])
        except (InvalidSignature, ValueError):  # under the key before, or damaged: asyncua finds out
            return b""
        return bytes(crypto.remove_padding(plain[:signed]))


class ChannelClient(UaClient):
    """A `UaClient` over a `Channel`."""

    def _make_protocol(self) -> UASocketProtocol:
        channel = self.protocol = Channel(self._timeout, security_policy=self.security_policy)
        channel.pre_request_hook = self._pre_request_hook
        channel.on_connection_lost = self._on_transport_lost
        channel.is_session_closing = self._is_session_closing
        return channel
