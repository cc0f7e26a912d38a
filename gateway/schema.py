"""The settings models as a JSON Schema (draft 2020-12) for editors, and as the tables of docs/configuration.md.

python -m gateway.schema                                  prints the schema, as `gateway schema` does
python -m gateway.schema --markdown docs/configuration.md   writes the tables in that file anew
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from inspect import isfunction
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from gateway.config_fields import format_size
from gateway.settings import GatewayFile
from pipelines.quantities import Duration, Settings, Size, format_duration

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MARKED = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def json_schema() -> Schema:
    """What an editor needs to complete and check the file as a person writes it."""
    return {"$schema": DIALECT, "title": "Configuration of the gateway", **settings_schema(GatewayFile)}


def settings_schema(model: type[Settings]) -> Schema:
    """Of any settings, as a person writes them."""
    tidy: Schema = _tidied(model.model_json_schema(schema_generator=_Generator))
    return tidy


def with_tables(markdown: str) -> str:
    """The text with a fresh table between each `<!-- keys: Model -->` and `<!-- end -->`."""
    schema = json_schema()
    models = {"GatewayFile": schema, **schema["$defs"]}
    return _MARKED.sub(lambda match: f"{match[1]}{_table(match[2], models[match[2]])}{match[3]}", markdown)


class _Generator(GenerateJsonSchema):
    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """A plain function in front of a model is its short form as text: `temperature: ns=2;s=Press4.Temp`."""
        made = super().function_before_schema(schema)
        of_model = "$ref" in made and isfunction(schema["function"]["function"])
        return {"anyOf": [{"type": "string"}, made]} if of_model else made


def _pattern(quantity: Any) -> str:
    return str(TypeAdapter(quantity).json_schema()["pattern"])


_FORMATS: Mapping[str, tuple[str, Callable[[int], str]]] = {
    _pattern(Duration): ("duration", format_duration),
    _pattern(Size): ("size", format_size),
}
"""Pattern of a quantity -> its word, and how its number is written in the file."""


def _quantity(schema: Schema) -> tuple[str, Callable[[int], str]] | None:
    return _FORMATS.get(_without_null(schema).get("pattern", ""))


def _without_null(schema: Schema) -> Schema:
    """The one alternative of `X | None`; other schemas as they are."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    chosen: Schema = choices[0] if len(choices) == 1 else schema
    return chosen


def _tidied(schema: Any) -> Any:
    """Quantities as the file spells them, names that are checked, and without titles that only repeat the key."""
    if isinstance(schema, list):
        return [_tidied(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidied(part) for key, part in schema.items() if not (key == "title" and isinstance(part, str))}
    default = schema.get("default")
    quantity = _quantity(schema)
    if quantity and isinstance(default, int):
        tidy["default"] = quantity[1](default)
    elif isinstance(default, dict):
        del tidy["default"]  # each key below has its own
    if schema.get("pattern") in _FORMATS:
        tidy |= {"type": ["string", "integer"], "minimum": 0, "maximum": 0}  # no number but a bare 0
    if "patternProperties" in schema:
        tidy["additionalProperties"] = False
    return tidy


def _table(name: str, model: Schema) -> str:
    required = model.get("required", ())
    lines = [f'<a id="keys-{name.lower()}"></a>', "", "| Key | Takes | Default | Example | Meaning |"]
    lines.append("|---|---|---|---|---|")
    for key, field in model["properties"].items():
        cells = [f"`{key}`", _takes(field), _default(field, key in required), _example(key, field)]
        lines.append("| " + " | ".join([*cells, _escaped(field.get("description", ""))]) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """For a cell: no bar, and outside of code no `<` that Markdown would take for HTML."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def _takes(field: Schema) -> str:
    """The kind of value, for people."""
    if quantity := _quantity(field):
        return quantity[0]
    field = _without_null(field)
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_takes(choice) for choice in choices if choice.get("type") != "null")
    if reference := field.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[keys](#keys-{name.lower()})"
    if values := field.get("enum") or ([field["const"]] if "const" in field else []):
        return ", ".join(f"`{value}`" for value in values)
    if "patternProperties" in field or isinstance(field.get("additionalProperties"), dict):
        below = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")][0]
        return f"name: {_takes(below)}"
    if field.get("type") == "array":
        return f"list of {_takes(field['items'])}"
    kinds = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}
    formats = {"path": "path", "password": "text, secret"}
    return formats.get(field.get("format", ""), kinds.get(field.get("type", ""), "see right")) + _range(field)


def _range(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is None:
        return ""
    return f", {low:g} or more" if high is None else f", {low:g} to {high:g}"


def _default(field: Schema, required: bool) -> str:
    if required:
        return "**required**"
    default = field.get("default")
    return "–" if default in (None, "", []) else f"`{_written(default)}`"


def _example(key: str, field: Schema) -> str:
    """The field's own example; else what shows its form: another choice than the default, or the default."""
    inner, default = _without_null(field), field.get("default")
    known = [*field.get("examples", ()), *inner.get("examples", ())]
    if _quantity(field) and default is not None:
        known = []  # the type's, the same for every field: the default says more
    if inner.get("type") == "boolean":
        known.append(not default)
    known += [choice for choice in inner.get("enum", ()) if choice != default]
    if inner.get("format") == "password":
        known.append("${file:/run/secrets/password}")
    found = next((value for value in [*known, default] if value not in (None, "", [])), None)
    return "" if found is None else f"`{key}: {_written(found)}`"


def _written(value: Any) -> str:
    """As the file spells it."""
    text = value if isinstance(value, str) and value != "*" else json.dumps(value)
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> None:
    """The commands of this module's description."""
    if arguments[:1] == ["--markdown"]:
        for name in arguments[1:]:
            file = Path(name)
            file.write_text(with_tables(file.read_text("utf-8")), "utf-8")
        return
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
