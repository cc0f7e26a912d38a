"""What a Modbus device says of itself: facts, by which its profile and version are chosen. Nothing is ever written.

Asked in this order: Read Device Identification (Application Protocol V1.1b3, section 6.21: function 43, MEI type 14),
Report Server ID (section 6.13: function 17), the SunSpec common block (SunSpec Device Information Model Specification:
`SunS` at 40000, 50000 or 0, then a chain of models, each with its id and its own length), registers that profiles name.

What is refused (exceptions 1 to 3) is not supported. Anything else is asked once more; a device that has not answered
anything is not there, and one that answers others of the questions does not know this one. Objects and texts have their
blanks and NULs removed at both ends: vendors pad on either side.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from connectors.modbus_decode import Layout
from connectors.modbus_frames import Query, RequestFailed, query, request
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, Table, WordOrder
from connectors.modbus_profile import Chain, Grammar, Probe
from connectors.modbus_register import parse_point, parse_range
from connectors.modbus_settings import WordOrderName
from connectors.modbus_url import ModbusUrl
from pipelines.batch import BAD_TIMEOUT
from pipelines.errors import NotConnected

OBJECTS: Final[Mapping[int, str]] = {0: "vendor", 1: "code", 2: "firmware", 4: "product", 5: "model"}
"""Object id of Read Device Identification -> fact. `model` is the product code where there is no model name."""
SUNSPEC_BASES: Final = (40_000, 50_000, 0)
SUNSPEC_END: Final = 0xFFFF
SUNSPEC_MODELS_MAX: Final = 100
_BASIC, _REGULAR, _ONE = 1, 2, 4
"""Read device id codes: streams of basic and regular objects, one object."""
_IDENTIFICATION_PARTS_MAX: Final = 10
_TRIES: Final = 2
_NOT_SUPPORTED: Final = (1, 2, 3)
"""Exception codes."""


class Interview:
    """Questions to one device over its link. What was answered, or refused, is not asked again."""

    def __init__(self, link: ModbusLink, url: ModbusUrl) -> None:
        self._link = link
        self._url = url
        self.silences = 0
        """Questions that were not answered although others were."""
        self._answered = False
        self._known: dict[bytes, bytes | None] = {}

    async def value(
        self, text: str, device: WordOrderName, own: WordOrderName | None = None, within: str | None = None
    ) -> Any:
        """What the register `text` holds, in the device's word order or one of its own; None where it has no value.

        Raises NotConnected.
        """
        point = parse_point(text, text, WordOrder(own) if own else None, WordOrder(device))
        span = parse_range(within) if within else point.span
        return await self._decoded(Block(span.table, span.start, span.stop - span.start, (point,)))

    async def _decoded(self, block: Block) -> Any:
        data = await self._ask(query(self._url, block))
        if data is None:
            return None
        layout = Layout([block])
        value, extra, bad = layout.decode([data])
        if bad:
            return None
        number = extra[0] if extra else float(value[0])
        return int(number) if isinstance(number, float) and number.is_integer() else number

    async def registers(self, start: int, count: int) -> list[int] | None:
        """Holding registers; None where the device does not have them. Raises NotConnected."""
        block = Block(Table.HOLDING, start, count, ())
        data = await self._ask(query(self._url, block))
        return None if data is None else list(struct.unpack(f">{count}H", data))

    async def pdu(self, asked: bytes, sized: Callable[[bytes], int]) -> bytes | None:
        """The reply's PDU behind its function code; None where the device refuses it. Raises NotConnected."""
        return await self._ask(request(self._url, asked, sized))

    async def _ask(self, asked: Query) -> bytes | None:
        if asked.frame in self._known:
            return self._known[asked.frame]
        for _ in range(_TRIES):
            [reply] = await self._link.read([asked])
            if self._link.lost:
                raise NotConnected(self._link.lost)
            if reply.failure is None or reply.failure.exception_code in _NOT_SUPPORTED:
                self._answered = True
                found = self._known[asked.frame] = None if reply.failure else reply.data
                return found
            last: RequestFailed = reply.failure
        if not self._answered or last.status != BAD_TIMEOUT:
            raise NotConnected(self._link.give_up(f"{last.reason} while it was asked what it is"))
        self._known[asked.frame] = None
        self.silences += 1
        return None


