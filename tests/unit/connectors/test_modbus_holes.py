"""The planner against an exhaustive search, and a source that learns the holes of 1,000 random devices."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import connectors.modbus
from connectors.modbus import ModbusSource
from connectors.modbus_frames import EXCEPTIONS, Query, Reply, RequestFailed
from connectors.modbus_holes import AGAIN_NS, HoleFile, Holes, fingerprint
from connectors.modbus_plan import NOTHING_KNOWN, DataType, Known, Point, Range, Table, plan
from connectors.modbus_reads import describe_plan
from connectors.modbus_rows import ABSENT
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import GOOD
from pipelines.errors import Corrupt
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import Image, registers
from tests.unit.connectors.test_modbus_source import StoppedClock, started, words

SECOND = 10**9
MAPS = 1_000


def holding(start: int, stop: int) -> Range:
    return Range(Table.HOLDING, start, stop)


def points_at(*spans: tuple[int, int]) -> list[Point]:
    return [
        Point(f"p{at}", Table.HOLDING, address, count, DataType.STRING, length=2 * count)
        for at, (address, count) in enumerate(spans)
    ]


class Rules:
    """What may be one read, said once more and in the plainest way: address by address."""

    def __init__(self, gap: int, size: int, forbidden: Sequence[Range] = (), refused: Sequence[Range] = ()) -> None:
        self.gap, self.size = gap, size
        self.forbidden = {address for hole in forbidden for address in range(hole.start, hole.stop)}
        self.refused = [set(range(hole.start, hole.stop)) for hole in refused]

    def allow(self, points: Sequence[Point]) -> bool:
        wanted = {address for point in points for address in range(point.address, point.stop)}
        if len(points) == 1:
            return True
        whole = set(range(min(wanted), max(wanted) + 1))
        gaps = [after - before - 1 for before, after in pairwise(sorted(wanted))]
        return (
            len(whole) <= self.size
            and max(gaps, default=0) <= self.gap
            and not (whole - wanted) & self.forbidden
            and not any(hole <= whole for hole in self.refused)
        )


def partitions(points: list[Point]) -> Iterator[list[list[Point]]]:
    """Every way to share the points out among reads."""
    if not points:
        yield []
        return
    first, *rest = points
    for parts in partitions(rest):
        yield [[first], *parts]
        for at, part in enumerate(parts):
            yield [*parts[:at], [first, *part], *parts[at + 1 :]]


def fewest(points: list[Point], rules: Rules) -> int:
    """The fewest reads of consecutive points, by dynamic programming."""
    ordered = sorted(points, key=lambda point: (point.address, point.stop))
    best = [0]
    for stop in range(1, len(ordered) + 1):
        fitting = []
        for start in range(stop - 1, -1, -1):
            if ordered[stop - 1].address - ordered[start].address > rules.size:
                break
            if rules.allow(ordered[start:stop]):
                fitting.append(best[start])
        best.append(1 + min(fitting))
    return best[-1]


SPANS = st.lists(st.tuples(st.integers(0, 25), st.integers(1, 4)), min_size=1, max_size=7)
HOLES = st.lists(st.tuples(st.integers(0, 28), st.integers(1, 5)), max_size=3)


@given(SPANS, HOLES, HOLES, st.integers(0, 6), st.integers(4, 20))
def test_no_way_to_share_out_the_points_has_fewer_reads(
    spans: list[tuple[int, int]], forbidden: Any, refused: Any, gap: int, size: int
) -> None:
    """Every partition is tried: also those whose reads overlap or do not follow each other."""
    refuses = Known(tuple(holding(at, at + length) for at, length in refused))
    forbids = [holding(at, at + length) for at, length in forbidden]
    points = [
        point
        for point in points_at(*spans)
        if not refuses.refuses(point.span) and not any(hole.touches(point.span) for hole in forbids)
    ]
    rules = Rules(gap, size, forbids, refuses.refused)
    possible = [len(parts) for parts in partitions(points) if all(map(rules.allow, parts))]
    assert len(plan(points, gap, size, forbids, refuses)) == min(possible)
    assert fewest(points, rules) == min(possible)


class Map:
    """A random device: which addresses it has, and tags, some of them on addresses that it has not."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.gap, self.size = chance.choice([0, 2, 8, 20]), chance.choice([10, 60, 125])
        length, holes = chance.randrange(20, 200), chance.choice([0.0, 0.01, 0.05, 0.3])
        self.legal = {address for address in range(length) if chance.random() >= holes}
        self.tags: dict[str, str] = {}
        for at in range(chance.randrange(1, 40)):
            kind = chance.choice(["uint16", "uint32", "uint64", "string 20"])
            self.tags[f"t{at}"] = f"holding {chance.randrange(length - 10)} {kind}"
        self.settings = ModbusDevice.model_validate(
            {"modbus": "tcp://127.0.0.1/1", "max_gap": self.gap, "max_block": self.size, "tags": self.tags}
        )
        self.points = [point for own in self.settings.points().values() for point in own]

    def has(self, point: Point) -> bool:
        return self.legal.issuperset(range(point.address, point.stop))

    def fewest(self) -> int:
        """Of somebody who knows the device."""
        rules = Rules(self.gap, self.size, refused=[holding(at, at + 1) for at in set(range(210)) - self.legal])
        return fewest([point for point in self.points if self.has(point)], rules)


