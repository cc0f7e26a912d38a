"""`network:` as settings and on sockets: what is set, what is refused, and in which words."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from connectors import network
from connectors.network import Network, over
from connectors.network_settings import DSCP, Dscp, NetworkSettings, PathSettings

EF = Network(dscp=46)
DSCP_OF = TypeAdapter(Dscp)
LOOPS = [network.new_loop, network._AsyncioLoop]


@pytest.mark.parametrize(
    ("written", "number"), [("EF", 46), ("ef", 46), ("AF31", 26), ("AF43", 38), ("CS1", 8), ("BE", 0), (46, 46), (0, 0)]
)
def test_dscp(written: object, number: int) -> None:
    """Names as in IANA's registry, and numbers."""
    assert DSCP_OF.validate_python(written) == number


@pytest.mark.parametrize("written", ["AF44", "CS8", "fast", 64, -1, True, "46", None])
def test_no_dscp(written: object) -> None:
    """Refused, with what to write."""
    with pytest.raises(ValidationError, match=r"write a name \(EF, AF31, CS1, ...\) or a number, 0 to 63"):
        DSCP_OF.validate_python(written)


def test_every_codepoint_is_one() -> None:
    """6 bits (RFC 2474); class selectors keep the old precedence."""
    assert all(0 <= number < 64 for number in DSCP.values())
    assert [DSCP[f"CS{number}"] for number in range(8)] == [8 * number for number in range(8)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dscp": "AF33x"}, "did you mean `AF33`"),
        ({"bind": "an-interface-too-long"}, "no name of a network interface"),
        ({"bind": "eth0:1"}, "no name of a network interface"),
        ({"source": "wwan0"}, "no IP address"),
        ({"priority": 16}, "less than or equal to 15"),
        ({"iface": "wwan0"}, "Extra inputs"),
    ],
)
def test_what_is_wrong(keys: dict[str, object], words: str) -> None:
    """One line says what to write."""
    with pytest.raises(ValidationError, match=words):
        NetworkSettings.model_validate(keys)


def test_a_path_is_as_its_destination_where_it_says_nothing() -> None:
    """And its own where it does."""
    whole = NetworkSettings.model_validate({"source": "10.0.0.1", "dscp": "AF31", "priority": 3})
    path = PathSettings.model_validate({"bind": "wwan0", "dscp": 0, "server": "mqtt://a"})
    assert path.beside(whole).network == Network("wwan0", "10.0.0.1", 0, 3)


@asynccontextmanager
async def _listening(host: str) -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _on(loop: Callable[[], asyncio.AbstractEventLoop], check: object) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())  # type: ignore[operator]


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_set(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On uvloop and asyncio, IPv4 and IPv6: the priority behind the DSCP, which changes it."""

    async def check() -> None:
        for host, source, level, option in (
            ("127.0.0.1", "127.0.0.5", socket.IPPROTO_IP, socket.IP_TOS),
            ("::1", "::1", socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
        ):
            async with _listening(host) as port:
                with over(Network("lo", source, 46, 2)):
                    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(level, option) == 46 << 2
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 2
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
            assert sock.getsockname()[0] == source
            transport.abort()

    _on(loop, check)


@pytest.mark.parametrize("loop", LOOPS)
def test_datagrams(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Both ways, from the address that was chosen."""

    async def check() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            far.setblocking(False)
            came = asyncio.get_running_loop().create_future()

            class Protocol(asyncio.DatagramProtocol):
                def datagram_received(self, data: bytes, _: object) -> None:
                    came.set_result(data)

            with over(Network(source="127.0.0.6", dscp=10)):
                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    Protocol, remote_addr=far.getsockname()
                )
            transport.sendto(b"?")
            data, asker = await asyncio.wait_for(asyncio.to_thread(_received, far), 10)
            assert (data, asker[0]) == (b"?", "127.0.0.6")
            far.sendto(b"!", asker)
            assert await asyncio.wait_for(came, 10) == b"!"
            transport.close()

    _on(loop, check)


def _received(far: socket.socket) -> tuple[bytes, tuple[str, int]]:
    far.settimeout(10)
    data, asker = far.recvfrom(10)
    return data, asker


async def test_tasks_made_inside_go_the_same_way() -> None:
    """As aiokafka's and asyncua's own; what is outside does not."""

    async def tos(port: int) -> int:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
        value: int = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
        transport.abort()
        return value

    async with _listening("127.0.0.1") as port:
        with over(EF):
            inside = asyncio.create_task(tos(port))
        assert [await tos(port), await inside] == [0, 46 << 2]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Network(bind="no-such-if"), "bind: there is no interface `no-such-if`"),
        (Network(bind="lo0"), r"bind: there is no interface `lo0`: did you mean `lo`\?"),
        (Network(source="203.0.113.9"), "source: 203.0.113.9: Cannot assign requested address"),
        (EF, r"Connection refused \(127.0.0.1 by DSCP 46\)"),
    ],
)
async def test_what_cannot_be(asked: Network, words: str) -> None:
    """An OSError with one clear line."""
    with over(asked), pytest.raises(OSError, match=words):
        await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", 1)


async def test_every_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with several: the first may not answer. With none of them both are named."""
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def two(_: object, host: str, port: int, **options: Any) -> list[Any]:
        hosts = ["127.0.0.9", "127.0.0.1"] if host == "plant" else [host]
        return [info for each in hosts for info in await real(each, port, **options)]

    monkeypatch.setattr(type(loop), "getaddrinfo", two)
    async with _listening("127.0.0.1") as port:
        with over(EF):
            transport, _ = await loop.create_connection(asyncio.Protocol, "plant", port)
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        transport.abort()
    with over(EF), pytest.raises(OSError, match=r"127.0.0.9 by DSCP 46.*127.0.0.1 by DSCP 46"):
        await loop.create_connection(asyncio.Protocol, "plant", 1)


def test_another_loop_is_refused() -> None:
    """Nothing is left out in silence."""

    async def check() -> None:
        with over(Network()):
            pass
        with pytest.raises(RuntimeError, match="sets no options"), over(EF):
            pass

    _on(asyncio.SelectorEventLoop, check)


def test_a_priority_that_needs_a_privilege() -> None:
    """As nobody: 6 is set, 7 is refused with what is missing; the interface is chosen all the same."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can become nobody")
    program = """
import os, socket
from connectors.network import Network, _prepare
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for priority in 6, 7:
    with socket.socket() as sock:
        try:
            _prepare(sock, Network("lo", "", 46, priority))
            print("set", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY))
        except OSError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set 6", "priority: 7 needs CAP_NET_ADMIN: write 6 or less"]
