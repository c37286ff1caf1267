"""YAML to RunConfig, strictly: an unknown key, a wrong type or a missing value names its dotted path, line and remedy.

The text is composed to YAML nodes rather than to Python values, because nodes know their lines (and because YAML 1.1 reads
`1e-4` as a string, while a field knows that it wants a number).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from megatron_ovenc.config.tree import PRESETS, ModelConfig, RunConfig


class ConfigError(ValueError):
    """The configuration is wrong; the message says where and what to change."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` each, values in YAML; a head is addressed by its name or index, `heads.video.loss_weight=2`.

    Raises:
        ConfigError: the file cannot be read, or does not describe a RunConfig.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return parse(text, overrides, name=str(path))


def parse(text: str, overrides: Sequence[str] = (), name: str = "<configuration>") -> RunConfig:
    """As `load`, from a string; `name` stands for the file in messages."""
    root = _compose(text, name)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{name}: expected a mapping with keys such as run_dir, heads, train; found nothing of the kind"
        )
    for override in overrides:
        _override(root, override)
    return _Builder(name).build(RunConfig, root, "")


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML; loading it again gives an equal RunConfig."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _override(root: yaml.MappingNode, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key=value, for instance --set train.steps=100")
    value = _compose(text, f"--set {override}")
    if value is None:
        value = yaml.ScalarNode("tag:yaml.org,2002:null", "null")
    _mark(value, override)
    node: yaml.Node = root
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        child = _child(node, part)
        if child is None and isinstance(node, yaml.MappingNode):
            child = yaml.MappingNode("tag:yaml.org,2002:map", [])
            node.value.append((_key(part, override), child))
            _mark(child, override)
        if child is None:
            raise ConfigError(
                f"--set {override}: `{'.'.join(parents[: depth + 1])}` names nothing in the configuration; it knows {_names(node)}"
            )
        node = child
    if isinstance(node, yaml.SequenceNode):
        if (old := _child(node, last)) is None:
            raise ConfigError(f"--set {override}: `{key}` names no entry of the list")
        node.value[node.value.index(old)] = value
    elif isinstance(node, yaml.MappingNode):
        node.value = [(k, v) for k, v in node.value if k.value != last]
        node.value.append((_key(last, override), value))
    else:
        raise ConfigError(f"--set {override}: `{'.'.join(parents)}` is a single value, it has no `{last}`")


def _key(name: str, override: str) -> yaml.ScalarNode:
    node = yaml.ScalarNode("tag:yaml.org,2002:str", name)
    _mark(node, override)
    return node


def _child(node: yaml.Node, part: str) -> yaml.Node | None:
    """Entry of a mapping by key, of a list by index or by the entry's `name`."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode):
        if part.isdigit() and int(part) < len(node.value):
            return node.value[int(part)]
        return next((n for n in node.value if (label := _child(n, "name")) is not None and label.value == part), None)
    return None


def _mark(node: yaml.Node, override: str) -> None:
    """Let errors in an override point at it instead of at a line."""
    node.start_mark = override
    for item in node.value if isinstance(node.value, list) else ():
        for part in item if isinstance(item, tuple) else (item,):
            _mark(part, override)


class _Builder:
    """Builds dataclasses out of nodes, keeping the dotted path for messages."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, node: yaml.Node, path: str, problem: str) -> typing.NoReturn:
        mark = node.start_mark
        if isinstance(mark, str):
            raise ConfigError(f"--set {mark}: `{path}` {problem}")
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{self.name}{line}: `{path}` {problem}" if path else f"{self.name}{line}: {problem}")

    def build(self, kind: type, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, path, f"must be a mapping with the keys of {kind.__name__}")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            dotted = f"{path}.{key}" if path else key
            if key not in fields:
                self.fail(key_node, dotted, f"is not a key of the configuration{_nearest(key, fields)}")
            if key in values:
                self.fail(key_node, dotted, "appears twice; keep one")
            values[key] = self.value(hints[key], value_node, dotted)
        if kind is ModelConfig and values.get("preset"):
            values = {**PRESETS[values["preset"]], **values}
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in values:
                self.fail(node, path, f"needs the key `{name}`" if path else f"the key `{name}` is missing")
        return kind(**values)

    def value(self, hint: Any, node: yaml.Node, path: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType):
            if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
                return None
            return self.value(next(a for a in arguments if a is not type(None)), node, path)
        if dataclasses.is_dataclass(hint):
            return self.build(typing.cast(type, hint), node, path)
        if origin is tuple:
            return self.sequence(arguments, node, path)
        if not isinstance(node, yaml.ScalarNode):
            self.fail(
                node, path, f"must be a single value, not a {'list' if isinstance(node.value, list) else 'mapping'}"
            )
        if origin is Literal:
            for allowed in arguments:
                if node.value == str(allowed):
                    return allowed
            self.fail(
                node,
                path,
                f"is {node.value!r}; it must be one of {', '.join(map(str, arguments))}{_nearest(node.value, arguments)}",
            )
        return self.scalar(hint, node, path)

    def sequence(self, arguments: tuple[Any, ...], node: yaml.Node, path: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, path, "must be a list")
        if arguments[-1] is Ellipsis:
            return tuple(self.value(arguments[0], item, f"{path}.{i}") for i, item in enumerate(node.value))
        if len(node.value) != len(arguments):
            self.fail(node, path, f"must have {len(arguments)} entries, not {len(node.value)}")
        return tuple(
            self.value(hint, item, f"{path}.{i}")
            for i, (hint, item) in enumerate(zip(arguments, node.value, strict=True))
        )

    def scalar(self, hint: type, node: yaml.ScalarNode, path: str) -> Any:
        text = node.value
        if node.tag.endswith(":null"):
            self.fail(node, path, f"is empty; it must be a value of type {hint.__name__}")
        if hint is bool:
            if node.tag.endswith(":bool"):
                return text.lower() in ("true", "yes", "on")
            self.fail(node, path, f"is {text!r}; it must be true or false")
        if hint is str:
            return text
        try:
            number = int(text.replace("_", "")) if hint is int else float(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
        self.fail(node, path, f"is {text!r}; it must be {'a whole number' if hint is int else 'a finite number'}")


def _names(node: yaml.Node) -> str:
    """What an entry of a list can be called: its number, or its `name`."""
    assert isinstance(node, yaml.SequenceNode)
    names = (_child(item, "name") for item in node.value)
    return (
        ", ".join(f"{place}" + (f" ({name.value})" if name is not None else "") for place, name in enumerate(names))
        or "none"
    )


def _nearest(word: str, candidates: typing.Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(word), [str(c) for c in candidates], n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""
