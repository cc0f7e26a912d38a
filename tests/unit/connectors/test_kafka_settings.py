"""The keys of a Kafka destination: what is taken, what is refused and with which words."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from connectors.kafka_settings import KafkaTarget, topic_name


def target(**keys: object) -> KafkaTarget:
    return KafkaTarget.model_validate({"kafka": "k1:9092"} | keys)


def refusal(**keys: object) -> str:
    with pytest.raises(ValidationError) as caught:
        target(**keys)
    return "\n".join(f"{error['loc']}: {error['msg']}" for error in caught.value.errors())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("k1", ("k1:9092",)),
        ("k1:9093, k2", ("k1:9093", "k2:9092")),
        (["k1:9092", "k2:9093"], ("k1:9092", "k2:9093")),
        ("[fd00::1]:9092", ("[fd00::1]:9092",)),
    ],
)
def test_servers_are_one_text_or_a_list(written: object, meant: tuple[str, ...]) -> None:
    """Port 9092 where none is written; IPv6 in brackets."""
    assert target(kafka=written).kafka == meant


@pytest.mark.parametrize("written", ["", "kafka://k1:9092", "k1:0", "k1:70000", [], ["k1:9092", 5], {"host": "k1"}])
def test_a_wrong_server_is_named(written: object) -> None:
    """One clear message."""
    assert "host:port" in refusal(kafka=written)


@pytest.mark.parametrize("template", ["ot.samples", "{site}.{device}", "gw-{gateway}_{route}"])
def test_topics_may_have_placeholders(template: str) -> None:
    """gateway, site, device and route."""
    assert target(topic=template).topic == template


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{site}/{device}", "Kafka allows letters"),
        ("ot samples", "Kafka allows letters"),
        ("ot.{tag}", "records: sample"),
        ("ot.{plant}", "unknown placeholder {plant}"),
        ("ot.{}", "unknown placeholder {}"),
        ("ot.{device.__class__}", "unknown placeholder"),
        ("ot.{device!r}", "unknown placeholder"),
        ("ot.{device", "expected '}'"),
        ("..", "1 to 249"),
        ("", "1 to 249"),
        ("x" * 250, "1 to 249"),
    ],
)
def test_topics_that_kafka_would_refuse_are_refused(template: str, words: str) -> None:
    """At the start, not at the first write."""
    assert words in refusal(topic=template)


def test_filled_in_names_become_legal() -> None:
    """A slash becomes a dot, all else that Kafka does not allow an underscore."""
    name = topic_name(
        "{site}.{device}-{gateway}_{route}", gateway="g 1", site="acme/plant1", device="prüfer", route="r"
    )
    assert name == "acme.plant1.pr_fer-g_1_r"


def test_plain_password_without_tls_must_be_written_out() -> None:
    """Nothing insecure happens by itself."""
    auth = {"mechanism": "PLAIN", "user": "u", "password": "secret"}
    message = refusal(auth=auth)
    assert "readable by anyone" in message
    assert "secret" not in message
    assert target(auth=auth | {"insecure": True}).auth is not None
    assert target(auth=auth, tls={}).auth is not None
    assert target(auth=auth | {"mechanism": "SCRAM-SHA-256"}).auth is not None


def test_a_password_is_not_shown() -> None:
    """In no repr."""
    assert "hush" not in repr(target(auth={"user": "u", "password": "hush"}))


def test_bare_values_need_a_record_each() -> None:
    """`format: value` has no message for a batch."""
    assert "records: sample" in refusal(format="value")
    assert target(format="value", records="sample").format == "value"


@pytest.mark.parametrize(
    "keys",
    [
        {"delivery": "exactly-twice"},
        {"compression": "snappy"},
        {"batch_size": "100B"},
        {"request_timeout": "1ms"},
        {"unknown": 1},
    ],
)
def test_what_is_not_offered_is_refused(keys: dict[str, object]) -> None:
    """Words, ranges and unknown keys."""
    assert refusal(**keys).startswith(str((next(iter(keys)),)))


def test_every_field_is_described() -> None:
    """The descriptions are the documentation and the JSON schema."""
    schema = KafkaTarget.model_json_schema()
    for model in (schema, schema["$defs"]["KafkaAuth"]):
        assert all(field.get("description") for field in model["properties"].values())


def test_exactly_once_is_the_default() -> None:
    """With a position topic of its own, which has a plain name."""
    assert target().exactly_once
    assert not target(delivery="at-least-once").exactly_once
    assert "is the topic of the rows" in refusal(topic="rows", position_topic="rows")
    assert "Kafka allows" in refusal(position_topic="{site}.positions")
    assert "Kafka allows" in refusal(position_topic="..")
