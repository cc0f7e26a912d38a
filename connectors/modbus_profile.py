"""The profile of a Modbus device: its registers, how it is asked, what differs between its firmware versions. Pure.

`resolve` makes a `RegisterMap` for what is known of one device. Overrides apply in their order where their condition
holds. A firmware that the sources do not cover gets the map of the nearest one that they do, with every tag flagged
uncertain; where the firmware could not be learnt the oldest map is used, and the tags that are not the same in all
versions are flagged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from connectors.modbus_convert import Meaning
from connectors.modbus_plan import REGISTERS_MAX, DataType, Point, WordOrder, scaled_by
from connectors.modbus_register import RangeText, RegisterText, parse_point, parse_register
from connectors.modbus_settings import ModbusDevice, WordOrderName
from connectors.modbus_url import Manners
from connectors.profile import (
    Condition,
    Facts,
    ProfileBase,
    doubts,
    fits,
    merged,
    versions,
)
from pipelines.quantities import Duration, Settings

Grammar = Literal[
    "dotted",
    "decimal-pairs",
    "hundredths",
    "two-bytes",
    "four-bytes",
    "letter-three-bytes",
    "nibbles",
    "letter-revision",
    "sma",
    "hex-digits",
]

ONE_VALUE: Final = -1
"""As `max_gap`: not even registers side by side are read together."""


def _as_register(value: Any) -> Any:
    return {"register": value} if isinstance(value, str) else value


class ProfileTag(Settings):
    """One value: `voltage: input 0 float32`, or a mapping with these keys."""

    place: RegisterText = Field(
        alias="register", description="As in the configuration file: `input 52 int32`, `holding 0x5B00 uint32`."
    )
    word_order: WordOrderName | None = Field(None, description="Default: the profile's.")
    unit: str = Field("", description="UCUM code of the value behind `scale`: `V`, `kW.h`, `Cel`; `1` for a ratio.")
    scale: float = Field(1.0, description="Factor; the result is a Double.")
    offset: float = Field(0.0, description="Added after `scale`.")
    scale_from: str | None = Field(
        None, description="Name of the tag whose value is the power of ten to multiply by, read in the same cycle."
    )
    invalid: list[int | float] = Field([], description="Raw values that mean that there is no value; `.nan` for NaN.")
    labels: dict[int, str] = Field({}, description="Names of numbers: an enumeration.")
    bits: dict[int, str] = Field({}, description="Names of bits, 0 the least significant.")
    hidden: bool = Field(False, description="No tag: it is only there for others (`scale_from`).")
    grade: Literal["A", "B", "C"] | None = Field(None, description="Default: the profile's.")
    note: str = Field("", description="For people.")


class Probe(Settings):
    """Registers to read, and the fact that they give. A register that is not there gives none."""

    gives: str = Field(
        description="Name of the fact: `model`, `firmware`, `map`, `serial`, or one of your own. Of several that "
        "give the same fact, the first that is there."
    )
    read: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="Register, or a list of them; each is read alone, exactly as long as it is."
    )
    within: RangeText | None = Field(
        None, description="`holding 64001-64027`: where only a read of exactly these registers is answered."
    )
    word_order: WordOrderName | None = Field(None, description="Default: the profile's.")
    grammar: Grammar = Field("dotted", description="How numbers become a text; `dotted` joins several by dots.")
    values: dict[int | str, str] = Field({}, description="What a raw value means; any other gives no fact.")
    between: tuple[float, float] | None = Field(
        None, description="Gives the fact `yes` for a number in here, `no` for another."
    )

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        kinds = {parse_register(text).type for text in self.registers}
        if self.grammar != "dotted" and kinds - {DataType.UINT16, DataType.UINT32}:
            raise ValueError(f"{self.gives}: {self.grammar} is read from uint16 or uint32")
        return self

    @property
    def registers(self) -> list[str]:
        """`read` as a list."""
        return [self.read] if isinstance(self.read, str) else self.read


class Polling(Settings):
    """How the device wants to be asked. What the configuration file says itself comes first."""

    max_block: int | None = Field(None, ge=1, le=REGISTERS_MAX, description="Registers in one request at most.")
    max_gap: int | None = Field(None, ge=0, le=REGISTERS_MAX, description="Unused registers read along at most.")
    one_value: bool = Field(False, description="One value per request.")
    forbidden: list[RangeText] = Field([], description="Ranges that no read may touch: `holding 100-119`.")
    every: Duration | None = Field(None, gt=0, description="Poll period, where the file has none.")
    pause: Duration | None = Field(None, ge=0, description="Between two requests at least.")
    timeout: Duration | None = Field(None, gt=0, description="For each request.")

    def limits(self, settings: ModbusDevice) -> tuple[int, int]:
        """`max_gap` and `max_block` for the planner."""
        said = settings.model_fields_set
        gap = settings.max_gap if self.max_gap is None or "max_gap" in said else self.max_gap
        size = settings.max_block if self.max_block is None or "max_block" in said else self.max_block
        return ONE_VALUE if self.one_value else gap, size

    def patience(self, settings: ModbusDevice) -> tuple[int, Manners]:
        """Time-out of a request in ns, and how the line is treated."""
        said = settings.model_fields_set
        timeout_ns = settings.timeout if self.timeout is None or "timeout" in said else self.timeout
        pause_ns = settings.pause if self.pause is None or "pause" in said else self.pause
        return timeout_ns, replace(settings.manners, pause_ns=pause_ns)


class SunSpecPoint(Settings):
    """A point of a SunSpec model; `at` counts registers from the model's id."""

    at: int = Field(ge=0, description="Offset from the register that holds the model's id.")
    type: str = Field(description="`uint16`, `float32`, `string 16`, ...")
    scale_from: str | None = Field(None, description="Name of the point with the power of ten.")
    unit: str = Field("", description="UCUM code.")
    labels: dict[int, str] = Field({}, description="Names of numbers.")
    bits: dict[int, str] = Field({}, description="Names of bits.")