def described(facts: Mapping[str, str]) -> str:
    """`KEBA P40 firmware 1.2.1`: for people; empty where it tells nothing of itself."""
    known = {name: facts[name] for name in ("vendor", "model", "firmware", "map") if facts.get(name)}
    return " ".join(text if name in ("vendor", "model") else f"{name} {text}" for name, text in known.items())


async def device_identification(interview: Interview) -> dict[str, str]:
    """The facts that function 43 / 14 gives; empty where the device does not know it."""
    objects = await _objects(interview, _BASIC)
    if not objects:  # some answer single objects only, some only the code 0 that their manual prints
        for number in (0, 1, 2):
            objects |= await _objects(interview, _ONE, number)
            if not objects:
                break
    if not objects:
        objects = await _objects(interview, 0)
    if objects:
        objects |= await _objects(interview, _REGULAR)
    for number in (4, 5) if objects else ():
        objects |= {} if number in objects else await _objects(interview, _ONE, number)
    facts = {OBJECTS[number]: text for number, text in objects.items() if number in OBJECTS and text}
    if "code" in facts:
        facts.setdefault("model", facts["code"])
    return facts


async def _objects(interview: Interview, code: int, number: int = 0) -> dict[int, str]:
    """Objects by their id, from `number` on; a device may give them in several parts."""
    found: dict[int, str] = {}
    for _ in range(_IDENTIFICATION_PARTS_MAX):
        reply = await interview.pdu(bytes([43, 14, code, number]), identification_bytes)
        if reply is None or len(reply) < 6:
            return found
        found |= _listed(reply[6:], reply[5])
        more, number = reply[3], reply[4]
        if more != 0xFF or code == _ONE:
            break
    return found


