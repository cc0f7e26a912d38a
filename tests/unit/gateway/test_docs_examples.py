"""Every example file, every full file in the documents, and the tables of docs/configuration.md are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway.config import load
from gateway.config_yaml import read_items
from gateway.schema import json_schema, with_tables
from gateway.settings import DEVICES, TARGETS, GatewayFile

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "configuration.md"
SECTIONS = ("devices:", "send:", "to:")


def _files() -> Iterator[Any]:
    """Every configuration file that a reader may copy: (name, text)."""
    for example in sorted((ROOT / "examples").glob("*.yaml")):
        yield pytest.param(example.read_text("utf-8"), id=example.name)
    for document in sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("README.md")]):
        blocks = re.findall(r"^```yaml\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        for number, block in enumerate(blocks, start=1):
            if all(re.search(f"^{section}", block, re.MULTILINE) for section in SECTIONS):
                yield pytest.param(block, id=f"{document.name}-{number}")


@pytest.mark.parametrize("text", list(_files()))
def test_file_loads_and_fits_the_schema(text: str, tmp_path: Path) -> None:
    """The gateway and an editor agree that it is right; nothing in it is left unused."""
    (tmp_path / "file.yaml").write_text(text, "utf-8")
    _, warnings = load(tmp_path / "file.yaml", lambda kind, name: "secret", interfaces="elsewhere")
    assert warnings == []
    as_written = read_items(text, lambda kind, name: "secret")[0].plain()
    errors = [error.message for error in Draft202012Validator(json_schema()).iter_errors(as_written)]
    assert errors == []


def test_schema_is_a_schema() -> None:
    """Draft 2020-12, and strict: an unknown key is refused wherever keys are known."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert all(model["additionalProperties"] is False for model in [schema, *schema["$defs"].values()])
    assert all("description" in field for field in _fields(schema))


def test_schema_spells_quantities_as_the_file_does() -> None:
    """Defaults are "5s" and "20GiB", not nanoseconds and bytes."""
    models = json_schema()["$defs"]
    assert models["Gateway"]["properties"]["stop_timeout"]["default"] == "5s"
    assert models["Buffer"]["properties"]["disk"]["default"] == "20GiB"
    defaults = [field.get("default") for field in _fields(json_schema())]
    assert not [number for number in defaults if isinstance(number, int) and number > 10**6]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gatewy": {}},
        {"gateway": {"stop_timeout": 5}},
        {"gateway": {"log": {"level": "inof"}}},
        {"to": {"a b": {"kafka": "k1"}}},
        {"to": {"a": {"kafka": "k1", "mqtt": "mqtt://h"}}},
        {"send": {"a": {"from": "*", "to": "a", "steps": [{"scael": 1}]}}},
        {"send": {"a": {"from": "*", "to": "a", "steps": [{"scale": 1, "select": "*"}]}}},
    ],
)
def test_schema_refuses(wrong: dict[str, Any]) -> None:
    """What an editor underlines."""
    right = {
        "devices": {"d": {"opcua": "opc.tcp://h:1", "tags": {"t": "i=1"}}},
        "send": {"a": {"from": "*", "to": "a"}},
        "to": {"a": {"kafka": "k1"}},
    }
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(right) and not validator.is_valid(right | wrong)


def test_tables_are_up_to_date() -> None:
    """Keys, defaults and words of the tables come from the settings models."""
    text = DOCUMENT.read_text("utf-8")
    refresh = "docs/configuration.md is out of date: run python -m gateway.schema --markdown docs/configuration.md"
    assert with_tables(text) == text, refresh


def test_every_model_has_its_table() -> None:
    """Each key of the file is documented once."""
    tables = re.findall(r"<!-- keys: (\w+) -->", DOCUMENT.read_text("utf-8"))
    models = {"GatewayFile", *json_schema()["$defs"]}
    assert sorted(tables) == sorted(models)


def test_every_field_has_its_row() -> None:
    """Walks the models themselves, beside the schema that the tables come from."""
    text = DOCUMENT.read_text("utf-8")
    for model in _models(GatewayFile, set()):
        table = text.partition(f"<!-- keys: {model.__name__} -->")[2].partition("<!-- end -->")[0]
        rows = [line for line in table.splitlines() if line.startswith("| `")]
        names = [field.alias or name for name, field in model.__pydantic_fields__.items()]
        assert [row.split("`")[1] for row in rows] == names
        required = [field.is_required() for field in model.__pydantic_fields__.values()]
        assert ["**required**" in row for row in rows] == required


def test_registries_name_models_with_their_key() -> None:
    """A device's or destination's model has the registry's word as its address key."""
    models = json_schema()["$defs"]
    for kinds in (DEVICES, TARGETS):
        for kind, place in kinds.items():
            assert kind in models[place.partition(":")[2]]["required"]


def _fields(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for model in [schema, *schema["$defs"].values()]:
        yield from model["properties"].values()


def _models(kind: Any, seen: set[Any]) -> set[Any]:
    """The settings models reachable from `kind`."""
    if isinstance(kind, type) and hasattr(kind, "__pydantic_fields__") and kind not in seen:
        seen.add(kind)
        for field in kind.__pydantic_fields__.values():
            _models(field.annotation, seen)
    for part in getattr(kind, "__args__", ()):
        _models(part, seen)
    return seen