class SunSpecBlocks(Settings):
    """The part of a model that repeats to its end."""

    at: int = Field(description="Offset of the first block.")
    length: int = Field(ge=1, description="Registers in each.")
    points: dict[str, SunSpecPoint] = Field(description="`at` counts from the block's first register.")


class SunSpecModel(Settings):
    """One or several SunSpec models with the same points."""

    ids: list[int] = Field(min_length=1, description="Model ids.")
    name: str = Field(description="First part of the tags' names: `inverter`, then `inverter2`, ...")
    points: dict[str, SunSpecPoint] = Field(description="By SunSpec's names.")
    blocks: SunSpecBlocks | None = Field(None, description="What repeats.")
    renamed: dict[int, dict[str, str]] = Field({}, description="Model id -> points that it calls otherwise.")


class Override(Settings):
    """What is different where a condition holds."""

    when: Condition = Field(description="Fact -> range or pattern, as in `match`.")
    tags: dict[str, str | dict[str, Any] | None] = Field(
        {}, description="Tags that are added, changed key by key, or (null) not there."
    )
    word_order: WordOrderName | None = Field(None, description="Of the whole device.")
    poll: Polling | None = Field(None, description="Keys that are different.")
    note: str = Field("", description="Why, and where that is written.")


class ModbusProfile(ProfileBase):
    """A family of Modbus devices."""

    protocol: Literal["modbus"] = Field(description="What the device speaks.")
    word_order: WordOrderName = Field("big", description="Order of words and bytes in values of several registers.")
    identify: list[Probe] = Field([], description="Asked in this order when the device is connected.")
    poll: Polling = Field(Polling.model_validate({}), description="How the device wants to be asked.")
    tags: dict[str, Annotated[ProfileTag, BeforeValidator(_as_register)]] = Field({}, description="Its values.")
    overrides: list[Override] = Field([], description="Differences, applied in this order.")
    sunspec: list[SunSpecModel] = Field([], description="The SunSpec models whose points become tags.")

    @property
    def conditions(self) -> list[Condition]:
        """On which something differs."""
        return [override.when for override in self.overrides]

    @model_validator(mode="after")
    def _branches(self) -> Self:
        """Every version's map is made once: a wrong register or name in an override is found when the file is read."""
        for facts in versions(self.covers, self.conditions, {}):
            _mapped(self, facts)
        for override in self.overrides:
            for name, tag in override.tags.items():
                unit = tag.get("unit") if isinstance(tag, dict) else None
                if unit is not None and name in self.tags and unit != self.tags[name].unit:
                    raise ValueError(f"tag {name}: an override cannot change its unit: give the new one another name")
        return self


@dataclass(frozen=True, slots=True)
class MappedTag:
    """One tag of a device as it is now."""

    point: Point
    meaning: Meaning
    unit: str = ""
    names: tuple[tuple[int, str], ...] = ()
    bits: bool = False


@dataclass(frozen=True, slots=True)
class RegisterMap:
    """What a device's registers mean, and how it is asked."""

    tags: Mapping[str, MappedTag]
    poll: Polling
    uncertain: str = ""
    """Why tags are flagged; empty where none is."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A device's SunSpec models in their order: (model id, address of that id, length)."""

    models: tuple[tuple[int, int, int], ...] = field(default=())


def resolve(profile: ModbusProfile, facts: Facts, chain: Chain = Chain()) -> RegisterMap:
    """What is known of one device -> its map."""
    found = [_mapped(profile, known) for known in versions(profile.covers, profile.conditions, facts)]
    oldest = found[0]
    doubtful, why = doubts(profile.covers, profile.conditions, facts, [one.tags for one in found])
    tags = {name: _flagged(tag) if name in doubtful else tag for name, tag in oldest.tags.items()}
    return RegisterMap({**tags, **dict(_sunspec_tags(profile, chain))}, oldest.poll, why)


