"""Structured logs: text and JSON lines, levels, third-party loggers held back."""

from __future__ import annotations

import io
import json
import logging

from gateway.log import Log, setup


def test_text_line() -> None:
    """Time, level, subject, message, fields; values with blanks in quotes; one line whatever the message holds."""
    stream = io.StringIO()
    setup("text", "info", stream)
    Log("source press4").info("up\nagain", address="opc.tcp://10.0.0.5:4840", note="a b")
    line = stream.getvalue()
    assert line.endswith(' INFO    source press4: up again address=opc.tcp://10.0.0.5:4840 note="a b"\n')
    assert line.partition(" ")[0].endswith("Z")
    assert len(line.partition(" ")[0]) == len("2026-11-23T10:00:00.123Z")


def test_json_line_where_there_is_no_terminal() -> None:
    """auto: JSON lines, with the traceback of a bug in the same line."""
    stream = io.StringIO()
    setup("auto", "debug", stream)
    try:
        raise KeyError("x")
    except KeyError as error:
        Log("sink mqtt").bug("bug: 100%", error, attempts=2)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["subject"], line["message"], line["attempts"]) == ("error", "sink mqtt", "bug: 100%", 2)
    assert "KeyError" in line["traceback"]
    assert stream.getvalue().count("\n") == 1


def test_levels() -> None:
    """Our rooms at the file's level, libraries from warning on, and not those that the supervisor speaks for."""
    stream = io.StringIO()
    setup("text", "info", stream)
    Log("gateway").debug("no")
    logging.getLogger("connectors.opcua").info("yes 1")
    logging.getLogger("somelibrary").info("no")
    logging.getLogger("somelibrary").warning("yes 2")
    logging.getLogger("asyncua.client").error("no")
    logging.getLogger("aiokafka.conn").error("no")
    assert [line.split(": ")[-1] for line in stream.getvalue().splitlines()] == ["yes 1", "yes 2"]
