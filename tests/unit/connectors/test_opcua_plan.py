"""Settings to subscriptions: derived queues, caps, filters; and what the settings refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from connectors.opcua_filters import encoded
from connectors.opcua_plan import describe_plan, plan_subscriptions
from connectors.opcua_settings import Filter, OpcUaDevice
from pipelines.batch import Kind

URL = "opc.tcp://press:4840"


def device(tags: dict[str, Any], **options: Any) -> OpcUaDevice:
    return OpcUaDevice.model_validate({"opcua": URL, "tags": tags, **options})


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({"every": "1s"}, 10),  # ten seconds of it
        ({"every": "1s", "sampling": "100ms"}, 100),
        ({"every": "1s", "sampling": "1ms"}, 2000),  # two publishing intervals, beyond the usual most
        ({"every": "1m"}, 10),
        ({"sampling": 0}, 100),
        ({"queue": 7}, 7),
    ],
)
def test_queues_follow_from_the_intervals(options: dict[str, Any], queue: int) -> None:
    [subscription] = plan_subscriptions(device({"x": "i=2258"}, **options))
    assert subscription.items[0].queue == queue


def test_too_many_intervals_share_the_shorter_of_the_nearest() -> None:
    """100, 150, 1000, 5000 ms in two subscriptions: 100 takes 150, then 1000 takes 5000; the order stays the file's."""
    every = {"a": "5s", "b": "100ms", "c": "1s", "d": "150ms"}
    tags = {name: {"node": "i=2258", "every": text} for name, text in every.items()}
    plan = plan_subscriptions(device(tags), subscriptions_max=2)
    assert [(one.publishing_ns // 10**6, [item.name for item in one.items]) for one in plan] == [
        (100, ["b", "d"]),
        (1000, ["a", "c"]),
    ]


def test_the_smaller_cap_of_items_holds() -> None:
    tags = {f"t{i}": "i=2258" for i in range(7)}
    sizes = [len(one.items) for one in plan_subscriptions(device(tags, items_per_subscription=3), items_max=5)]
    assert sizes == [3, 3, 1]


def test_filters_are_inherited_and_described() -> None:
    """A tag with `deadband` does not take the device's; 0 is none."""
    tags = {
        "a": "i=1",
        "b": {"node": "i=2", "deadband": 1},
        "c": {"node": "i=3", "server_deadband": 0, "trigger": "status"},
        "d": {"node": "i=4", "server_deadband": 2},
    }
    settings = device(tags, server_deadband="1 %")
    found = [settings.filter_of(tag) for tag in settings.tags.values()]
    assert found == [
        Filter(deadband="percent", value=1.0),
        Filter(),
        Filter("status"),
        Filter(deadband="absolute", value=2.0),
    ]
    assert "queue 10, server deadband 1%" in "\n".join(describe_plan(settings))


def test_a_deadband_is_not_asked_for_text() -> None:
    wanted = Filter(deadband="absolute", value=1.0)
    assert encoded(wanted, Kind.STRING) == encoded(wanted, Kind.BOOLEAN) == b"\0\0\0"
    assert len(encoded(wanted, Kind.DOUBLE)) == len(encoded(wanted, None)) == len(encoded(wanted, 290)) == 25


@pytest.mark.parametrize(
    ("tag", "options", "why"),
    [
        ({"server_deadband": "x"}, {}, "is no deadband"),
        ({"server_deadband": "101%"}, {}, "is no deadband"),
        ({"server_deadband": -1}, {}, "is no deadband"),
        ({"server_deadband": True}, {}, "is no deadband"),
        ({"server_deadband": 1, "deadband": 1}, {}, "not both"),
        ({}, {"opcua": [URL, "http://x"]}, "not an OPC UA endpoint"),
        ({}, {"opcua": []}, "opcua"),
        ({}, {"reverse": {"server": "urn:x", "endpoint": URL}, "opcua": [URL, URL]}, "where the gateway listens"),
        ({}, {"reverse": {"server": "urn:x", "endpoint": URL}, "opcua": "opc.tcp://0.0.0.0"}, "gateway listens"),
    ],
)
def test_what_is_refused(tag: dict[str, Any], options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        device({"x": {"node": "i=1", **tag}}, **options)


def test_a_redundant_set_is_a_list() -> None:
    settings = OpcUaDevice.model_validate({"opcua": [URL, "opc.tcp://b:1"], "tags": {"x": "i=1"}})
    assert settings.servers == [URL, "opc.tcp://b:1"] and settings.at(URL).servers == [URL]
