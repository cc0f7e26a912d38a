"""What the words of `security:` and `trust:` stand for."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.opcua_settings import OpcUaDevice, OpcUaSecurity


def device(**keys: Any) -> OpcUaDevice:
    return OpcUaDevice.model_validate({"opcua": "opc.tcp://h:4840", "tags": {"t": "i=1"}, **keys})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("best", OpcUaSecurity()),
        ("sign", OpcUaSecurity(mode="sign")),
        ("Basic256Sha256", OpcUaSecurity(policy="Basic256Sha256")),
        ({"mode": "sign"}, OpcUaSecurity(mode="sign")),
        ({"policy": "Basic256Sha256", "mode": "sign"}, OpcUaSecurity(policy="Basic256Sha256", mode="sign")),
        ("none", None),
    ],
)
def test_security_in_a_word_or_a_mapping(written: object, meant: OpcUaSecurity | None) -> None:
    """Signature and encryption unless another word is written out."""
    assert device(security=written).secured == meant
    assert device().secured == OpcUaSecurity(policy="best", mode="encrypt")


@pytest.mark.parametrize("written", [":".join(["AB", "cd"] * 16), "abcd " * 16, ["ABCD" * 16]])
def test_a_thumbprint_as_people_copy_it(written: object) -> None:
    """Colons, spaces, capitals; one or a list."""
    assert device(trust=written).trust == ["abcd" * 16]
