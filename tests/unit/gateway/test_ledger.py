"""The gap ledger: nothing is missing without an entry, nobody can flood it, and no damage costs more than a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from gateway import ledger as module
from gateway.app import App, Exit, Parts
from gateway.cli import main
from gateway.ledger import TAGS_MAX, Entry, GapLedger, entries, listing
from gateway.metrics import GapsCollector, Metrics
from pipelines.gaps import Gap, Reason
from tests.unit.gateway.fakes import START_NS, FakeClock, until

S = 10**9


def gap(
    at_s: int = 0, rows: int | None = 1, device: str = "press4", reason: Reason = Reason.LANE_FULL, *tags: str
) -> Gap:
    return Gap(reason, device, "history", tags, START_NS + at_s * S, START_NS + at_s * S, rows)


@asynccontextmanager
async def running(ledger: GapLedger) -> AsyncIterator[None]:
    task = asyncio.create_task(ledger.run())
    yield
    task.cancel()
    await asyncio.wait([task])


async def test_a_gap_is_on_disk_soon_and_told(tmp_path: Path) -> None:
    """A second after it was noted: in the file, in `latest`, and with whoever subscribed."""
    ledger, told = GapLedger(tmp_path, FakeClock()), list[Entry]()
    ledger.subscribe(told.append)
    async with running(ledger):
        ledger.note(gap(3, 17))
        await until(lambda: bool(list(entries(tmp_path))))
    [entry] = entries(tmp_path)
    assert (entry.reason, entry.device, entry.rows, entry.gaps) == (Reason.LANE_FULL, "press4", 17, 1)
    assert told == [entry] == list(ledger.latest)


async def test_what_follows_becomes_one_entry(tmp_path: Path) -> None:
    """From the first to the last, rows added up to the row; another reason, device or route is another entry."""
    ledger = GapLedger(tmp_path, FakeClock())
    for second in range(100):
        ledger.note(gap(second, second))
    ledger.note(gap(5, 2, "meter7"))
    ledger.note(gap(5, None, "press4", Reason.EXPIRED))
    await ledger.close()
    found = {(entry.device, entry.reason): entry for entry in entries(tmp_path)}
    whole = found["press4", Reason.LANE_FULL]
    assert (whole.from_ns, whole.to_ns, whole.rows, whole.gaps) == (START_NS, START_NS + 99 * S, 4950, 100)
    assert found["meter7", Reason.LANE_FULL].rows == 2
    assert found["press4", Reason.EXPIRED].rows is None
    assert ledger.totals == {Reason.LANE_FULL: (2, 4952), Reason.EXPIRED: (1, 0)}


async def test_a_long_story_has_few_lines(tmp_path: Path) -> None:
    """An hour of drops, ten a second: entries of 1, 2, 4, ... at most 30 s, and every row is in one of them."""
    clock = FakeClock()
    ledger = GapLedger(tmp_path, clock)
    for _ in range(36_000):
        ledger.note(gap())
        clock.forward(0.1)
        await ledger._write(ledger._due())
    await ledger.close()
    found = list(entries(tmp_path))
    assert sum(entry.rows or 0 for entry in found) == 36_000
    assert 100 < len(found) < 150


async def test_too_many_kinds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are no longer told apart; rows are still all there."""
    monkeypatch.setattr(module, "OPEN_MAX", 3)
    ledger = GapLedger(tmp_path, FakeClock())
    for number in range(10):
        ledger.note(gap(number, 1, f"m{number}"))
    await ledger.close()
    assert {entry.device: entry.rows for entry in entries(tmp_path)} == {"m0": 1, "m1": 1, "m2": 1, "": 7}


async def test_tags_are_named_up_to_a_bound(tmp_path: Path) -> None:
    """The first names and how many there are; a gap without names is one of all tags."""
    ledger = GapLedger(tmp_path, FakeClock())
    names = [f"t{number}" for number in range(50)]
    ledger.note(gap(0, 1, "press4", Reason.MISSED, *names[:30]))
    ledger.note(gap(0, 1, "press4", Reason.MISSED, *names[20:]))
    ledger.note(gap(0, 1, "meter7", Reason.MISSED, *names))
    ledger.note(gap(0, 1, "meter7", Reason.MISSED))
    await ledger.close()
    press, meter = entries(tmp_path)
    assert (press.tags, press.tags_total) == (tuple(names[:TAGS_MAX]), 50)
    assert (meter.tags, meter.tags_total) == ((), 0)


