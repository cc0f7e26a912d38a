"""What the file may say of a Modbus device, and the one line it gets when it says something else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from connectors.modbus_plan import DataType, Point, Table, WordOrder
from connectors.modbus_reads import describe_plan
from connectors.modbus_settings import ModbusDevice, parse_register
from connectors.modbus_url import SerialFormat, parse_url


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("holding 40 int16", Point("", Table.HOLDING, 40, 1, DataType.INT16)),
        ("input 12 float32", Point("", Table.INPUT, 12, 2, DataType.FLOAT32)),
        ("holding 0x28 uint64", Point("", Table.HOLDING, 40, 4, DataType.UINT64)),
        ("HOLDING 007 Int32", Point("", Table.HOLDING, 7, 2, DataType.INT32)),
        ("holding 12.3 bool", Point("", Table.HOLDING, 12, 1, DataType.BOOL, bit=3)),
        ("holding 12.15", Point("", Table.HOLDING, 12, 1, DataType.BOOL, bit=15)),
        ("coil 7", Point("", Table.COIL, 7, 1, DataType.BOOL)),
        ("discrete 65535 bool", Point("", Table.DISCRETE, 65535, 1, DataType.BOOL)),
        ("holding 100 string 15", Point("", Table.HOLDING, 100, 8, DataType.STRING, length=15)),
        ("holding 100.low string 7", Point("", Table.HOLDING, 100, 7, DataType.STRING, length=7, half="low")),
        ("holding 40 uint8", Point("", Table.HOLDING, 40, 1, DataType.UINT8, half="low")),
        ("holding 40.HIGH int8", Point("", Table.HOLDING, 40, 1, DataType.INT8, half="high")),
        ("holding 40 float32[3]", Point("", Table.HOLDING, 40, 6, DataType.FLOAT32, items=3)),
        ("coil 7 bool[9]", Point("", Table.COIL, 7, 9, DataType.BOOL, items=9)),
        ("input 7 bcd32", Point("", Table.INPUT, 7, 2, DataType.BCD32)),
        ("holding 7 unix64-ms", Point("", Table.HOLDING, 7, 4, DataType.UNIX64_MS)),
    ],
)
def test_a_register_is_named_by_table_address_and_type(text: str, point: Point) -> None:
    assert parse_register(text) == point


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a register"),
        ("40041", "is not a register"),
        ("holding forty int16", "is not a register"),
        ("holdings 40 int16", "there is no table 'holdings'"),
        ("holding 40", "the type is missing"),
        ("holding 40 word", "there is no type 'word'"),
        ("holding 40 bool", "needs its bit"),
        ("holding 40.3 int16", "only a bool has one"),
        ("holding 40.16 bool", "bits 0"),
        ("coil 7 int16", "is a single bit"),
        ("coil 7.1", "is a single bit"),
        ("holding 100 string", "length in characters"),
        ("holding 100 int16 4", "length in characters"),
        ("holding 100 string 0", "1 to 250 characters"),
        ("holding 65535 int32", "beyond address 65535"),
        ("holding 70000 int16", "beyond address 65535"),
        ("holding 40.low int16", "only int8, uint8 and strings"),
        ("holding 40.3 uint8", "only a bool has one"),
        ("holding 40 uint8[3]", "arrays are of numbers in whole registers"),
        ("holding 40 int16[0]", "1 value or more"),
        ("holding 40 int64[40]", "at most 125 registers"),
        ("holding 40.3 bool[3]", "arrays are of numbers in whole registers"),
    ],
)
def test_a_wrong_register_is_one_clear_line(text: str, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_register(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_urls_have_defaults_for_port_and_unit() -> None:
    assert str(parse_url("tcp://meter")) == "tcp://meter:502/1"
    assert str(parse_url("rtu+tcp://10.0.0.8:4001/17")) == "rtu+tcp://10.0.0.8:4001/17"
    assert str(parse_url("tcp://[::1]:1502/0")) == "tcp://[::1]:1502/0"
    assert parse_url("rtu+tcp://10.0.0.8").rtu
    assert str(parse_url("udp://meter")) == "udp://meter:502/1"
    assert str(parse_url("tls://meter/7")) == "tls://meter:802/7"


def test_serial_urls_name_the_port_its_format_and_the_unit() -> None:
    url = parse_url("rtu:///dev/ttyUSB0?baud=9600&parity=n&stop=2/17")
    assert (url.host, url.unit, url.serial) == ("/dev/ttyUSB0", 17, SerialFormat(9600, "N", 2))
    assert (str(url), str(url.serial)) == ("rtu:///dev/ttyUSB0/17", "9600 8N2")
    assert parse_url("rtu:///dev/ttyUSB0").serial == SerialFormat(19_200, "E", 1)
    assert str(parse_url("rtu:///dev/ttyS1?rs485=1/3").serial) == "19200 8E1 RS-485"
    assert [parse_url(f"rtu:///dev/pts/3{unit}").unit for unit in ("/5", "?baud=9600/5", "?/5")] == [5, 5, 5]


def test_the_silence_between_frames_is_the_standards() -> None:
    """Serial Line V1.02, section 2.5.1.1: 3.5 characters of 11 bits; 1.75 ms above 19200 baud."""
    assert [round(SerialFormat(baud).silence_s * 1e3, 2) for baud in (9600, 19_200, 38_400, 115_200)] == [
        4.01,
        2.01,
        1.75,
        1.75,
    ]


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"modbus": "rtu:///dev/ttyUSB0", "pipeline": 2}, "one request at a time"),
        ({"modbus": "tcp://x", "echo": True}, "only serial frames"),
        ({"modbus": "tcp://x", "tls": {}}, "write tls://host:802"),
    ],
)
def test_what_a_transport_cannot_do_is_refused(keys: dict[str, object], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        ModbusDevice.model_validate({**keys, "tags": {"a": "coil 1"}})


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("rtu:///dev/ttyUSB0?baud=fast/1", "`baud=fast` is none of"),
        ("rtu:///dev/ttyUSB0?parity=X/1", "`parity=X` is none of"),
        ("rtu:///dev/ttyUSB0?speed=9600/1", "`speed=9600` is none of"),
        ("rtu:///dev/ttyUSB0?baud=9600/248", "the unit id behind the port is a number from 1 to 247"),
        ("rtu://ttyUSB0/1", "write three slashes"),
        ("rtu:///", "write three slashes"),
        ("http://meter", "is not a Modbus address"),
        ("meter:502", "is not a Modbus address"),
        ("tcp://", "is not a Modbus address"),
        ("tcp://user:secret@meter", "is not a Modbus address"),
        ("tcp://meter:99999/1", "the port is"),
        ("tcp://meter:0/1", "the port is"),
        ("tcp://meter:502/256", "the unit id"),
        ("tcp://meter:502/one", "the unit id"),
        ("rtu+tcp://meter:502/0", "the unit id"),
    ],
)
def test_a_wrong_url_is_one_clear_line(url: str, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_url(url)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tag_is_a_text_or_a_mapping_and_inherits_from_the_device() -> None:
    device = ModbusDevice.model_validate(
        {
            "modbus": "tcp://10.0.0.7:502/1",
            "word_order": "little",
            "tags": {
                "spare": "holding 40 int16",
                "flow": {"register": "input 12 float32", "scale": 0.1, "unit": "m3/h", "every": "5s"},
                "total": {"register": "input 20 uint32", "word_order": "big"},
            },
        }
    )
    by_period = device.points()
    assert list(by_period) == [10**9, 5 * 10**9]
    assert [point.name for point in by_period[10**9]] == ["spare", "total"]
    assert [point.order for point in by_period[10**9]] == [WordOrder.LITTLE, WordOrder.BIG]
    assert by_period[5 * 10**9][0].order is WordOrder.LITTLE


def test_errors_are_found_at_their_key() -> None:
    with pytest.raises(ValidationError) as caught:
        ModbusDevice.model_validate(
            {
                "modbus": "http://x",
                "max_block": 126,
                "tags": {"a": "holding 1", "b": {"register": "coil 1", "scael": 1}},
            }
        )
    places = {error["loc"] for error in caught.value.errors()}
    assert places == {("modbus",), ("max_block",), ("tags", "a", "register"), ("tags", "b", "scael")}


def test_a_value_must_fit_one_read() -> None:
    with pytest.raises(ValidationError, match="tag name: needs 16 registers in one read, max_block is 10"):
        ModbusDevice.model_validate({"modbus": "tcp://x", "max_block": 10, "tags": {"name": "holding 1 string 32"}})


def test_every_key_is_described_for_the_schema() -> None:
    schema = ModbusDevice.model_json_schema()
    for model in (schema, schema["$defs"]["ModbusTag"]):
        assert all(key.get("description") for key in model["properties"].values())
    assert "register" in schema["$defs"]["ModbusTag"]["properties"]


@pytest.mark.parametrize(
    ("tag", "part"),
    [
        ({"register": "holding 1 int16", "encoding": "latin-1"}, "encoding is for strings"),
        ({"register": "holding 1 string 4", "encoding": "klingon"}, "is not a code page"),
        ({"register": "holding 1 int16", "values": {1: "a"}, "bits": {1: "b"}}, "a tag has one of them"),
        ({"register": "holding 1 float32", "values": {1: "a"}}, "for integers without scale"),
        ({"register": "holding 1 int16", "values": {1: "a"}, "scale": 0.1}, "for integers without scale"),
        ({"register": "holding 1 uint16", "bits": {16: "a"}}, "has the bits 0 to 15"),
        ({"register": "holding 1 uint8", "bits": {8: "a"}}, "has the bits 0 to 7"),
        ({"register": "holding 1 int16[2]", "scale": 0.1}, "not for arrays"),
        ({"register": "holding 1 string 4", "scale_from": "holding 2 int16"}, "for single numbers"),
        ({"register": "holding 1 int16", "scale_from": "holding 2 float32"}, "not an integer register"),
        ({"register": "holding 1 int16", "scale_from": "input 2 int16"}, "must be a holding register"),
        ({"register": "coil 1", "invalid": [1]}, "invalid is for numbers and strings"),
        ({"register": "holding 1 int16", "invalid": ["none"]}, "numbers for a number"),
        ({"register": "holding 1 string 4", "invalid": [0]}, "numbers for a number"),
    ],
)
def test_options_must_fit_the_type(tag: dict[str, object], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        ModbusDevice.model_validate({"modbus": "tcp://x", "tags": {"a": tag}})


def test_a_tag_becomes_a_point_with_all_that_it_says() -> None:
    scaled = {"register": "holding 1 int16", "scale_from": "holding 9 int16", "invalid": [-32768]}
    named = {"register": "holding 1 int16", "values": {2: "b", 1: "a"}}
    device = ModbusDevice.model_validate(
        {"modbus": "tcp://x", "word_order": "little", "tags": {"a": scaled, "b": named}}
    )
    [[point, _]] = device.points().values()
    assert (point.name, point.order, point.invalid) == ("a", WordOrder.LITTLE, (-32768,))
    assert point.scale_from == Point("", Table.HOLDING, 9, 1, DataType.INT16, WordOrder.LITTLE)
    assert device.tags["b"].labels == ((1, "a"), (2, "b"))


def test_strings_follow_the_byte_order_of_the_device_and_their_own_order_wholly() -> None:
    tags = {"a": "holding 1 string 4", "b": {"register": "holding 1 string 4", "word_order": "little-byte-swapped"}}
    device = ModbusDevice.model_validate({"modbus": "tcp://x", "word_order": "little-byte-swapped", "tags": tags})
    [points] = device.points().values()
    assert [point.order for point in points] == [WordOrder.BIG_BYTE_SWAPPED, WordOrder.LITTLE_BYTE_SWAPPED]


def test_forbidden_ranges_are_kept_apart_from_tags() -> None:
    tags = {"a": "holding 1 int16", "b": "holding 4 int16"}
    device = ModbusDevice.model_validate(
        {"modbus": "tcp://x", "forbidden": ["holding 2 - 0x3", "input 4"], "tags": tags}
    )
    assert describe_plan(device) == [
        "every 1s: holding 1 (1 register, 1 tag)",
        "every 1s: holding 4 (1 register, 1 tag)",
    ]
    with pytest.raises(ValidationError, match="tag b: holding 4 is in the forbidden range holding 3-4"):
        ModbusDevice.model_validate({"modbus": "tcp://x", "forbidden": ["holding 3-4"], "tags": tags})
    for wrong in ("holding", "holding 5-3", "holdings 5", "holding 5-70000"):
        with pytest.raises(ValidationError, match="forbidden"):
            ModbusDevice.model_validate({"modbus": "tcp://x", "forbidden": [wrong], "tags": tags})


def test_describe_plan_is_one_line_a_request() -> None:
    tags = {f"t{at}": f"holding {at} int16" for at in range(40)} | {"far": "holding 46 uint32", "on": "coil 3"}
    tags |= {"slow": {"register": "input 5 int16", "every": "1m"}}  # type: ignore[dict-item]
    assert describe_plan(ModbusDevice.model_validate({"modbus": "tcp://x", "tags": tags})) == [
        "every 1s: holding 0-47 (48 registers, 41 tags, 1 gap bridged)",
        "every 1s: coil 3 (1 bit, 1 tag)",
        "every 1m: input 5 (1 register, 1 tag)",
    ]


def test_a_profile_s_value_that_is_longer_than_max_block_is_read_whole() -> None:
    device = ModbusDevice.model_validate({"modbus": "tcp://x", "profile": "eastron-sdm120", "max_block": 1})
    assert "(2 registers, 1 tag)" in describe_plan(device)[0]
