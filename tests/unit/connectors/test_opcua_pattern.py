"""Addresses, patterns of browse paths, and the names that come of them. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import opcua_address, opcua_names, opcua_pattern
from connectors.opcua_address import (
    QualifiedName,
    UnknownNamespace,
    path_text,
    steps_of,
    unescaped,
    with_index,
    with_uri,
)
from connectors.opcua_pattern import Rules, include

URIS = ["http://opcfoundation.org/UA/", "urn:host", "http://vendor.com/a;b%c/"]
NAMES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


def path(text: str) -> tuple[QualifiedName, ...]:
    return tuple(
        QualifiedName(step.namespace if isinstance(step.namespace, int) else 2, unescaped(step.name))
        for step in steps_of(text)
    )


def matches(pattern: str, text: str) -> bool:
    """By following the path name by name, as the walk does."""
    rules = Rules([include(pattern, URIS)])
    places = rules.start
    for step in path(text):
        places = rules.follow(places, step)
    return bool(rules.matched(places, path(text)))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("/Objects/M/Temp", "/Objects/M/Temp", True),
        ("/Objects/M/Temp", "/Objects/M/Temp/Range", False),
        ("/Objects/M/*", "/Objects/M/Temp", True),
        ("/Objects/M/*", "/Objects/M/A/Temp", False),
        ("/Objects/M/**", "/Objects/M/A/Temp", True),
        ("/Objects/M/**", "/Objects/M", True),
        ("/Objects/**/Temp?", "/Objects/A/B/Temp1", True),
        ("/Objects/**/Temp?", "/Objects/Temp1", True),
        ("/Objects/**/Temp?", "/Objects/A/Temp12", False),
        ("/Objects/**/A/**/T", "/Objects/x/A/y/A/T", True),
        ("Temp*", "/Objects/A/Temperature", True),
        ("A/Temp*", "/Objects/x/A/Temperature", True),
        ("A/Temp*", "/Objects/A/x/Temperature", False),
        ("/Objects/2:M/*", "/Objects/2:M/x", True),
        ("/Objects/3:M/*", "/Objects/2:M/x", False),
        ("/Objects/nsu=http://vendor.com/a%3Bb%25c/;M/*", "/Objects/2:M/x", True),
        ("/Objects/a&/b/&*", "/Objects/a&/b/&*", True),
        ("/Objects/a&/b/&*", "/Objects/a&/b/c", False),
        ("/Objects/12&:30", "/Objects/2:12&:30", True),
        ("/Objects/db1[3].x", "/Objects/db1[3].x", True),
        ("regex:/Objects/.*/Temp(erature)?", "/Objects/A/B/Temp", True),
        ("regex:/Objects/.*/Temp(erature)?", "/Objects/A/Temps", False),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    """`*` stays within a name, `**` is any number of names, without `/` in front any depth; a name needs no index."""
    opcua_pattern.checked(pattern)
    assert matches(pattern, text) is expected


def test_a_branch_that_cannot_match_is_left() -> None:
    """No places: the walk does not go there."""
    rules = Rules([include("/Objects/M/**", URIS)])
    at_objects = rules.follow(rules.start, QualifiedName(0, "Objects"))
    assert at_objects and not rules.follow(at_objects, QualifiedName(2, "Other"))


def test_the_standards_own_nodes_are_taken_by_name_only() -> None:
    """`/Objects/**` does not mean the Server object; `/Objects/Server/**` does."""
    for pattern, wanted in (("/Objects/**", False), ("/Objects/S*/**", False), ("/Objects/Server/**", True)):
        rules = Rules([include(pattern, URIS)])
        at_objects = rules.follow(rules.start, QualifiedName(0, "Objects"))
        assert bool(rules.follow(at_objects, QualifiedName(0, "Server"), by_name_only=True)) is wanted


@pytest.mark.parametrize("wrong", ["/Machine/**", "regex:(", "", "/", "/Objects//x"])
def test_what_cannot_mean_anything_is_refused(wrong: str) -> None:
    """At `gateway check`, not at night."""
    with pytest.raises(ValueError, match=r"/Objects|regular expression"):
        opcua_pattern.checked(wrong)


@pytest.mark.parametrize(
    "right",
    ["i=2258", "ns=2;s=a;b=c", "nsu=http://vendor.com/UA/;i=5", "/Objects/M/T", "/Objects/2:M/nsu=http://v/a;T"],
)
def test_addresses(right: str) -> None:
    """Every form that the documents name."""
    assert opcua_address.checked(right) == right


@pytest.mark.parametrize(
    "wrong", ["temperature", "ns=2", "nsu=;s=a", "nsu=http://x", "Objects/a", "/", "/a//b", "ns=a;i=1"]
)
def test_wrong_addresses(wrong: str) -> None:
    """The message shows how it is written."""
    with pytest.raises(ValueError, match=r"/Objects/Machine/Temperature"):
        opcua_address.checked(wrong)


@given(st.lists(st.builds(QualifiedName, st.integers(0, 99), NAMES), min_size=1))
def test_a_path_is_read_as_it_was_written(steps: list[QualifiedName]) -> None:
    """Names may hold anything, also what looks like a namespace."""
    read = steps_of(opcua_address.checked(path_text(steps)))
    assert [(step.namespace or 0, unescaped(step.name)) for step in read] == [(s.namespace, s.name) for s in steps]


def test_namespaces_by_uri() -> None:
    """An index becomes the URI and the URI the index of another server; what is not there is said."""
    assert with_uri("ns=2;s=a", URIS) == "nsu=http://vendor.com/a%3Bb%25c/;s=a"
    assert with_index("nsu=http://vendor.com/a%3Bb%25c/;s=a", [*URIS[:2], "x", URIS[2]]) == "ns=3;s=a"
    assert with_index("nsu=http://opcfoundation.org/UA/;i=5", URIS) == "i=5"
    assert with_uri("i=5", URIS) == "i=5" and with_uri("ns=9;i=5", URIS) == "ns=9;i=5"
    with pytest.raises(UnknownNamespace, match="http://gone/"):
        with_index("nsu=http://gone/;s=a", URIS)


def test_names_are_unique_and_stay() -> None:
    """From the path alone; of two equal ones each gets digits of its node id; one that is in use keeps its name."""
    a, b, c = ((path(f"/Objects/Line 1/{name}"), f"ns=2;s={node}") for name, node in (("T", 1), ("T", 2), ("P+", 3)))
    both = opcua_names.names([a, b, c])
    assert both[2] == "Line_1.P_" and both[0] != both[1]
    assert all(name.startswith("Line_1.T~") for name in both[:2])
    assert opcua_names.names([b, a, c]) == [both[1], both[0], both[2]]
    assert opcua_names.names([a]) == ["Line_1.T"]
    assert opcua_names.names([b], taken={"Line_1.T"}) == [both[1]]