async def test_survives_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    """A line that a power cut left half-written, or damaged, costs itself; the next one begins on its own."""
    for number in range(2):
        ledger = GapLedger(tmp_path, FakeClock())
        ledger.note(gap(0, number))
        await ledger.close()
    file = tmp_path / "gaps" / "gaps.jsonl"
    file.write_bytes(b'{"reason": "nobody knows"}\n\xff\xfe\n' + file.read_bytes() + b'{"reason": "buffer fu')
    ledger = GapLedger(tmp_path, FakeClock())
    assert [entry.rows for entry in ledger.latest] == [0, 1]
    ledger.note(gap(0, 2))
    await ledger.close()
    assert [entry.rows for entry in entries(tmp_path)] == [0, 1, 2]


async def test_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files; the newest entries are there."""
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 2000)
    for number in range(50):
        ledger = GapLedger(tmp_path, FakeClock())
        ledger.note(gap(0, number))
        await ledger.close()
    files = sorted((tmp_path / "gaps").iterdir())
    assert [file.name for file in files] == ["gaps.1.jsonl", "gaps.jsonl"]
    assert all(file.stat().st_size <= 2000 for file in files)
    numbers = [entry.rows for entry in entries(tmp_path)]
    assert numbers == list(range(50 - len(numbers), 50))


async def test_a_disk_that_refuses_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once however often, never raised; with the next entry everything is written."""
    caplog.set_level("INFO", "gateway")
    (tmp_path / "gaps").write_text("in the way")
    ledger = GapLedger(tmp_path, FakeClock())
    caplog.clear()
    for _ in range(2):
        ledger.note(gap(0, 1))
        await ledger.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text
    (tmp_path / "gaps").unlink()
    ledger.note(gap(0, 2))
    await ledger.close()
    assert [entry.rows for entry in entries(tmp_path)] == [1, 1, 2]


async def test_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for people, or JSON; `since` leaves out what had ended before."""
    ledger = GapLedger(tmp_path, FakeClock())
    ledger.note(gap(3, 17))
    ledger.note(Gap(Reason.DISCONNECTED, "meter7", "", ("flow",), START_NS, START_NS + S, None))
    await ledger.close()
    lines, damaged = listing(tmp_path, None, as_json=False)
    assert not damaged and lines == [
        "2026-11-22T10:35:16Z .. 2026-11-22T10:35:16Z  press4 -> history: 17 rows, buffer full",
        "2026-11-22T10:35:13Z .. 2026-11-22T10:35:14Z  meter7: number of rows unknown, machine disconnected (flow)",
    ]
    assert [orjson.loads(line)["rows"] for line in listing(tmp_path, None, as_json=True)[0]] == [17, None]
    assert listing(tmp_path, "1ns", as_json=False) == ([], 0)
    assert main(["gaps", "--data-dir", str(tmp_path), "--json", "--since", "yesterday"]) == 2
    assert "--since: 'yesterday' is not a duration" in capsys.readouterr().err
    assert main(["gaps", "--data-dir", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged lines are counted; a ledger that cannot be read is no empty one, and does not stop the gateway."""
    file = tmp_path / "gaps" / "gaps.jsonl"
    file.parent.mkdir()
    file.write_text('{"reason": "buffer f\n{}\n')
    assert main(["gaps", "--data-dir", str(tmp_path)]) == 0
    assert "2 damaged lines of the gap ledger are left out" in capsys.readouterr().err
    file.unlink()
    file.mkdir()
    assert main(["gaps", "--data-dir", str(tmp_path)]) == 3
    assert "the gap ledger cannot be read: " in capsys.readouterr().err
    assert not GapLedger(tmp_path, FakeClock()).latest
    assert "the gaps of former runs cannot be read: " in caplog.text


async def test_health_and_metrics(tmp_path: Path) -> None:
    """The newest entries, and all that was noted since the start by reason."""
    clock = FakeClock()
    ledger = GapLedger(tmp_path, clock)
    app = App(Parts([], [], [], ledger), "line1-gw", clock, lambda: 1.0, 5.0)
    running = asyncio.create_task(app.run())
    for number in range(8):
        ledger.note(gap(number, 10, f"m{number}"))
    await until(lambda: len(ledger.latest) == 8)
    shown = app.health.report()["gaps"]
    assert [each["device"] for each in shown] == ["m3", "m4", "m5", "m6", "m7"]
    assert shown[0] | {"from": "", "to": ""} == {
        "reason": "buffer full",
        "device": "m3",
        "route": "history",
        "from": "",
        "to": "",
        "rows": 10,
    }
    text = (await Metrics([GapsCollector(ledger.totals)], lambda: None).text()).decode()
    assert 'gateway_gaps_total{reason="buffer full"} 8.0' in text
    assert 'gateway_gap_rows_total{reason="buffer full"} 80.0' in text
    ledger.note(gap(9, 1, "late"))
    app.request_stop()
    assert await asyncio.wait_for(running, 10) is Exit.STOPPED
    assert [entry.device for entry in entries(tmp_path)][-1] == "late"
