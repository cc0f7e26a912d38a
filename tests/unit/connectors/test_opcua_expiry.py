"""What a session rests on is watched while it lasts."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path

import pytest

from connectors import opcua_expiry
from connectors.opcua_expiry import CertificateWatch
from connectors.opcua_pki import folder_of, make_folders, stamp
from connectors.opcua_security import Secured
from pipelines.counters import Counters
from pipelines.errors import Permanent

LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})


async def test_a_trust_that_was_taken_back_before_the_session_was_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A hot standby's certificate is examined when it is made ready, which may be days before it takes over."""
    monkeypatch.setattr(opcua_expiry, "LOOK_EVERY_S", 0.01)
    pki = folder_of(tmp_path)
    make_folders(pki)
    seen = stamp(pki)
    while stamp(pki) == seen:  # however coarse the file system's clock is
        (pki / "rejected" / "press.der").unlink(missing_ok=True)
        (pki / "rejected" / "press.der").touch()
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def recheck() -> None:
        raise Permanent("it was rejected")

    watch = CertificateWatch(tmp_path, Counters("source", "press"), LOG)
    ends = {opcua_expiry.SERVER: datetime.datetime.now(datetime.UTC)}
    watch.begin(Secured("Basic256Sha256 Sign", ends, recheck=recheck, seen=seen), lost.set_result)
    async with asyncio.timeout(30):
        assert await lost == "it was rejected"
    watch.stop()
