"""The fourth foreign OPC UA server: open62541 in C, running open62541/server.c (its head lists the commands).

The library's source is what the crate open62541-sys carries: cargo fetches it, by the checksums of Cargo.lock; cmake
compiles it, in about a minute. `make soak` alone needs it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.services.cache import cached, run
from tests.services.opcua_certificates import URI, Pair
from tests.services.packages import apt_install, program
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_FILES = Path(__file__).parent / "open62541"
_SOURCES = [_FILES / name for name in ("Cargo.toml", "Cargo.lock", "CMakeLists.txt", "server.c")]
_OPENSSL = Path("/usr/include/openssl/ssl.h")
_DOUBLE = 11  # the built-in type


def install() -> None:
    """Fetches and compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


class Open62541(Service):
    """The server: endpoint None and, with a certificate, Sign and SignAndEncrypt (every current policy).

    Every client certificate is accepted. Anonymous, or `user`: name and password. Variables: ns=2;s=Double and so on,
    named by their type.
    """

    def __init__(self, *, certificate: Pair | None = None, user: tuple[str, str] | None = None) -> None:
        folder = _install()
        super().__init__("open62541", free_port())
        secured: list[str | Path] = (
            [*certificate.save(self.folder, "server"), URI, *(user or ())] if certificate else []
        )
        self.run_as([folder / "server", str(self.port), *secured])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port"""
        return f"opc.tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def set_value(self, name: str, value: Any, *, type_: int = _DOUBLE, source_ms: int = -1, status: int = 0) -> None:
        """Sets ns=2;s=<name> to a value of a built-in type, as JSON has it (Part 6, 5.4); returns when it is set.

        source_ms: UTC ms since 1970; -1: now. status: a StatusCode. ValueError when the server does not know the
        name or the value is not of that type.
        """
        self._command(f"set {name} {source_ms} {status} {json.dumps({'UaType': type_, 'Value': value})}")

    def fire(self, message: str, severity: int) -> None:
        """A BaseEvent of the Server object."""
        self._command(f"event {severity} {message}")

    def kill_sessions(self, subscriptions: bool) -> None:
        """Ends every session from the server's side; it knows no way to leave their subscriptions."""
        del subscriptions
        self._command("kill")

    def sessions_and_subscriptions(self) -> tuple[int, int]:
        """How many it has."""
        mark = self.process.mark()
        self.process.send("count")
        counted = self.process.wait_line(r"^counted (\d+) (\d+)$", self.ready_s, mark)
        return int(counted[1]), int(counted[2])

    def _command(self, line: str) -> None:
        mark = self.process.mark()
        self.process.send(line)
        answer = self.process.wait_line("^(done|error .*)$", self.ready_s, mark)[0]
        if answer != "done":
            raise ValueError(answer)


def _install() -> Path:
    return cached("open62541", _SOURCES, _build)


def _build(folder: Path) -> None:
    """Only the program is kept: source and objects are some 100 MB."""
    cargo, cmake = program("cargo", "cargo"), program("cmake", "cmake")
    program("cc", "build-essential")
    if not _OPENSSL.exists():
        apt_install("libssl-dev", needed="OpenSSL's headers")
    source, build = folder / "source", folder / "build"
    source.mkdir()
    for file in _SOURCES:
        shutil.copy(file, source)
    run([cargo, "vendor", "--locked", "--versioned-dirs", "vendor"], "the crate open62541-sys", cwd=source)
    [library] = (source / "vendor").glob("open62541-sys-*/open62541")
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DOPEN62541={library}"]
    run([cmake, "-S", source, "-B", build, *options], "configuring open62541")
    run([cmake, "--build", build, "--parallel", "2", "--target", "server"], "compiling open62541")
    shutil.copy(build / "server", folder / "server")
    shutil.rmtree(source)
    shutil.rmtree(build)
