"""Structured logs: one line an event, as text for a person at a terminal, as JSON lines for everything else.

An event is a level, a subject ("source press4"), a message and fields. Secrets are never passed to this module:
settings hold them as SecretStr, and messages are made from addresses and names only. Third-party libraries are held
to warnings, or silenced where the supervisor's own line says the same once and clearly.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ROOMS = ("gateway", "connectors", "pipelines")
"""Our own packages: they log at the level of the file."""

EMPTY: Final[Mapping[str, Any]] = {}
SILENT: Final = logging.CRITICAL + 1

THIRD_PARTY: Mapping[str, int] = {
    "aiohttp": logging.WARNING,
    "aiohttp.access": SILENT,
    "aiokafka": SILENT,  # says every reconnect attempt; the supervisor says each outage
    "amqtt": logging.WARNING,
    "asyncio": logging.ERROR,
    "asyncua": SILENT,  # logs each broken connection with its traceback
    "pymodbus": SILENT,  # logs each failed connection attempt
    "paho": logging.WARNING,
}


class Log:
    """The log of one subject: `source press4`, `gateway`."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._logger = logging.getLogger("gateway")

    def debug(self, message: str, **fields: Any) -> None:
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._write(logging.ERROR, message, fields)

    def bug(self, message: str, error: BaseException, **fields: Any) -> None:
        """An error that no contract names: with its traceback."""
        self._write(logging.ERROR, message, fields, error)

    def _write(self, level: int, message: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"subject": self._subject, "fields": fields}
            # A single percent sign in a message is text: there are never arguments.
            self._logger.log(level, "%s", message, exc_info=error, extra=extra)


class TextFormatter(logging.Formatter):
    """`2026-11-23T10:00:00.123Z INFO  source press4: connected endpoint=opc.tcp://10.0.0.5:4840`."""

    def __init__(self, common: Mapping[str, Any] = EMPTY) -> None:
        super().__init__()
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        subject = getattr(record, "subject", record.name)
        known = {**_fields(record), **self._common}
        fields = "".join(f" {name}={_quoted(value)}" for name, value in known.items())
        line = f"{_time(record)} {record.levelname:<7} {subject}: {_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info and record.exc_info[0] else line


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": "info", "subject": "source press4", "message": "connected", "endpoint": ...}`."""

    def __init__(self, common: Mapping[str, Any] = EMPTY) -> None:
        super().__init__()
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "subject": getattr(record, "subject", record.name),
            "message": record.getMessage(),
            **_fields(record),
            **self._common,
        }
        if record.exc_info and record.exc_info[0]:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def setup(
    log_format: LogFormat = "auto", level: LogLevel = "info", stream: TextIO | None = None, **common: Any
) -> None:
    """Routes every logger of the process to `stream` (stderr); replaces what an earlier call did. Each line ends with
    the fields `common`."""
    stream = stream or sys.stderr
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(common) if text else JsonFormatter(common))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(level.upper())
    for name, quiet in THIRD_PARTY.items():
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(True)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _quoted(value: Any) -> str:
    text = _one_line(str(value))
    return f'"{text}"' if " " in text or not text else text


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
