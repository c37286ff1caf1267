"""Options from a YAML file: `tokens: 2048` for `--tokens 2048`, lists for options that take several values."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

import yaml


def with_options_file(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The command line with the options of its `--config` file put before its own, which therefore win.

    Raises:
        ValueError: the file cannot be read, or has a key that is no option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(arguments)[0].config
    return arguments if path is None else [*_as_arguments(parser, path), *arguments]


def _as_arguments(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold options such as `tokens: 2048`")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config", "local_rank")}
    found: list[str] = []
    for key, value in content.items():
        action = known.get(str(key).replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"--config {path}: `{key}` is no option" + (f"; did you mean `{near[0]}`?" if near else "")
            )
        several = isinstance(value, list)
        if isinstance(value, dict) or value is None or (several and action.nargs is None):
            raise ValueError(f"--config {path}: `{key}` is {value!r}; give a single value")
        found += [action.option_strings[0], *map(str, value if several else [value])]
    return found
