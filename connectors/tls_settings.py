"""TLS as every broker connection of the file spells it."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from pipelines.errors import Permanent
from pipelines.quantities import Settings


class TlsSettings(Settings):
    """`tls: {ca: /etc/plant-ca.pem, cert: gw.pem, key: gw.key}`; all of it optional."""

    ca: Path | None = Field(None, description="PEM file with the authorities to trust; default: the host's own store.")
    cert: Path | None = Field(None, description="PEM file with the gateway's certificate (mutual TLS); needs `key`.")
    key: Path | None = Field(None, description="PEM file with the private key of `cert`.")
    key_password: SecretStr | None = Field(None, description="Password of `key`, if it has one.")
    verify: bool = Field(True, description="false accepts any server certificate: insecure, for tests only.")

    @model_validator(mode="after")
    def _pair(self) -> TlsSettings:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both or neither")
        return self

    def context(self) -> ssl.SSLContext:
        """The client context, TLS 1.2 or newer. Raises Permanent naming the file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.cert and self.key:
                password = self.key_password.get_secret_value() if self.key_password else None
                context.load_cert_chain(self.cert, self.key, password)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(f) for f in (self.ca, self.cert, self.key) if f)
            raise Permanent(f"TLS files cannot be used ({files}): {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
