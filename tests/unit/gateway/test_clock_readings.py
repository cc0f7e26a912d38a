"""What is asked of the kernel, chrony and ptp4l. Their answers here were recorded from chronyd 4.3 and ptp4l 3.1.1,
whose own clients showed the figures in the comments."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway.clock_ptp import PORT_PROPERTIES_NP, TIME_PROPERTIES, Ptp4l, card_ahead_ns
from gateway.clock_readings import Absent, Reading, _tracking, read_chrony, read_kernel

# Reference 7F000001, stratum 4, offset -1.399 us, root delay 5.215 us, root dispersion 1.206 us a moment later
TRACKING = bytes.fromhex(
    "060200000021000500000000000000000000000700000000000000007f0000017f0000010000000000000000000000000001000000040000"
    "000000006b043077240ca35ddd442f08ca8d2363ceefab4bf11645bae2c23571f4d317b3e0aefc82dc98219604813538"
)
TRACKING_S = 1795436664.449
SETS = {
    # master_offset -472, gmPresent true
    0xC000: "34c000fffffffffffffe2818eaac2214f4a3bf" + "00" * 24 + "000000019ed327fffe7c0eb9",
    # offsetFromMaster -472, meanPathDelay 1845
    0x2001: "1420010001fffffffffe2800000000000007350000",
    # clockClass 6, clockAccuracy 0x21
    0x2002: "2220029ed327fffe7c0eb900010000ffff7fffffff0a0621ffff809ed327fffe7c0eb9",
    # currentUtcOffset 37, ptpTimescale false
    TIME_PROPERTIES: "062003002500a0",
    # portState (here: SLAVE), software time stamps, interface clkv1
    PORT_PROPERTIES_NP: "14c0041e622dfffe47a0050001090005636c6b7631",
}
PTP_SETS = {
    number: bytes.fromhex("0d020000" + "00" * 40 + "000002000001" + "00" + text) for number, text in SETS.items()
}


def test_kernel() -> None:
    """Whatever the host's state is: nothing is set, and no privilege is needed."""
    if sys.platform != "linux":
        with pytest.raises(Absent):
            read_kernel()
        return
    reading = read_kernel()
    assert reading.source == "kernel" and reading.locked == reading.shown["synchronised"]
    assert reading.error_ns >= 1000


def test_chrony_tracking() -> None:
    """|offset| + root dispersion + root delay / 2."""
    reading = _tracking(TRACKING, 7, TRACKING_S)
    assert (reading.source, reading.locked) == ("ntp", True)
    assert reading.shown["reference"] == "7F000001" and reading.shown["stratum"] == 4
    assert reading.shown["offset_us"] == -1.399 and reading.shown["root_delay_us"] == 5.215
    assert 1399 + 5215 / 2 < reading.error_ns < 1399 + 5215 / 2 + 1206


@pytest.mark.parametrize(
    ("change", "source", "locked"),
    [
        ({}, "ntp", True),
        ({28: b"PHC0"}, "ptp", True),
        ({28: b"GPS\0"}, "ntp", True),
        ({28: bytes(4)}, "ntp", False),
        ({28: b"\x7f\x7f\x01\x01"}, "ntp", False),
        ({54: b"\0\3"}, "ntp", False),
        ({60: struct.pack(">I", 0x6B043077 - 300)}, "ntp", False),
    ],
    ids=["server", "hardware clock", "receiver", "no source", "local clock", "leap unsync", "sources lost"],
)
def test_what_chrony_follows(change: Mapping[int, bytes], source: str, locked: bool) -> None:
    """A chrony that runs but follows nobody, or did so minutes ago, keeps no clock right."""
    reply = bytearray(TRACKING)
    for at, some in change.items():
        reply[at : at + len(some)] = some
    reading = _tracking(bytes(reply), 7, TRACKING_S)
    assert (reading.source, reading.locked) == (source, locked)


@pytest.mark.parametrize("reply", [b"", TRACKING[:50], b"\x05" + TRACKING[1:], TRACKING[:8] + b"\0\2" + TRACKING[10:]])
def test_chrony_says_something_else(reply: bytes) -> None:
    """Another version, a refusal, anything."""
    with pytest.raises(ValueError, match="chrony"):
        _tracking(reply, 7, TRACKING_S)


def test_chrony_over_udp() -> None:
    """As long a request as its answer, else chronyd says nothing; refused at once where there is none."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as daemon:
        daemon.bind(("127.0.0.1", 0))
        address = daemon.getsockname()
        with answering(daemon, lambda asked: TRACKING[:16] + asked[8:12] + TRACKING[20:]) as requests:
            assert read_chrony(address).shown["stratum"] == 4
    assert [len(request) for request in requests] == [len(TRACKING)]
    with pytest.raises(Absent, match="no chrony"):
        read_chrony(address)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: a Unix socket's has 108 bytes."""
    return tmp_path_factory.mktemp("p")


