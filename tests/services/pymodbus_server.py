"""A pymodbus server in a process of its own: the wrapper for tests, and (run as a program) the server.

    python -m tests.services.pymodbus_server PLACE TRANSPORT [CA CERT KEY] < commands

PLACE is a TCP or UDP port, or the path of a serial port; TRANSPORT is the scheme of its URL. With certificates (tls)
clients must show one that the CA signed.

The first line in is the image, JSON: {"holding": {"100": [1, 2]}, "input": ..., "coils": ..., "discrete": ...}, blocks
by their start address; what is in no block is answered with exception 2. Later lines, JSON: {"delay_ms": 50},
{"set": ["holding", 100, [5]]}, {"silent": true}. Lines out: `ready`, then `done` after each command. The end of stdin
stops it.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pymodbus import FramerType, ModbusDeviceIdentification
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusTlsServer, ModbusUdpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from tests.services import libmodbus
from tests.services.ports import HOST, free_port
from tests.services.process import ServerProcess, Service
from tests.services.serial_line import SerialService
from tests.services.tls import Certificates

Transport = Literal["tcp", "udp", "tls"]
Kind = Literal["coils", "discrete", "holding", "input"]
Image = Mapping[Kind, Mapping[int, Sequence[int]]]

IDENTITY = ModbusDeviceIdentification(  # type: ignore[no-untyped-call]
    {0: "Acme", 1: "PM-1", 2: "1.2.3", 4: "Power meter", 5: "PM-1 light"}
)
"""What the server answers to function 43."""

_KINDS: tuple[Kind, ...] = ("coils", "discrete", "holding", "input")  # in the order of SimDevice's blocks
_BY_FUNCTION = {1: "coils", 2: "discrete", 3: "holding", 4: "input"}


def same_image_as_libmodbus() -> Image:
    """The default image: addresses below libmodbus.LIMIT hold what the foreign server holds."""
    addresses = range(libmodbus.LIMIT)
    return {
        "coils": {0: [int(libmodbus.coil(address)) for address in addresses]},
        "discrete": {0: [int(libmodbus.discrete_input(address)) for address in addresses]},
        "holding": {0: [libmodbus.holding(register) for register in addresses]},
        "input": {0: [libmodbus.input_register(register) for register in addresses]},
    }


class PymodbusServer(Service):
    """A Modbus server, framed as Modbus TCP ("socket") or as RTU over TCP ("rtu"); answers every unit id.

    image: registers (0-65535) and bits (0, 1) in blocks by start address; None: same_image_as_libmodbus(). Bit blocks
    start at a multiple of 16, and pymodbus fills their last 16 up with zeros.
    delay_ms: each answer is that late. silent: connections are accepted and nothing is ever answered.
    """

    def __init__(
        self,
        *,
        framer: Literal["socket", "rtu"] = "socket",
        image: Image | None = None,
        delay_ms: float = 0.0,
        silent: bool = False,
        transport: Transport = "tcp",
        tls: Certificates | None = None,
    ) -> None:
        super().__init__("pymodbus", free_port())
        self._scheme = "rtu+tcp" if framer == "rtu" else transport
        self._image = image if image is not None else same_image_as_libmodbus()
        self._first = {"delay_ms": delay_ms, "silent": silent}
        self.run_as(
            [sys.executable, "-m", "tests.services.pymodbus_server", str(self.port), self._scheme, *_files(tls)]
        )

    @property
    def url(self) -> str:
        """tcp://127.0.0.1:port, rtu+tcp://..., udp://..., tls://..."""
        return f"{self._scheme}://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server listens, with its image and its manners as they were given."""
        _set_up(self.process, self._image, self.ready_s)
        self.command(self._first)

    def restart_as(self, image: Image) -> None:
        """Another device at the same place: all connections are cut, later answers are from `image`."""
        self.kill()
        self._image = image
        self.start()

    def set_values(self, kind: Kind, address: int, values: Sequence[int]) -> None:
        """Changes registers or bits inside the image's blocks; returns when every later answer has them."""
        self.command({"set": [kind, address, list(values)]})

    def set_delay(self, delay_ms: float) -> None:
        """From now on each answer is that late."""
        self.command({"delay_ms": delay_ms})

    def set_silent(self, silent: bool) -> None:
        """From now on requests stay unanswered, or are answered again (those left unanswered stay so)."""
        self.command({"silent": silent})


