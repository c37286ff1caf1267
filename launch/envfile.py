"""The declared environment of a job: the only variables that are carried to the ranks on other hosts.

# comment                    on a line of its own
NCCL_IB_HCA=mlx5_0,mlx5_1    everything after the first `=` is the value, blanks included, without quotes
LD_LIBRARY_PATH              a name alone: the value it has where the job is submitted
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

JOB_VARIABLE = "OVENC_JOB"
"""Carried by every process of an attempt: `<job>.<attempt>`. By it leftovers are found, and exit_status.json is attributed."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", JOB_VARIABLE}


def read_environment(path: Path, here: Mapping[str, str]) -> dict[str, str]:
    """Variables declared in a file.

    Args:
        path: the file.
        here: environment from which names alone take their values.

    Raises:
        ValueError: with the file, the line and the reason.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--env-file {path} cannot be read: {error}") from error
    declared: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            name, value = _parse_line(line, here)
            if name in declared:
                raise ValueError(f"{name} is declared twice; keep one of them")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        declared[name] = value
    return declared


def _parse_line(line: str, here: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if not _NAME.fullmatch(name):
        raise ValueError(f"`{line}` is not NAME=value (no `export`, no blanks around `=`) or a NAME alone")
    if name in _RESERVED:
        raise ValueError(f"{name} is set by the launcher; remove the line")
    if not equals:
        if name not in here:
            raise ValueError(f"{name} stands alone, but is not set here; export it or write {name}=value")
        return name, here[name]
    if value[:1] in {'"', "'"} and value[-1:] == value[:1]:
        raise ValueError(f"{name} has quotes around its value; they would become part of it, blanks need none")
    if value != value.lstrip() or " #" in value:
        raise ValueError(f"{name}: no blank after `=`, and comments on lines of their own")
    return name, value


def shell_exports(variables: Mapping[str, str]) -> str:
    """A script for `source` that sets the variables; any value survives."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