class MapLink:
    """A `ModbusLink` without a network."""

    lost = ""

    def __init__(self, device: Map) -> None:
        self.device = device
        self.reads: list[tuple[int, int, bool]] = []

    async def connect(self, first: Sequence[Query] = ()) -> None:
        """Nothing to dial."""

    async def close(self) -> None:
        """Nothing to hang up."""

    async def read(self, queries: Sequence[Query], before_ns: int = 0, arrived: None = None) -> list[Reply]:
        return [self._reply(query) for query in queries]

    def _reply(self, query: Query) -> Reply:
        start, count = int.from_bytes(query.frame[-4:-2], "big"), int.from_bytes(query.frame[-2:], "big")
        answered = self.device.legal.issuperset(range(start, start + count))
        self.reads.append((start, count, answered))
        failure = None if answered else RequestFailed(*EXCEPTIONS[2], 2)
        return Reply(registers(*range(start, start + count)) if answered else bytes(2 * count), 0, failure)


class Learning:
    """A source at a random device, cycle by cycle; checks each."""

    def __init__(self, device: Map, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.link = device, MapLink(device)
        monkeypatch.setattr(connectors.modbus, "ModbusLink", lambda *_: self.link)
        self.tags, self.clock = TagTable(), StoppedClock()
        self.source = ModbusSource("m", 0, device.settings, self.tags, self.clock, folder)

    async def cycle(self) -> int:
        """How many reads it took; every tag that the device has is good."""
        before = len(self.link.reads)
        batch = await self.source.read()
        status = {self.tags[tag].name: code for tag, code in zip(batch.tag, batch.status.tolist(), strict=True)}
        assert status == {point.name: GOOD if self.device.has(point) else ABSENT[0] for point in self.device.points}
        return len(self.link.reads) - before

    async def until_learnt(self) -> int:
        """Reads of a cycle in which nothing was refused."""
        for _ in range(400):
            taken = await self.cycle()
            if all(answered for *_, answered in self.link.reads[-taken:]):
                return taken
        raise AssertionError("never learnt")


@pytest.mark.parametrize("part", range(4))
async def test_the_holes_of_random_maps_are_learnt_and_never_read_again(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first cycle on no good tag is bad; nothing refused is asked for twice, also after a restart; in the end
    there are as few reads as for somebody who knows the device."""
    monkeypatch.setattr("pipelines.files.os.fsync", lambda _: None)
    monkeypatch.setattr("pipelines.files.os.fdatasync", lambda _: None)
    for seed in range(part, MAPS, 4):
        device = Map(seed)
        if not any(map(device.has, device.points)):
            continue  # it is believed to be away rather than to have nothing
        learning = Learning(device, tmp_path / str(seed), monkeypatch)
        await learning.source.connect([])
        taken = await learning.until_learnt()
        reads = learning.link.reads
        again = Learning(device, tmp_path / str(seed), monkeypatch)
        await again.source.connect([])
        assert await again.cycle() == taken
        refused = [(start, count) for start, count, answered in reads if not answered]
        assert max(Counter(refused).values(), default=1) == 1, seed
        assert all(answered for *_, answered in again.link.reads), seed
        assert taken == device.fewest(), seed


async def test_a_hole_is_kept_and_shown(tmp_path: Path) -> None:
    image = Image(holes=[6, 21])
    tags = words(*range(10), 20, 22)
    async with started(image, tmp_path, tags=tags) as setup:
        await setup.source.read()
        await setup.source.read()
        assert setup.source.counters.snapshot()["holes"] == 2
        settings = setup.source._settings
    lines = describe_plan(settings, tmp_path, "m")
    assert lines == [
        "every 1s: holding 0-5 (6 registers, 6 tags)",
        "every 1s: holding 7-9 (3 registers, 3 tags)",
        "every 1s: holding 20 (1 register, 1 tag)",
        "every 1s: holding 22 (1 register, 1 tag)",
        "hole: holding 6, no value for h6",
        "hole: holding 21",
        f"learnt from the device; to forget it, stop the gateway and remove {tmp_path / 'modbus-holes' / 'm.json'}",
    ]
    other = settings.model_copy(update={"max_gap": 0})
    assert len(describe_plan(other, tmp_path, "m")) == len(lines), "still the same registers of the same device"
    other = ModbusDevice.model_validate({"modbus": "tcp://127.0.0.1/9", "tags": tags})
    assert describe_plan(other, tmp_path, "m") == describe_plan(other)


async def test_another_identity_is_another_device(tmp_path: Path) -> None:
    image = Image(holes=[6])
    async with started(image, tmp_path, tags=words(5, 6)) as setup:
        await setup.source.read()
        image.holes.clear()
        await setup.source.connect([])
        assert setup.rows(await setup.source.read())["h6"] == (None, ABSENT[0])
        assert setup.source.faults["h6"] == f"holding 6: {ABSENT[1]}"
        setup.source.known_as = "Acme Meter 2, firmware 2.0"
        await setup.source.connect([])
        assert setup.rows(await setup.source.read())["h6"] == (6, GOOD)
        assert not setup.source.faults


async def test_what_was_read_before_is_no_hole(tmp_path: Path) -> None:
    """A PLC in stop, a module that is being changed: it is tried again, and nothing of it is kept."""
    image = Image()
    async with started(image, tmp_path, tags=words(5, 6)) as setup:
        await setup.source.read()
        image.holes.add(6)
        assert setup.rows(await setup.source.read()) == {"h5": (5, GOOD), "h6": (None, ABSENT[0])}
        image.holes.clear()
        deadline_ns = setup.clock.now_ns + AGAIN_NS
        while setup.rows(await setup.source.read())["h6"] != (6, GOOD):
            assert setup.clock.now_ns < deadline_ns
        assert not setup.source.faults
        assert not (tmp_path / "modbus-holes").exists()


async def test_a_device_that_refuses_everything_is_believed_to_be_away(tmp_path: Path) -> None:
    image = Image(holes=range(10))
    async with started(image, tmp_path, tags=words(1, 2, 8)) as setup:
        for _ in range(50):
            rows = setup.rows(await setup.source.read())
            assert set(rows.values()) == {(None, ABSENT[0])}
        assert len(image.reads) < 50, "less and less often"
        image.holes.clear()
        while (rows := setup.rows(await setup.source.read())) != {f"h{at}": (at, GOOD) for at in (1, 2, 8)}:
            assert setup.clock.now_ns < (1_000 + 50 + 130) * SECOND
        assert not (tmp_path / "modbus-holes").exists()


async def test_a_device_that_gives_less_at_once_is_asked_for_less() -> None:
    """Exception 3 for more than 20 registers: no row is bad, the plan gets shorter reads once."""
    image = Image()

    def short(request: bytes) -> bytes:
        if int.from_bytes(request[10:12], "big") > 20:
            image.reads.append((int.from_bytes(request[8:10], "big"), int.from_bytes(request[10:12], "big")))
            return request[:4] + b"\0\3" + request[6:7] + b"\x83\3"
        return image(request)

    async with started(short, tags=words(*range(60))) as setup:
        for _ in range(4):
            assert set(setup.rows(await setup.source.read()).values()) == {(at, GOOD) for at in range(60)}
        image.reads.clear()
        await setup.source.read()
        assert len(image.reads) == 4
        assert max(count for _, count in image.reads) <= 20


def test_a_border_that_no_read_may_cross_is_told_from_a_length() -> None:
    holes = Holes()
    holes.answered(holding(100, 160))
    holes.refused_between(holding(48, 52), holding(48, 50), holding(50, 52))
    assert holes.known == Known((holding(49, 51),))
    points = points_at(*[(at, 1) for at in range(40, 60)])
    assert [block.place for block in plan(points, 8, 125, known=holes.known)] == ["holding 40-49", "holding 50-59"]


def test_only_the_smallest_refused_stretch_is_kept() -> None:
    holes = Holes()
    holes.refused_single(holding(0, 10), True, 0)
    holes.refused_single(holding(4, 6), True, 0)
    holes.refused_single(holding(2, 8), True, 0)
    assert holes.kept.refused == (holding(4, 6),)


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    file = HoleFile(tmp_path, "m")
    assert file.load("f", "") == NOTHING_KNOWN
    known = Known((holding(1, 3), Range(Table.COIL, 5, 6)), {Table.INPUT: 20})
    file.save("f", "id", known)
    assert file.load("f", "id") == file.load("f") == known
    assert file.load("g", "id") == file.load("f", "other") == NOTHING_KNOWN
    file.path.write_bytes(file.path.read_bytes().replace(b"coil", b"soil"))
    with pytest.raises(Corrupt):
        file.load("f")
    assert fingerprint("u", points_at((1, 1))) != fingerprint("u", points_at((1, 2)))


async def test_a_damaged_file_is_said_and_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = HoleFile(tmp_path, "m")
    file.path.parent.mkdir()
    file.path.write_bytes(b"rubbish")
    async with started(Image(holes=[6]), tmp_path, tags=words(5, 6)) as setup:
        assert "is damaged" in caplog.text
        await setup.source.read()
    assert file.load(setup.source._explorer._fingerprint).refused == (holding(6, 7),)
