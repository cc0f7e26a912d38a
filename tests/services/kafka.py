"""Apache Kafka 4.2.2 in KRaft mode: one node, broker and controller in one process, from Maven Central.

The settings come from measurements: one I/O configuration for a 2-core machine, short broker sessions (a restart after
SIGKILL takes 3 s instead of 12), no StorageTool (the metadata file is written here). The log folder lives as long as
the object, so restart() finds topics, records and transactions as they were.
"""

import base64
import uuid
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.services.cache import cached, run
from tests.services.maven import class_path, copy_jars
from tests.services.packages import java
from tests.services.ports import HOST, free_port
from tests.services.process import Service, ServiceFailed
from tests.services.tls import Certificates

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_JVM = ["-Xmx256m", "-Xss512k", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
_CLASSES = "classes.jsa"
_LOGGING = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",  # says that the server has started
]
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


def install() -> None:
    """Fetches the jars, and has a JVM read them, when that is not done yet. ServiceMissing when it cannot be."""
    _classes()


class Kafka(Service):
    """A broker.

    host: address of its listeners. bootstrap: the plain listener's "host:port". sasl_bootstrap: SASL_PLAINTEXT, where
    users are given (name -> password, valid for PLAIN and SCRAM-SHA-512). ssl_bootstrap: SSL, where certificates are
    given; with require_certificate its clients must show one of the CA's. options: further lines of server.properties.
    classes: the JVM's option about `_classes`, where it is another one.
    """

    ready_s = 60.0

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        tls: Certificates | None = None,
        require_certificate: bool = False,
        options: dict[str, str] | None = None,
        host: str = HOST,
        classes: str | None = None,
    ) -> None:
        jvm = [java(), *_JVM, classes or f"-XX:SharedArchiveFile={_classes()}"]
        self._java = [*jvm, *_LOGGING, "-cp", class_path(_install())]
        super().__init__("kafka", free_port())
        self._host = host
        self._users = users or {}
        self._users_known = False
        self._listeners = {"PLAINTEXT": self.port}
        if self._users:
            self._listeners["SASL_PLAINTEXT"] = free_port()
        if tls:
            self._listeners["SSL"] = free_port()
        self._write_metadata()
        settings = self._core_settings() | self._sasl_settings() | _ssl_settings(tls, require_certificate)
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in (settings | (options or {})).items()))
        properties.chmod(0o600)
        self.argv = [*self._java, "kafka.Kafka", str(properties)]
        self.run_as(self.argv)

    @property
    def bootstrap(self) -> str:
        """The plain listener."""
        return f"{self._host}:{self.port}"

    @property
    def sasl_bootstrap(self) -> str:
        """The SASL_PLAINTEXT listener. KeyError when no users were given."""
        return f"{self._host}:{self._listeners['SASL_PLAINTEXT']}"

    @property
    def ssl_bootstrap(self) -> str:
        """The SSL listener. KeyError when no certificates were given."""
        return f"{self._host}:{self._listeners['SSL']}"

    def wait_ready(self) -> None:
        """Returns when the broker has registered with its controller, serves, and knows its users."""
        self.process.wait_line("Kafka Server started", self.ready_s)
        if not self._users_known:
            for name, password in self._users.items():
                self._add_scram_user(name, password)
            self._users_known = True

    async def create_topic(self, name: str, partitions: int = 1, config: dict[str, str] | None = None) -> None:
        """Creates a topic; KafkaError when the broker refuses."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config or {})])
        finally:
            await admin.close()

    def _write_metadata(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir()
        lines = ["version=1", f"cluster.id={_kafka_uuid()}", "node.id=1", f"directory.id={_kafka_uuid()}"]
        (logs / "meta.properties").write_text("\n".join(lines) + "\n")

    def _core_settings(self) -> dict[str, str]:
        controller = free_port()
        broker_listeners = ",".join(f"{name}://{self._host}:{port}" for name, port in self._listeners.items())
        protocols = ",".join(f"{name}:{name}" for name in self._listeners)
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "listeners": f"{broker_listeners},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": broker_listeners,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "logs"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "200",
            "num.network.threads": "1",
            "num.io.threads": "2",
            "log.cleaner.dedupe.buffer.size": "4194304",
        }

    def _sasl_settings(self) -> dict[str, str]:
        if not self._users:
            return {}
        known = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        listener = "listener.name.sasl_plaintext"
        return {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            f"{listener}.plain.sasl.jaas.config": f"{_PLAIN} required {known};",
            f"{listener}.scram-sha-512.sasl.jaas.config": f"{_SCRAM} required;",
        }

    def _add_scram_user(self, name: str, password: str) -> None:
        credentials = f"SCRAM-SHA-512=[password={password}]"
        user = ["--entity-type", "users", "--entity-name", name]
        tool = [*self._java, "kafka.admin.ConfigCommand"]
        change = ["--bootstrap-server", self.bootstrap, "--alter", "--add-config", credentials]
        run([*tool, *change, *user], "adding a SCRAM user", failure=ServiceFailed)


def _install() -> Path:
    return cached("kafka", [_POM], lambda folder: copy_jars(_POM, folder))


def _classes() -> Path:
    """The broker's classes as a JVM has them in memory (class data sharing): reading the jars is half of a start."""

    def build(folder: Path) -> None:
        with Kafka(classes=f"-XX:ArchiveClassesAtExit={folder / _CLASSES}") as broker:
            broker.process.stop(timeout_s=broker.ready_s)

    return cached("kafka_classes", [_POM], build) / _CLASSES


def _ssl_settings(tls: Certificates | None, require_certificate: bool) -> dict[str, str]:
    if tls is None:
        return {}
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(tls.server_bundle),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(tls.ca),
        "ssl.client.auth": "required" if require_certificate else "none",
    }


def _kafka_uuid() -> str:
    """22 characters of base64url; Kafka refuses one that begins with "-"."""
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return text if not text.startswith("-") else _kafka_uuid()
