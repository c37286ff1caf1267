"""JSON schema of the run configuration, for editors: types, defaults and the docstrings under the fields.

python -m megatron_ovenc.config.schema > configs/schema.json
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import types
import typing
from typing import Any, Literal, Union

from megatron_ovenc.config.tree import RunConfig


def field_docstrings(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(kind)).body[0]).body
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[typing.cast(ast.Name, field.target).id] = str(text.value.value)
    return found


def schema(kind: type = RunConfig) -> dict[str, Any]:
    """JSON schema of a dataclass of the configuration tree."""
    hints, docs = typing.get_type_hints(kind), field_docstrings(kind)
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        entry = _type(hints[field.name])
        entry["description"] = docs[field.name]
        if field.default is not dataclasses.MISSING:
            entry["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    return {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(argument) for argument in arguments]}
    if hint is type(None):
        return {"type": "null"}
    if dataclasses.is_dataclass(hint):
        return schema(typing.cast(type, hint))
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[hint]}


if __name__ == "__main__":
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema()}, indent=2))