def _flagged(tag: MappedTag) -> MappedTag:
    return MappedTag(tag.point, tag.meaning._replace(uncertain=True), tag.unit, tag.names, tag.bits)


def _mapped(profile: ModbusProfile, facts: Facts) -> RegisterMap:
    """The tags of one version, none of them flagged. Raises ValueError."""
    tags: dict[str, ProfileTag] = dict(profile.tags)
    order, poll = profile.word_order, profile.poll
    for override in profile.overrides:
        if not fits(override.when, facts):
            continue
        order = override.word_order or order
        if override.poll:
            poll = poll.model_copy(update={key: getattr(override.poll, key) for key in override.poll.model_fields_set})
        for name, change in override.tags.items():
            if change is None:
                tags.pop(name, None)
                continue
            old = tags[name].model_dump(by_alias=True, exclude_unset=True) if name in tags else {}
            tags[name] = ProfileTag.model_validate(merged(old, _as_register(change)))
    return RegisterMap({name: _tag(name, tags, order) for name, tag in tags.items() if not tag.hidden}, poll)


def _tag(name: str, tags: Mapping[str, ProfileTag], order: WordOrderName) -> MappedTag:
    tag = tags[name]
    point = replace(_point(name, tag, order), invalid=tuple(tag.invalid))
    if tag.scale_from is not None:
        if tag.scale_from not in tags:
            raise ValueError(f"tag {name}: scale_from: there is no tag {tag.scale_from!r}")
        point = scaled_by(point, _point("", tags[tag.scale_from], order))
    meaning = Meaning(tag.scale, tag.offset, double=bool(tag.model_fields_set & {"scale", "offset"}))
    names = tuple((tag.bits or tag.labels).items())
    return MappedTag(point, meaning, tag.unit, names, bool(tag.bits))


def _point(name: str, tag: ProfileTag, order: WordOrderName) -> Point:
    own = WordOrder(tag.word_order) if tag.word_order else None
    return parse_point(tag.place, name, own, WordOrder(order))


_NOT_IMPLEMENTED: Mapping[str, tuple[float, ...]] = {
    "int16": (-0x8000,),
    "uint16": (0xFFFF,),
    "int32": (-0x8000_0000,),
    "uint32": (0xFFFF_FFFF,),
    "int64": (-0x8000_0000_0000_0000,),
    "uint64": (0xFFFF_FFFF_FFFF_FFFF,),
    "float32": (float("nan"),),
    "float64": (float("nan"),),
}
"""SunSpec's value of a point that a device does not have."""


def _sunspec_tags(profile: ModbusProfile, chain: Chain) -> Iterator[tuple[str, MappedTag]]:
    """Every point of the models that the device has, as far as the device's own length of the model goes."""
    models = {number: model for model in profile.sunspec for number in model.ids}
    seen: dict[str, int] = {}
    for number, start, length in chain.models:
        model = models.get(number)
        if model is None:
            continue
        seen[model.name] = seen.get(model.name, 0) + 1
        name = model.name if seen[model.name] == 1 else f"{model.name}{seen[model.name]}"
        stop = start + 2 + length
        places = _places(model.points, start, stop)
        yield from _points(name, model.points, places, places, model.renamed.get(number, {}))
        if model.blocks:
            for at, first in enumerate(range(start + model.blocks.at, stop, model.blocks.length), start=1):
                if first + model.blocks.length <= stop:
                    own = _places(model.blocks.points, first, stop)
                    yield from _points(f"{name}_{at}", model.blocks.points, own, places | own, {})


def _places(points: Mapping[str, SunSpecPoint], start: int, stop: int) -> dict[str, Point]:
    """Those that lie within the device's model."""
    places = {name: parse_register(f"holding {start + point.at} {point.type}") for name, point in points.items()}
    return {name: place for name, place in places.items() if place.stop <= stop}


def _points(
    prefix: str,
    points: Mapping[str, SunSpecPoint],
    places: Mapping[str, Point],
    scales: Mapping[str, Point],
    renamed: Mapping[str, str],
) -> Iterator[tuple[str, MappedTag]]:
    """Tags of what is no scale itself; none of a value whose scale the device does not have."""
    factors = {point.scale_from for point in points.values()}
    for known, place in places.items():
        point = points[known]
        if known in factors or known.endswith("_SF") or (point.scale_from and point.scale_from not in scales):
            continue
        name = f"{prefix}_{renamed.get(known, known)}"
        value = replace(place, name=name, invalid=_NOT_IMPLEMENTED.get(point.type, ()))
        if point.scale_from:
            value = scaled_by(value, scales[point.scale_from])
        names = tuple((point.bits or point.labels).items())
        yield name, MappedTag(value, Meaning(), point.unit, names, bool(point.bits))
