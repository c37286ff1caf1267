"""How an attempt ended. Launchers lose it: DeepSpeed reports death by a signal as success, torchrun turns every code into 1."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ovenc.train.faults import EXIT_STOPPED

EXIT_CONFIG = 2
"""Exit code of a wrong configuration: starting again does not help."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt: exit code and one sentence."""

    code: int
    reason: str

    @property
    def worth_another(self) -> bool:
        """Whether starting again may help: not after success, a request to stop, or a wrong configuration."""
        return self.code not in {0, EXIT_STOPPED, EXIT_CONFIG}


def read_status(run_dir: Path, attempt: str) -> dict[str, Any]:
    """exit_status.json if this attempt wrote it, else nothing: an earlier one may have ended well."""
    try:
        status = json.loads((run_dir / "exit_status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) and status.get("job") == attempt else {}


def judge(returncode: int, status: dict[str, Any], aborted: str | None = None) -> Outcome:
    """Tell an attempt's end from what its launcher and its ranks left.

    Args:
        returncode: of the launcher; negative when a signal killed it.
        status: what `read_status` found.
        aborted: why the attempt was ended from outside, if it was.
    """
    said, step = status.get("status"), status.get("step", 0)
    if said == "stopped" or returncode == EXIT_STOPPED:
        return Outcome(
            EXIT_STOPPED,
            f"stopped at step {step} with a checkpoint; the same command continues"
            if said == "stopped"
            else "stopped with a checkpoint; the same command continues",
        )
    if aborted:
        return Outcome(_shell_code(returncode), f"{aborted} (step {step})" if status else aborted)
    if said == "finished" and returncode == 0:
        return Outcome(0, f"finished at step {step}")
    detail = str(status.get("detail", ""))
    if returncode == EXIT_CONFIG or detail.startswith("ConfigError"):
        return Outcome(EXIT_CONFIG, detail or "a rank refused the configuration; its message is above")
    code = _shell_code(returncode)
    if said in {"failed", "hung"}:
        return Outcome(code, f"rank {status.get('rank')} {said} at step {step}: {detail}")
    how = f"the launcher ended with {_name(returncode)}"
    if said == "finished":
        return Outcome(code, f"{how} after training had finished at step {step}")
    told = (
        "and the ranks never started training"
        if not status
        else "but training had neither finished nor been told to stop"
    )
    return Outcome(code, f"{how}, {told}; a rank was killed, or its message is above")


def _shell_code(returncode: int) -> int:
    """A non-zero exit code; 128 + n for death by signal n, which DeepSpeed passes on as 256 - n."""
    number = _signal_number(returncode)
    return 128 + number if number else returncode or 1


def _signal_number(returncode: int) -> int:
    number = -returncode if returncode < 0 else 256 - returncode if returncode > 255 - 65 else 0
    return number if number in set(signal.Signals) else 0


def _name(returncode: int) -> str:
    number = _signal_number(returncode)
    return signal.Signals(number).name if number else f"code {returncode}"
