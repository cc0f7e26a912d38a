"""`local: embedded`: subscribers on site go on while the uplink is down, and are told so."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.e2e.consumers import Message, Subscriber, missing_seqs, retained
from tests.e2e.gateway_process import ID, Gateway
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST, free_port

STATUS = f"gateway/{ID}/status"
MESSAGES = 60
UP_AGAIN_S = 60.0


def test_the_site_goes_on_while_the_uplink_is_down(
    libmodbus_server: LibmodbusServer, mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """The uplink falls silent and comes back: every poll at both brokers, no hole in any stream; the status is right.

    A local broker that answers nothing for a while keeps nothing from the uplink, and nothing from who listens to it.
    Then the embedded broker is killed: it is started again and has the data; it ends with the gateway.
    """
    uplink, port = mosquitto_factory(), free_port()
    gateway = Gateway(
        devices={"meter": {"modbus": libmodbus_server.url, "every": "20ms", "tags": {"a": "holding 7 uint16"}}},
        send={"all": {"from": "*", "to": "plant"}},
        to={"plant": {"mqtt": uplink.url, "ack_timeout": "1s", "local": {"listen": f"{HOST}:{port}"}}},
    )
    with gateway:
        gateway.wait_state("plant@local", "up")
        with (
            Subscriber(uplink.port, tmp_path) as far,
            Subscriber(port, tmp_path, protocol="3.1.1") as near,
        ):
            _more(gateway, far)
            _more(gateway, near)
            [broker] = gateway.children()
            os.kill(broker, signal.SIGSTOP)
            _more(gateway, far)
            os.kill(broker, signal.SIGCONT)
            uplink.process.pause()
            gateway.wait_state("plant", "down")
            _more(gateway, near)
            gateway.process.wait_until(lambda: _tells_of_the_outage(port), 30, "status that tells of the outage")
            uplink.process.resume()
            gateway.wait_state("plant", "up", UP_AGAIN_S)
            last = max(message["samples"][0]["t"] for message in near.messages())
            gateway.process.wait_until(lambda: max(_times(far.messages())) > last, 30, "the backlog at the uplink")
            here, there = near.messages(), far.all_messages()
        assert missing_seqs(here) == missing_seqs(there) == {}
        assert {message["stream"] for message in here} == {"all@local"}
        assert {message["stream"] for message in there} == {"all"}
        first = max(min(_times(here)), min(_times(there)))
        assert {t for t in _times(here) if t >= first} <= _times(there)
        assert {t for t in _times(there) if first <= t <= last} <= _times(here)

        os.kill(broker, signal.SIGKILL)
        gateway.wait_state("plant@local", "down")
        gateway.wait_state("plant@local", "up", UP_AGAIN_S)
        with Subscriber(port, tmp_path, protocol="3.1.1") as again:
            _more(gateway, again)
        [broker] = gateway.children()
        assert gateway.end() == 0
        assert not Path(f"/proc/{broker}").exists()


def _more(gateway: Gateway, subscriber: Subscriber) -> None:
    wanted = len(subscriber.messages()) + MESSAGES
    gateway.process.wait_until(lambda: len(subscriber.messages()) >= wanted, 30, f"{MESSAGES} more messages")


def _times(messages: list[Message]) -> set[int]:
    return {sample["t"] for message in messages for sample in message["samples"]}


def _tells_of_the_outage(port: int) -> bool:
    """The local broker's retained status: the uplink is down and rows wait for it, the local one is up."""
    status = {each["name"]: each for each in retained(port, STATUS)["destinations"]}
    down, local = status["plant"], status["plant@local"]
    waiting = down["pending"]["all"]
    return (
        (down["state"], down["server"]) == ("down", None)
        and (local["state"], local["server"]) == ("up", f"mqtt://{HOST}:{port}")
        and waiting["rows"] > 0
        and waiting["seconds"] > 0
    )
