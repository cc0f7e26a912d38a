"""gateway.config: every mistake of the file at once, each as one line at its own place, and nothing secret in any."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import ConfigErrors, load
from gateway.settings import GatewayFile, Route, kind_of

Check = Callable[[str], list[str]]

EXAMPLES = Path(__file__).parents[3] / "examples"

SHORT = """\
devices:
  press4:
    opcua: opc.tcp://10.0.0.5:4840
    tags:
      temperature: ns=2;s=Press4.Temp
send:
  scada: {from: "*", to: plant}
to:
  plant: {mqtt: mqtts://broker.plant}
"""

DESIGN = """\
gateway: {id: line1-gw, site: acme/plant1, data_dir: /var/lib/gateway}

devices:
  press4:
    opcua: opc.tcp://10.0.0.5:4840          # SignAndEncrypt with the best policy offered, unless said otherwise
    auth: {user: collector, password: ${file:/run/secrets/press4}}
    every: 100ms                            # publishing interval; inherited by tags
    tags:
      temperature: ns=2;s=Press4.Temp
      pressure: {node: ns=2;s=Press4.Press, deadband: 0.1, unit: bar}
  meter7:
    modbus: tcp://10.0.0.7:502/1            # also rtu:///dev/ttyUSB0?baud=19200&parity=E/1, rtu+tcp://, udp://, tls://
    every: 1s
    tags:                                   # added to, or instead of, the profile's
      spare_input: holding 40 int16
      flow: {register: input 12 float32, word_order: little, scale: 0.1, unit: m3/h}

send:                                       # routes
  history: {from: [press4, meter7], to: plant-kafka}
  scada:   {from: "*", to: plant-mqtt, steps: [{deadband: {percent: 1}}]}
  interlock: {from: [press4/pressure], to: plant-mqtt, fast: true}

to:                                         # destinations
  plant-mqtt: {mqtt: mqtts://broker.plant:8883, topic: "{site}/{device}", format: json}
  plant-kafka: {kafka: [k1:9092, k2:9092], topic: ot.samples}
"""

TWENTY = """\
gatewy: {id: line1-gw}                                        # 1 unknown key
gateway:
  stop_timeout: 5                                             # 2 duration without a unit
  log: {level: inof}                                          # 3 not one of the choices
devices:
  press4:
    opcua: http://10.0.0.5:4840                               # 4 no OPC UA endpoint
    security: best
    auth: {user: collector, password: "${env:NO_SUCH_NAME}"}  # 5 a secret that does not exist
    every: 100ms
    every: 200ms                                              # 6 given twice
    tags:
      temperature: Press4.Temp                                # 7 no node id
      pressure: {unit: bar}                                   # 8 a missing key
  meter7:
    modbus: tcp://10.0.0.7:502/999                            # 9 no unit id
    max_gap: many                                             # 10 not a whole number
    tags:
      flow: holding 99999 float32                             # 11 no register
  dryer2: {tags: {a: coil 1}}                                 # 12 neither opcua nor modbus
  oven 1: {opcua: "opc.tcp://h:1", tags: {a: i=1}}            # 13 not a name
  mixer: {opcua: "opc.tcp://h:1", tags: {speed: i=1}}
send:
  history: {from: [press4, mixer/sped], to: plant-kafka}      # 14 no such tag
  scada: {from: "*", to: plant-mqt}                           # 15 no such destination
  fast: {from: "*", to: plant-mqtt, fast: 3}                  # 16 not true or false
  slow: {from: "*", to: plant-mqtt, steps: [{scael: 2}]}      # 17 no such step
  deep: {from: "*", to: plant-mqtt, buffer: {memory: 1KiB}}   # 18 too small
to:
  plant-mqtt: {mqtt: mqtts://broker, topic: "{sit}/x"}        # 19 unknown placeholder
  plant-kafka: {kafka: k1:99999}                              # 20 no port
"""


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Text of a file -> its errors, without the file's name; no error is an empty list."""
    file = tmp_path / "plant.yaml"

    def lines(text: str) -> list[str]:
        file.write_text(text, "utf-8")
        try:
            load(file)
        except ConfigErrors as errors:
            assert all(str(error).startswith(f"{file}:") for error in errors.errors)
            return [str(error).removeprefix(f"{file}:") for error in errors.errors]
        return []

    return lines


def loaded(text: str, folder: Path, secret: str = "hunter2") -> tuple[GatewayFile, list[str]]:
    (folder / "plant.yaml").write_text(text, "utf-8")
    return load(folder / "plant.yaml", lambda kind, name: secret)


def test_short_file_has_safe_defaults(tmp_path: Path) -> None:
    """The short YAML file is the right one."""
    settings, warnings = loaded(SHORT, tmp_path)
    assert warnings == []
    assert settings.gateway.id and settings.gateway.listen_address() == ("127.0.0.1", 9273)
    assert kind_of(settings.devices["press4"]) == "opcua" and kind_of(settings.to["plant"]) == "mqtt"
    route = settings.send["scada"]
    assert route.from_ == ("*",) and route.steps == () and not route.fast
    assert (route.memory_bytes, route.buffer.when_full) == (16 * 2**20, "drop_oldest")


def test_memory_of_a_route() -> None:
    """All that a fast route has, so more than the copies of one on disk; what is written goes before both."""
    fast, disk = ({"from": "*", "to": "plant", "fast": fast} for fast in (True, False))
    assert [Route.model_validate(route).memory_bytes for route in (fast, disk)] == [64 * 2**20, 16 * 2**20]
    written = [Route.model_validate(route | {"buffer": {"memory": "2MiB"}}) for route in (fast, disk)]
    assert [route.memory_bytes for route in written] == [2 * 2**20, 2 * 2**20]


def test_example_of_the_design_loads(tmp_path: Path) -> None:
    """DESIGN section 6, with `${...}` unquoted in a flow mapping."""
    settings, warnings = loaded(DESIGN, tmp_path)
    assert warnings == []
    press4 = settings.devices["press4"]
    assert press4.auth.password.get_secret_value() == "hunter2"  # type: ignore[attr-defined]
    assert press4.tags["pressure"].deadband == 0.1 and settings.devices["meter7"].tags["flow"].unit == "m3/h"
    step = settings.send["scada"].steps[0]
    assert (step.word, step.setting) == ("deadband", {"percent": 1})


def test_twenty_mistakes_give_twenty_lines(check: Check) -> None:
    """One line for each mistake, at its line, in order, and none that only follows from another."""
    wanted = [number for number, line in enumerate(TWENTY.splitlines(), start=1) if re.search(r"# \d+ ", line)]
    found = check(TWENTY)
    assert len(wanted) == 20
    assert [int(line.partition(":")[0]) for line in found] == wanted, "\n".join(found)


ONE_MISTAKE = [
    ("press4:", "press/4:", "2:3: 'press/4' is not a name: use letters"),
    ("    opcua:", "    opcau:", "3:5: unknown key `opcau`: did you mean `opcua`?"),
    ("    tags:", "    tagz:", "4:5: unknown key `tagz`: did you mean `tags`?"),
    ("    tags:", "    recheck: 1h\n    tags:", "4:5: unknown key `recheck`: what this place takes is opcua, security"),
    ("    tags:", "    profile: opcua-id\n    tags:", "4:14: there is no profile `opcua-id`: did you mean `opcua-di`?"),
    ("    tags:\n      temperature: ns=2;s=Press4.Temp\n", "", "2:3: `press4`: give it `tags:`, `select:`"),
    ("      temperature: ns=2;s=Press4.Temp\n", "      {}\n", "2:3: `press4`: give it `tags:`, `select:`"),
    ("    tags:", "    select: /Press/**\n    tags:", "4:13: `select`: '/Press/**': paths begin with /Objects"),
    ("ns=2;s=Press4.Temp", "", "5:7: `temperature` has no value: write one, or leave the key out"),
    ("ns=2;s=Press4.Temp", "null", "5:20: `temperature`: has to be text or a mapping, not null"),
    ("ns=2;s=Press4.Temp", "5", "5:20: `temperature`: has to be text or a mapping, not 5"),
    ("ns=2;s=Press4.Temp", "{nod: i=1}", "5:21: unknown key `nod`: did you mean `node`?"),
    ("ns=2;s=Press4.Temp", "{node: i=1, queue: 0}", "5:39: `queue`: has to be at least 1"),
    ("ns=2;s=Press4.Temp", "{node: i=1, every: 5}", "5:39: `every`: 5 is not a duration: write a number and a unit"),
    ("ns=2;s=Press4.Temp", "{node: i=1, unit: 5}", "5:38: `unit`: has to be text, not 5: put it in quotes"),
    ("    tags:", "    modbus: tcp://h/1\n    tags:", "4:5: a device has one address: `press4` has"),
    ("    tags:", "    timeout: 0\n    tags:", "4:14: `timeout`: has to be more than 0"),
    (
        "    tags:",
        "    security: non\n    tags:",
        "4:15: `security`: 'non' is not one of best, sign, none, Aes256_Sha256_RsaPss,",
    ),
    ("    tags:", "    security: Basic256\n    tags:", "4:15: `security`: Basic256 can be broken and is not supported"),
    ("    tags:", "    security: {mode: sgin}\n    tags:", "4:22: `mode`: 'sgin' is not one of encrypt, sign: did you"),
    ("    tags:", "    trust: AB:CD\n    tags:", "4:12: `trust`: 'AB:CD' is not a SHA-256 thumbprint: 64 hex digits"),
    ("    tags:", f"    trust: {'ab' * 20}\n    tags:", f"4:12: `trust`: '{'ab' * 20}' is a SHA-1 thumbprint, which"),
    ("    tags:", "    auth: {key: a.pem}\n    tags:", "4:11: `auth`: certificate and key belong together"),
    ("    tags:", "    auth: {}\n    tags:", "4:11: `auth`: write user and password, or certificate and key"),
    ('from: "*"', "frm: '*'", "7:11: unknown key `frm`: did you mean `from`?"),
    ('"*"', "press5", "7:17: there is no device `press5` below `devices:`: did you mean `press4`?"),
    ('"*"', "press4/temprature", "7:17: device `press4` has no tag `temprature`: did you mean `press4/temperature`?"),
    ('"*"', '"oven*"', "7:17: `oven*` matches no tag of any device"),
    ('"*"', "[]", "7:17: `from`: is empty"),
    ('"*"', "[press4, 5]", "7:26: `from`: has to be text, not 5: put it in quotes"),
    (", to: plant", "", "7:3: `to:` is missing in `scada`: Name of the destination"),
    (
        "devices:",
        "devices:\n  a: {modbus: 'rtu:///dev/ttyS0/1', tags: {x: coil 1}}\n"
        "  b: {modbus: 'rtu:///dev/ttyS0?baud=9600/2', tags: {x: coil 1}}",
        "3:15: `a` has /dev/ttyS0 at 19200 8E1: devices on one port share its format",
    ),
    ("to: plant", "to: plan", "7:26: there is no destination `plan` below `to:`: did you mean `plant`?"),
    ("to: plant", "to: [plant, plant]", "7:26: `to`: a route has one destination: write a route for each"),
    ("to: plant", "to: plant, steps: [{scale: x}]", "7:49: scale takes a number, or {factor: 0.1, offset: 0}"),
    ("to: plant", "to: plant, steps: [scale]", "7:41: `steps`: has to be a mapping of `key: value` lines, not 'scale'"),
    ("to: plant", "to: plant, steps: [{scale: 1, rename: {}}]", "7:41: `steps`: a step has one key, one of select"),
    ("to: plant", "to: plant, buffer: {memory: 9}", "7:50: `memory`: 9 is not a size"),
    ("to: plant", "to: plant, buffer: {memory: 9kB}", "7:50: `memory`: has to be at least 1MiB"),
    ("to: plant", "to: plant, paths: urlc", "7:40: `plant` has no path `urlc` below `paths:`"),
    ("to: plant", "to: plant, buffer: {dsik: 9GB}", "7:42: unknown key `dsik`: did you mean `disk`?"),
    ("{mqtt: mqtts://broker.plant}", "mqtts://broker.plant", "9:10: `plant` has to be a mapping with `mqtt:` or"),
    ("mqtts://broker.plant}", "mqtts://broker.plant, qos: 2}", "9:44: `qos`: 2 is not one of 0 or 1"),
    ("mqtts://broker.plant}", "mqtts://broker.plant, tls: {cert: a}}", "9:44: `tls`: cert and key belong together"),
    ("mqtts://broker.plant}", "mqtts://broker.plant, tls: }", "9:39: `tls` has no value: write one"),
    ("to:\n  plant: {mqtt: mqtts://broker.plant}\n", "", "1:1: `to:` is missing: The destinations"),
    ("to:\n  plant: {mqtt: mqtts://broker.plant}\n", "to:\n", "8:1: `to` has no value: write one"),
    ("devices:", "gateway: {site: a//b}\ndevices:", "1:17: `site`: 'a//b' cannot be part of a topic"),
    ("devices:", "gateway: {listen: localhost}\ndevices:", "1:19: `listen`: 'localhost' is not an address and port"),
    ("devices:", "gateway: [a]\ndevices:", "1:10: `gateway`: has to be a mapping of `key: value` lines, not a list"),
    ("devices:", "? [a]\n: b\ndevices:", "1:3: a key has to be text"),
    ("temperature:", '"\\ud800x":', "5:7: half a character (\\ud800 to \\udfff) stands for nothing by itself"),
    ("ns=2;s=Press4.Temp", '"ns=2;s=\\uD83D\\uDE00"', "5:20: half a character (\\ud800 to \\udfff) stands for nothing"),
    ("ns=2;s=Press4.Temp", "!secret x", "5:20: the YAML tag !secret is not known here"),
    ("ns=2;s=Press4.Temp", "&a {node: *a}", "5:20: this alias refers to a mapping or list that contains it"),
    ("ns=2;s=Press4.Temp", "{<<: 5, node: i=1}", "5:25: `<<` takes a mapping"),
]


@pytest.mark.parametrize(("old", "new", "message"), ONE_MISTAKE, ids=[message for _, _, message in ONE_MISTAKE])
def test_one_mistake_gives_one_line(check: Check, old: str, new: str, message: str) -> None:
    """Position and words of each kind of mistake; one message, whatever pydantic says about the branches of a union."""
    assert old in SHORT
    found = check(SHORT.replace(old, new, 1))
    assert len(found) == 1 and found[0].startswith(message), found


SYNTAX = [
    ("devices:\n\tpress4: 1\n", "2:1: a tab as indentation: use spaces"),
    ("devices:\n  a: 1\n  \tb: 1\n", "3:3: a tab as indentation: use spaces"),
    ("a: b: c\n", "1:5: a `:` that does not fit here"),
    ("a:\n  b: 1\n c: 2\n", "3:2: this does not fit to the lines above: check the indentation"),
    ("a: {b: 1\nc: 2\n", "2:2: a `,` or `}` is missing: the `{` of line 1 is still open here"),
    ("a: [1, 2\nc: 2\n", "2:2: a `,` or `]` is missing: the `[` of line 1 is still open here"),
    ("a: 'x\nb: 2\n", "1:4: the quote that begins here is never closed"),
    ('a: "\\d"\n', "1:6: this backslash means nothing in double quotes"),
    ("a: {from: *}\n", "1:12: a `*` begins an alias"),
    ("a: *x\n", "1:4: an alias (`*name`) without an anchor"),
    ("a: %x\n", "1:4: a value cannot begin with `%`: put it in quotes"),
    ("a: 1\n---\nb: 2\n", "2:1: one file is one document"),
    ("a: 1\nb\n", "2:1: this line is no `key: value`"),
    ("a: \x01\n", "1:4: a character that YAML does not allow here: '\\x01'"),
    ("a: " + "[" * 100, "1:43: nested too deeply"),
    ("a: [1,,2]\n", "1:7: a value is missing before this"),
    ("a: ${env:X\n  b: 1\n", "2:4: a `:` that does not fit here"),
]


@pytest.mark.parametrize(("text", "message"), SYNTAX, ids=[message for _, message in SYNTAX])
def test_syntax_errors_are_plain_words(check: Check, text: str, message: str) -> None:
    """What is not YAML: one message with its place."""
    found = check(text)
    assert len(found) == 1 and found[0].startswith(message), found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " the file is empty"),
        (b"# nothing\n", " the file is empty"),
        (b"---\n", " the file is empty"),
        (b"\xef\xbb\xbf", " the file is empty"),
        (b"- a\n", "1:1: the file has to be a mapping"),
        (b"text\n", "1:1: the file has to be a mapping"),
        (b"a: 1\nb: \xe4\n", "2:4: this is not UTF-8 text"),
        (b"\xff\xfea\x00", "1:1: this is not UTF-8 text"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    """Content that is no mapping at all: one line."""
    file = tmp_path / "plant.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigErrors) as raised:
        load(file)
    assert str(raised.value).startswith(f"{file}:{message}") and "\n" not in str(raised.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing, a folder, unreadable: one line without a position."""
    with pytest.raises(ConfigErrors, match=r"none\.yaml: there is no such file$"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigErrors, match="this is a folder"):
        load(tmp_path)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigErrors, match="cannot be read: too many levels"):
        load(tmp_path / "loop.yaml")


def test_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Windows editors write one."""
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + SHORT.replace("\n", "\r\n").encode())
    assert load(tmp_path / "bom.yaml")[1] == []


@pytest.mark.parametrize(
    "breakage", ["    every: x\n", "    evry: 1s\n", "    auth: {user: ${env:NO_SUCH_NAME}}\n", "    <<: {5: 6}\n"]
)
def test_no_error_follows_from_a_broken_device(check: Check, breakage: str) -> None:
    """A route that names a tag of a device with mistakes may be right; so may one that names a broken destination."""
    text = SHORT.replace('"*"', "[press4, press4/no_such_tag, press*/x]").replace("    tags:", breakage + "    tags:")
    found = check(text.replace("mqtts://broker.plant", "nothing"))
    assert [line.partition(":")[0] for line in found] == ["4", "10"], found


def test_mistakes_in_merged_mappings_are_said_once(check: Check) -> None:
    """An alias brings its mistake along as often as it is used; the place is the anchor's."""
    tags = "&base {node: i=1, unit: 5}\n      b: {<<: *base, node: i=2}\n      c: *base"
    text = SHORT.replace("ns=2;s=Press4.Temp", tags)
    assert check(text) == ["5:44: `unit`: has to be text, not 5: put it in quotes"]
    assert check(text.replace("unit: 5", "unit: bar")) == []


def test_secrets_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without their line end, relative ones beside the configuration; variables, within other text too."""
    (tmp_path / "password").write_bytes(b"pa ss:${x}\r\n")
    monkeypatch.setenv("BROKER", "broker.plant")
    mqtt = "{mqtt: mqtts://${env:BROKER}:8883, retain: ${env:RETAIN}, auth: {user: a, password: ${file:password}}}"
    monkeypatch.setenv("RETAIN", "true")
    (tmp_path / "plant.yaml").write_text(SHORT.replace("{mqtt: mqtts://broker.plant}", mqtt))
    target = load(tmp_path / "plant.yaml")[0].to["plant"]
    assert target.mqtt == ("mqtts://broker.plant:8883",) and target.retain is True  # type: ignore[attr-defined]
    assert target.auth.password.get_secret_value() == "pa ss:${x}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${env:NO_SUCH_NAME}", "the environment variable NO_SUCH_NAME is not set"),
        ("${env:EMPTY}", "the environment variable EMPTY is empty"),
        ("${file:/no/such/file}", "the file /no/such/file cannot be read: no such file or directory"),
        ("${file:/}", "the file / cannot be read: is a directory"),
        ("${file:/dev/zero}", "the file /dev/zero is larger than 64 KiB"),
        ("${file:/dev/null}", "the file /dev/null is empty"),
        ("${vault:x}", "${vault:x} is not known: write ${file:/path/of/a/file} or ${env:NAME}"),
        ("${}", "${} is not known: write ${file:/path/of/a/file} or ${env:NAME}"),
        ("${file:}", "${file:} is not known: write ${file:/path/of/a/file} or ${env:NAME}"),
        ("${env:X", "`${` is never closed by `}`"),
    ],
)
def test_unresolved_secrets(check: Check, monkeypatch: pytest.MonkeyPatch, reference: str, message: str) -> None:
    """One line that names the file or variable, at the value."""
    monkeypatch.setenv("EMPTY", "")
    assert check(SHORT.replace("mqtts://broker.plant", f'"{reference}"')) == [f"9:17: {message}"]


SECRET = "S3cr3t-value"


@pytest.mark.parametrize(
    "wrong",
    [
        SHORT.replace("opc.tcp://10.0.0.5:4840", "${env:S}"),
        SHORT.replace("    tags:", "    every: ${env:S}\n    tags:"),
        SHORT.replace("    tags:", "    security: ${env:S}\n    tags:"),
        SHORT.replace("    tags:", "    queue: ${env:S}\n    tags:"),
        SHORT.replace("    tags:", "    auth: ${env:S}\n    tags:"),
        SHORT.replace("ns=2;s=Press4.Temp", "${env:S}"),
        SHORT.replace("to: plant}", "to: plant, steps: [{scale: ${env:S}}]}"),
        SHORT.replace("to: plant}", "to: plant, fast: ${env:S}}"),
        SHORT.replace("mqtts://broker.plant", "${env:S}"),
        SHORT.replace("mqtts://broker.plant", "mqtts://broker.plant, topic: '{${env:S}}'"),
        SHORT.replace("{mqtt: mqtts://broker.plant}", "{kafka: [k1, '${env:S} !']}"),
        SHORT.replace("{mqtt: mqtts://broker.plant}", "{kafka: ['${env:S} !']}"),
        SHORT.replace("mqtts://broker.plant", f"mqtts://broker.plant, auth: {{user: u, password: [{SECRET}]}}"),
        SHORT.replace("mqtts://broker.plant", f"ftp://u:{SECRET}@broker.plant"),
        SHORT.replace("opc.tcp://10.0.0.5:4840", f"http://u:{SECRET}@10.0.0.5"),
    ],
)
def test_errors_show_no_secret(check: Check, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Neither what `${...}` gives, nor what stands in a secret's place, nor a password in an address."""
    monkeypatch.setenv("S", SECRET)
    found = check(wrong)
    assert len(found) == 1 and SECRET not in found[0], found


def test_exception_carries_no_value_of_the_file(tmp_path: Path) -> None:
    """A traceback of ConfigErrors must not drag pydantic's along: that one shows values."""
    with pytest.raises(ConfigErrors) as raised:
        loaded(SHORT.replace("opc.tcp://10.0.0.5:4840", "${env:S}"), tmp_path, SECRET)
    assert raised.value.__context__ is None and SECRET not in str(raised.getrepr(style="long", showlocals=False))


def test_what_nothing_uses_is_a_warning(tmp_path: Path) -> None:
    """Not an error: a file may grow step by step."""
    text = SHORT + "  spare: {kafka: k1}\n"
    text = text.replace("send:", "  lonely: {opcua: opc.tcp://h:1, tags: {a: i=1}}\nsend:").replace('"*"', "press4")
    _, warnings = loaded(text, tmp_path)
    file = tmp_path / "plant.yaml"
    assert warnings == [
        f"{file}:6:3: no route takes anything from `lonely`: it is collected for nobody",
        f"{file}:11:3: no route sends to `spare`",
    ]


def test_keys_and_core_types_as_written(tmp_path: Path) -> None:
    """Keys are text even where YAML sees a number; `on` and `1_0` are text; the core schema's numbers are numbers."""
    tags = "{1: i=1, on: i=2, 1.50: {node: i=3, scale: 1e3, offset: -.5, deadband: 0x10, unit: on}}"
    settings, _ = loaded(SHORT.replace("\n      temperature: ns=2;s=Press4.Temp", f" {tags}"), tmp_path)
    assert list(settings.devices["press4"].tags) == ["1", "on", "1.50"]
    tag = settings.devices["press4"].tags["1.50"]
    assert (tag.scale, tag.offset, tag.deadband, tag.unit) == (1000.0, -0.5, 16.0, "on")


def _leaves() -> list[tuple[int, int, str]]:
    """Line, column and text of every simple `key: value` in a block of examples/plant.yaml."""
    found = []
    for number, line in enumerate((EXAMPLES / "plant.yaml").read_text("utf-8").splitlines(), start=1):
        match = re.match(r"( *(?:- )?[\w-]+: )([^\[{ #].*?)( {2,}#.*)?$", line)
        if match and not line.startswith("#"):
            found.append((number, len(match[1]) + 1, match[2]))
    return found


@pytest.mark.parametrize(("line", "column", "value"), _leaves())
def test_every_value_of_the_example_made_a_list(tmp_path: Path, line: int, column: int, value: str) -> None:
    """Whatever the field, the wrong shape is exactly one message at the value's place."""
    lines = (EXAMPLES / "plant.yaml").read_text("utf-8").splitlines()
    lines[line - 1] = lines[line - 1][: column - 1] + "[[x]]"
    with pytest.raises(ConfigErrors) as raised:
        loaded("\n".join(lines), tmp_path)
    assert [(error.line, error.column // column) for error in raised.value.errors] == [(line, 1)], str(raised.value)


@pytest.mark.parametrize("seed", range(150))
def test_damaged_files_give_errors_and_nothing_else(tmp_path: Path, seed: int) -> None:
    """Random damage to the example: it loads or raises ConfigErrors, never another exception."""
    chance = random.Random(seed)
    text = (EXAMPLES / "plant.yaml").read_text("utf-8")
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(text)), chance.choice([0, 1, 1, 5, 40])
        put = chance.choice(["", "\t", "{", "]", ": ", "- ", '"', "&a ", "*a", "<<: ", "\n", "5", "${"])
        text = text[:at] + put + text[at + size :]
    try:
        loaded(text, tmp_path)
    except ConfigErrors as errors:
        assert errors.errors and all(error.message for error in errors.errors)


def test_interfaces_of_this_host(check: Check, tmp_path: Path) -> None:
    """One that is not there: for `check` a mistake, when the gateway starts a warning, nothing for another host."""
    text = SHORT.replace("plant: {mqtt:", "plant: {network: {bind: lo}, paths: {a: {bind: lo0}}, mqtt:")
    assert check(text) == []
    path = tmp_path / "interfaces.yaml"
    path.write_text(text)
    line = f"{path}:9:50: bind: there is no interface `lo0`: did you mean `lo`?"
    assert load(path)[1] == [line]
    assert load(path, interfaces="elsewhere")[1] == []
    with pytest.raises(ConfigErrors) as refused:
        load(path, interfaces="wanted")
    assert str(refused.value) == line
