"""Versions, ranges and conditions; profile files that extend each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.profile import ProfileError, fits, in_range, merged, profile_files, raw_profile, version


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.2.0", "1.2.1"),
        ("1.9", "1.10"),
        ("b.9", "b.10"),
        ("a.30", "b.1"),
        ("0.1.5.255", "0.1.7.0"),
        ("1.6.0-3", "1.6.0-12"),
        ("V200R001C00SPC153", "V200R023C10"),
        ("01.44", "1.45"),
        ("4A00", "4B00"),
        ("", "0.1"),
    ],
)
def test_versions_are_sorted(older: str, newer: str) -> None:
    assert version(older) < version(newer)


@pytest.mark.parametrize(("one", "other"), [("1.2", "1.2.0"), ("V1.2", "1.2"), ("B.10", "b.10"), ("1.02", "1.2")])
def test_versions_are_equal(one: str, other: str) -> None:
    assert version(one) == version(other)


def test_a_range_need_not_be_open() -> None:
    """Sungrow: signed between V112 and 95.09 only; thresholds may be compared in both directions."""
    assert [in_range(known, ">=112, <200") for known in ("111", "112", "199.9", "200")] == [False, True, True, False]
    assert in_range("1.2", "<=1.2.0")
    assert in_range("1.2.1", "=1.2.1")


def test_conditions() -> None:
    facts = {"vendor": "SolarEdge", "model": "SE10K", "firmware": "4.9.30"}
    assert fits({"vendor": "solaredge*", "firmware": ">=4, <5"}, facts)
    assert fits({"model": ["PM*", "SE?0K"]}, facts)
    assert fits({"serial": ""}, facts)
    assert not fits({"model": ""}, facts)
    assert not fits({"map": ">=0"}, facts)


def test_merging() -> None:
    base = {"poll": {"max_gap": 1, "max_block": 60}, "notes": ["a"], "tags": {"x": {"unit": "V"}, "y": {"unit": "A"}}}
    top = {"poll": {"max_gap": 0}, "notes": ["b"], "tags": {"y": None, "z": {"unit": "W"}}}
    assert merged(base, top) == {
        "poll": {"max_gap": 0, "max_block": 60},
        "notes": ["b"],
        "tags": {"x": {"unit": "V"}, "z": {"unit": "W"}},
    }


def test_own_files_take_the_place_of_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "keba-p40.yaml").write_text("profile: keba-p40\nextends: sunspec\nvendor: me\n")
    known = profile_files("modbus", tmp_path)
    raw = raw_profile(known["keba-p40"], known)
    assert raw["vendor"] == "me"
    assert raw["sunspec"]
    assert list(profile_files("modbus")) == list(known)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profile: a\nextends: b\n", "extends 'b'"),
        ("profile: a\nextends: a\n", "extends 'a'"),
        ("- a\n", "a profile is a mapping"),
        ("a: [\n", "expected"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    known = {"a": tmp_path / "a.yaml"}
    with pytest.raises(ProfileError) as error:
        raw_profile(known["a"], known)
    assert str(tmp_path / "a.yaml") in str(error.value)
    assert said in str(error.value)