def test_ptp4l_with_software_time_stamps(folder: Path) -> None:
    """It steers the system's clock: |offset| + path delay + the grandmaster's accuracy (0x21: 100 ns)."""
    with ptp4l(folder) as path:
        reading = Ptp4l(folder, [path])()
    assert (reading.source, reading.locked, reading.error_ns) == ("ptp", True, 472 + 1845 + 100 + 1)
    assert reading.shown == {
        "port_state": "slave",
        "offset_ns": -472,
        "path_delay_ns": 1845,
        "grandmaster_class": 6,
        "grandmaster_accuracy": "0x21",
        "interface": "clkv1",
        "timestamping": "software",
    }
    assert list(folder.iterdir()) == [Path(path)]


@pytest.mark.parametrize(
    ("card_ns", "kernel", "locked", "more_ns"),
    [
        (37 * 10**9 - 900, False, True, 900),
        (None, True, True, 5_000),
        (None, False, False, 0),
    ],
    ids=["card read", "the kernel's bound", "nobody knows"],
)
def test_ptp4l_with_hardware_time_stamps(
    folder: Path, card_ns: int | None, kernel: bool, locked: bool, more_ns: int
) -> None:
    """It steers the card's clock, in TAI; how far the system's is from that counts, too, and has to be known."""
    changed = PTP_SETS | {
        TIME_PROPERTIES: _with(PTP_SETS[TIME_PROPERTIES], 56, 0x08),
        PORT_PROPERTIES_NP: _with(PTP_SETS[PORT_PROPERTIES_NP], 65, 1),
    }
    with ptp4l(folder, changed) as path:
        reading = Ptp4l(folder, [path], lambda: Reading("kernel", kernel, 5_000, {}), lambda interface: card_ns)()
    assert (reading.locked, reading.error_ns) == (locked, 472 + 1845 + 100 + 1 + more_ns)
    assert reading.shown.get("card_minus_system_ns") == (None if card_ns is None else -900)


def test_ptp4l_in_another_domain_or_state(folder: Path) -> None:
    """It answers in its own domain only, which is found; a port that is not slave yet keeps no clock right."""
    listening = PTP_SETS | {PORT_PROPERTIES_NP: _with(PTP_SETS[PORT_PROPERTIES_NP], 64, 8)}
    with ptp4l(folder, listening, domain=24) as path:
        reading = Ptp4l(folder, [path])()
    assert not reading.locked and reading.shown["port_state"] == "uncalibrated"


def test_no_ptp4l(folder: Path) -> None:
    """Not there, nobody there, silent, and something else there: each says so."""
    path = str(folder / "s")
    with pytest.raises(Absent, match="no ptp4l"):
        Ptp4l(folder, [path])()
    with ptp4l(folder):
        pass
    with pytest.raises(Absent, match="nobody listens"):
        Ptp4l(folder, [path])()
    with (
        ptp4l(folder, {number: data[:54] for number, data in PTP_SETS.items()}),
        pytest.raises(ValueError, match="ptp4l"),
    ):
        Ptp4l(folder, [path])()
    with ptp4l(folder, domain=3), pytest.raises(TimeoutError, match="domains 0, 24"):
        Ptp4l(folder, [path])()


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    """No hardware clock at all, or none that is for us."""
    assert card_ahead_ns("eth0", tmp_path) is None
    (tmp_path / "sys/class/net/eth0/device/ptp/ptp0").mkdir(parents=True)
    assert card_ahead_ns("eth0", tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ptp0").touch()
    assert card_ahead_ns("eth0", tmp_path) is None


@contextmanager
def ptp4l(folder: Path, sets: Mapping[int, bytes] = PTP_SETS, domain: int = 0) -> Iterator[str]:
    """Its management socket. As it does, it answers a path's owner, and in its own domain, only."""
    path = str(folder / "s")
    Path(path).unlink(missing_ok=True)

    def answer(asked: bytes) -> bytes:
        (data_set,) = struct.unpack_from(">H", asked, 52)
        if asked[4] != domain:
            return b""
        reply = bytearray(sets[data_set])
        reply[30:32] = asked[30:32]
        return bytes(reply)

    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as daemon:
        daemon.bind(path)
        with answering(daemon, answer):
            yield path


@contextmanager
def answering(daemon: socket.socket, answer: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """A thread answers on `daemon` (b"": not at all); what it was asked."""
    requests: list[bytes] = []

    def serve() -> None:
        while (asked := daemon.recvfrom(2048))[0] != b"end":
            requests.append(asked[0])
            if reply := answer(asked[0]):
                daemon.sendto(reply, asked[1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield requests
    finally:
        with closing(socket.socket(daemon.family, socket.SOCK_DGRAM)) as ending:
            ending.sendto(b"end", daemon.getsockname())
        thread.join(timeout=60)


def _with(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]