def _listed(data: bytes, count: int) -> dict[int, str]:
    """`count` objects: id 1, length 1, text."""
    found, at = {}, 0
    for _ in range(count):
        if at + 2 > len(data):
            break
        found[data[at]] = trimmed(data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    return found


def identification_bytes(pdu: bytes) -> int:
    """Length of a reply to function 43 / 14 from what has come of it; 0 while that is unknown."""
    if len(pdu) < 7:
        return 0
    at = 7
    for _ in range(pdu[6]):
        if at + 2 > len(pdu):
            return 0
        at += 2 + pdu[at + 1]
    return at


def counted_bytes(pdu: bytes) -> int:
    """Length of a reply with a byte count behind its function code."""
    return 2 + pdu[1] if len(pdu) > 1 else 0


async def server_id(interview: Interview) -> dict[str, str]:
    """The readable part of what function 17 reports, as the fact `server_id`."""
    reply = await interview.pdu(bytes([17]), counted_bytes)
    text = trimmed(bytes(byte for byte in (reply or b"")[1:] if 32 <= byte < 127))
    return {"server_id": text} if text else {}


async def sunspec(interview: Interview) -> tuple[dict[str, str], Chain]:
    """Facts of the common model (`sunspec` is its version's mark), and where the device's models are."""
    for base in SUNSPEC_BASES:
        if await interview.registers(base, 2) == [0x5375, 0x6E53]:
            return await _common(interview, base + 2)
    return {}, Chain()


async def _common(interview: Interview, start: int) -> tuple[dict[str, str], Chain]:
    models: list[tuple[int, int, int]] = []
    facts = {"sunspec": "yes"}
    at = start
    while len(models) < SUNSPEC_MODELS_MAX and (head := await interview.registers(at, 2)):
        number, length = head
        if number == SUNSPEC_END or at + 2 + length > 0x1_0000:
            break
        if number == 1:
            facts |= await _nameplate(interview, at)
        models.append((number, at, length))
        at += 2 + length
    return facts | {"models": " ".join(str(number) for number, _, _ in models)}, Chain(tuple(models))


async def _nameplate(interview: Interview, at: int) -> dict[str, str]:
    places = {"vendor": (2, 32), "model": (18, 32), "options": (34, 16), "firmware": (42, 16), "serial": (50, 32)}
    texts = {
        name: await interview.value(f"holding {at + offset} string {length}", "big")
        for name, (offset, length) in places.items()
    }
    return {name: text for name, text in texts.items() if text}


async def probed(interview: Interview, probes: Sequence[Probe], order: WordOrderName) -> dict[str, str]:
    """The facts that a profile's own probes give."""
    facts: dict[str, str] = {}
    for probe in probes:
        raw = [await interview.value(text, order, probe.word_order, probe.within) for text in probe.registers]
        if (fact := _fact(probe, raw)) and probe.gives not in facts:
            facts[probe.gives] = fact
    return facts


def with_former(probes: Sequence[Probe], facts: dict[str, str], former: Mapping[str, str]) -> dict[str, str]:
    """`facts`, where a number that is not plausible at all now says what it said before: the mains may be off."""
    judged = [probe for probe in probes if probe.between]
    sure = {probe.registers[0] for probe in judged if facts.get(probe.gives) == "yes"}
    doubtful = [probe.gives for probe in judged if facts.get(probe.gives) == "no" and probe.registers[0] not in sure]
    return facts | {name: former[name] for name in doubtful if name in former}


def _fact(probe: Probe, raw: Sequence[Any]) -> str:
    """The text that raw values mean; empty: nothing."""
    if None in raw or "" in raw:
        return ""
    if probe.values:
        return probe.values.get(raw[0], "")
    if probe.between:
        return "yes" if not isinstance(raw[0], str) and probe.between[0] <= raw[0] <= probe.between[1] else "no"
    return trimmed_text(GRAMMARS[probe.grammar](raw))


def _dotted(raw: Sequence[Any]) -> str:
    return ".".join(str(part) for part in raw)


def _letter_revision(raw: Sequence[int]) -> str:
    """[1, 10] -> `b.10` (Carlo Gavazzi: 0 is A)."""
    return f"{chr(ord('a') + raw[0])}.{raw[1]}" if 0 <= raw[0] < 26 else ""


def _sma(raw: Sequence[int]) -> str:
    """0x01050A04 -> `1.05.10.R`: major and minor in BCD, build, kind (SMA_Modbus-TI, format FW)."""
    major, minor, build, kind = raw[0].to_bytes(4, "big")
    return f"{major:x}.{minor:02x}.{build}.{'NEABRS'[kind] if kind < 6 else kind}"


GRAMMARS: Final[Mapping[Grammar, Callable[[Sequence[Any]], str]]] = {
    "dotted": _dotted,
    "decimal-pairs": lambda raw: f"{raw[0] // 10000}.{raw[0] // 100 % 100}.{raw[0] % 100}",
    "hundredths": lambda raw: f"{raw[0] // 100}.{raw[0] % 100:02}",
    "two-bytes": lambda raw: _dotted(list(raw[0].to_bytes(2, "big"))),
    "four-bytes": lambda raw: _dotted(list(raw[0].to_bytes(4, "big"))),
    "nibbles": lambda raw: f"{raw[0] >> 12}.{raw[0] >> 8 & 15}.{raw[0] & 255}",
    "letter-revision": _letter_revision,
    "letter-three-bytes": lambda raw: _dotted(list(raw[0].to_bytes(4, "big")[1:])),
    "sma": _sma,
    "hex-digits": lambda raw: "".join(f"{number:02X}" for number in raw),
}
"""How vendors write versions as numbers -> text."""


def trimmed(data: bytes) -> str:
    """Text without NULs and blanks at both ends."""
    return trimmed_text(data.decode("utf-8", "replace"))


def trimmed_text(text: str) -> str:
    """Without NULs and blanks at both ends."""
    return text.strip("\0 \t\r\n")