class PymodbusRtuServer(SerialService):
    """The same on a serial line, with the default image."""

    def __init__(self) -> None:
        super().__init__("pymodbus-rtu")
        self.run_as([sys.executable, "-m", "tests.services.pymodbus_server", self.line.machine_port, "rtu"])

    def wait_ready(self) -> None:
        """Returns when the server has its port open."""
        _set_up(self.process, same_image_as_libmodbus(), self.ready_s)


def _set_up(process: ServerProcess, image: Image, ready_s: float) -> None:
    process.send(json.dumps(image))
    process.wait_line("^ready$", ready_s)


def _files(tls: Certificates | None) -> list[str]:
    return [str(tls.ca), str(tls.server), str(tls.server_key)] if tls else []


class _Machine:
    """What a served device holds, and its manners."""

    def __init__(self, image: dict[Kind, dict[str, list[int]]]) -> None:
        self.delay_s = 0.0
        self.silent = False
        self._pending: list[tuple[Kind, int, list[int]]] = []
        blocks = tuple(_blocks(image.get(kind, {}), kind) for kind in _KINDS)
        self.device = SimDevice(id=0, simdata=blocks, action=self.on_request)  # type: ignore[arg-type]

    async def on_request(
        self, function: int, start: int, address: int, count: int, memory: list[int], written: object
    ) -> ExcCodes | None:
        """pymodbus calls this for each request before it reads `memory`, the block's registers from `start`."""
        if self.silent:
            await asyncio.get_running_loop().create_future()  # never done: no answer
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        self._apply(_BY_FUNCTION.get(function), start, memory)
        return None

    def obey(self, command: dict[str, Any]) -> None:
        """Carries out one command of the module's head."""
        self.silent = command.get("silent", self.silent)
        self.delay_s = command.get("delay_ms", self.delay_s * 1000) / 1000
        if "set" in command:
            self._pending.append(command["set"])

    def _apply(self, kind: str | None, start: int, memory: list[int]) -> None:
        mine = [change for change in self._pending if change[0] == kind]
        self._pending = [change for change in self._pending if change[0] != kind]
        for _, address, values in mine:
            for offset, value in enumerate(values):
                if kind in ("holding", "input"):
                    memory[address + offset - start] = value
                else:
                    _set_bit(memory, address + offset - start * 16, value)


def _set_bit(memory: list[int], bit: int, value: int) -> None:
    mask = 1 << bit % 16
    memory[bit // 16] = memory[bit // 16] & ~mask | (mask if value else 0)


def _blocks(image: Mapping[str, Sequence[int]], kind: Kind) -> list[SimData]:
    is_bits = kind in ("coils", "discrete")
    if not image:  # pymodbus wants a block of each kind: one that nobody asks for
        return [SimData(65_520, values=[False] * 16, datatype=DataType.BITS)] if is_bits else [SimData(65_535)]
    if is_bits:
        return [
            SimData(int(start), values=[bool(bit) for bit in bits], datatype=DataType.BITS)
            for start, bits in image.items()
        ]
    return [
        SimData(int(start), values=list(registers), datatype=DataType.REGISTERS) for start, registers in image.items()
    ]


async def serve(place: str, transport: str, *tls: str) -> None:
    """Serves until stdin ends."""
    commands = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    machine = _Machine(json.loads(await commands.readline()))
    server = _server(machine.device, place, transport, tls)
    await server.serve_forever(background=True)
    print("ready", flush=True)
    while line := await commands.readline():
        machine.obey(json.loads(line))
        print("done", flush=True)
    await server.shutdown()


def _server(device: SimDevice, place: str, transport: str, tls: Sequence[str]) -> Any:
    match transport:
        case "tcp":
            return ModbusTcpServer(device, address=(HOST, int(place)), identity=IDENTITY)
        case "rtu+tcp":
            return ModbusTcpServer(device, framer=FramerType.RTU, address=(HOST, int(place)), identity=IDENTITY)
        case "udp":
            return ModbusUdpServer(device, address=(HOST, int(place)), identity=IDENTITY)
        case "tls":
            return ModbusTlsServer(device, address=(HOST, int(place)), sslctx=_mutual(*tls), identity=IDENTITY)
        case _:
            return ModbusSerialServer(device, port=place, baudrate=19_200, identity=IDENTITY)


def _mutual(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """Modbus/TCP Security: a client without a certificate of the CA is refused."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
