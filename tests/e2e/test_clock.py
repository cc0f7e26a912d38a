"""The host sets its clock while machines are read. What that touched is flagged at the subscriber, exactly."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from tests.e2e.consumers import Message, Subscriber, without_repeats
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services.faketime import FakeTime
from tests.services.mosquitto import Mosquitto
from tests.services.pymodbus_server import PymodbusServer

STEPS_S = (3600.0, -5400.0)
JUMP_US = 600_000_000
"""No two batches of a device that is polled every 50 ms are so far apart, on any machine."""


def test_a_step_is_flagged_in_the_batches_that_it_touched(
    pymodbus_server: Callable[..., PymodbusServer],
    mosquitto_factory: Callable[..., Mosquitto],
    fake_time: FakeTime,
    tmp_path: Path,
) -> None:
    """The clock goes ahead by an hour, and back by one and a half. Of each device one batch a step is flagged: where
    its times jump. The gateway says each step once, with its size."""
    meter, broker = pymodbus_server(), mosquitto_factory()
    gateway = Gateway(
        devices={
            name: {"modbus": f"{meter.url}/{unit}", "every": every, "tags": {"a": "holding 0 uint16", "b": "coil 0"}}
            for name, unit, every in (("fast", 1, "50ms"), ("slow", 2, "170ms"))
        },
        send={"all": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
        env=fake_time.env,
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        ahead_s = 0.0
        for number, step_s in enumerate(STEPS_S, start=1):
            _wait_more(gateway)
            ahead_s += step_s
            fake_time.set(ahead_s)
            gateway.wait_for(lambda: gateway.metric("gateway_clock_steps_total", "system") >= number, "step noticed")  # noqa: B023
        _wait_more(gateway)
        clock = gateway.health()["clock"]
        assert gateway.end() == 0
        entries = [entry for entry in gateway.gaps() if entry["reason"] == "the gateway's clock was set"]
        lines = gateway.log_about("clock was set", *COMPLAINTS)
        messages = without_repeats(subscriber.all_messages())
    assert [round(step["seconds"]) for step in clock["steps"]] == list(STEPS_S)
    assert (clock["steps_total"], len(lines)) == (len(STEPS_S), len(STEPS_S))
    assert sum(entry["gaps"] for entry in entries) == len(STEPS_S)
    for device in ("fast", "slow"):
        of_device = sorted((each for each in messages if each["device"] == device), key=lambda each: each["seq"])
        flagged = [at for at, message in enumerate(of_device) if _is_flagged(message)]
        jumps = [at for at, (before, after) in enumerate(pairwise(_times(of_device)), start=1) if _far(before, after)]
        assert len(flagged) == len(STEPS_S)
        for jump, flag in zip(jumps, flagged, strict=True):
            assert flag in (jump, jump - 1), "flagged is the batch behind the jump, or one that was read across it"


def _is_flagged(message: Message) -> bool:
    """All samples of a batch are, or none."""
    words = {sample.get("clock") for sample in message["samples"]}
    assert words in ({None}, {"stepped"})
    return words == {"stepped"}


def _times(messages: Sequence[Message]) -> list[int]:
    return [max(sample["t"] for sample in message["samples"]) for message in messages]


def _far(before_us: int, after_us: int) -> bool:
    return abs(after_us - before_us) > JUMP_US


def _wait_more(gateway: Gateway) -> None:
    """Each device has delivered a few batches more."""
    before = {name: gateway.metric("gateway_source_batches_total", name) for name in ("fast", "slow")}
    for name, batches in before.items():
        gateway.wait_for(
            lambda name=name, batches=batches: gateway.metric("gateway_source_batches_total", name) >= batches + 4,  # type: ignore[misc]
            f"batches of {name}",
        )
