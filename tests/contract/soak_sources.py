"""The source contract on what `make soak` alone sets up, because it takes minutes to build: open62541.

pytest does not find this file by itself; `python -m benchmarks.soak_opcua_contract` names it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.source_suite import Machine, SourceSuite
from tests.contract.test_sources import plant, running
from tests.services.opcua_certificates import make
from tests.services.open62541 import Open62541


class TestOpen62541(SourceSuite):
    """open62541: the fourth stack; its nodes by browse path."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(Open62541):
            yield plant(server, "/Objects/Plant/{}")


class TestOpen62541Secured(SourceSuite):
    """open62541, SignAndEncrypt; the user is known by a password."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        certificate = make("open62541")
        auth = {"user": "operator", "password": "secret"}
        for server in running(lambda: Open62541(certificate=certificate, user=("operator", "secret"))):
            yield plant(server, "ns=2;s={}", trust=certificate.thumbprint, auth=auth)
