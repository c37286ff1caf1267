"""How an attempt ended. Launchers lose it: DeepSpeed reports death by a signal as success, torchrun turns every code into 1."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ovenc.train.exit_codes import EXIT_CONFIG, EXIT_FAILED, EXIT_FINISHED, EXIT_IN_USE, EXIT_STOPPED
from megatron_ovenc.train.exit_status import FAILURES


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt: exit code and one sentence."""

    code: int
    reason: str

    @property
    def worth_another(self) -> bool:
        """Whether starting again may help: not after success, a request to stop, or a wrong configuration."""
        return self.code not in {EXIT_FINISHED, EXIT_STOPPED, EXIT_CONFIG}


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
    said, step, detail = status.get("status"), status.get("step", 0), str(status.get("detail", ""))
    if said == "stopped" or (returncode == EXIT_STOPPED and said not in FAILURES):
        where = f" at step {step}" if said == "stopped" else ""
        return Outcome(EXIT_STOPPED, f"stopped{where} with a checkpoint; the same command continues")
    if (
        said == "finished"
    ):  # written after the last checkpoint: nothing is missing, whatever the launcher met afterwards
        remark = f" (the launcher then ended with {_name(returncode)})" if returncode else ""
        return Outcome(EXIT_FINISHED, f"finished at step {step}{remark}")
    if aborted:  # the launcher's code then tells how it was ended, not why
        tale = f"{aborted}; rank {status.get('rank')} {said}: {detail}" if said in FAILURES else aborted
        return Outcome(EXIT_FAILED, tale)
    if returncode == EXIT_CONFIG or said == "refused":
        return Outcome(EXIT_CONFIG, detail or "a rank refused the configuration; its message is above")
    if returncode == EXIT_IN_USE and not status:
        return Outcome(EXIT_IN_USE, "another job has the run directory; the message above names it")
    code = _shell_code(returncode)
    how = f"the launcher ended with {_name(returncode)}"
    if said in FAILURES:
        tale = f"rank {status.get('rank')} {said} at step {step}: {_first_sentence(detail)}"
        return Outcome(code, f"a rank died of {_name(returncode)}; {tale}" if _was_killed(returncode) else tale)
    if not status:
        return Outcome(code, f"{how}, and the ranks never started training; their messages are above")
    return Outcome(
        code,
        f"{how}, but training had neither finished nor been told to stop; a rank was killed, or its message is above",
    )


def _was_killed(returncode: int) -> bool:
    """Whether a rank died by a signal without a word: what others then report is that they miss it.

    Launchers end the remaining ranks by SIGTERM, so that one tells nothing.
    """
    return _signal_number(returncode) not in {0, signal.SIGTERM, signal.SIGINT}


def _first_sentence(text: str) -> str:
    return text.splitlines()[0].partition(". ")[0][:300] if text else "no reason given"


def _shell_code(returncode: int) -> int:
    """The exit code of a failure: 128 + n for death by signal n, and none that means something else."""
    number = _signal_number(returncode)
    taken = {EXIT_FINISHED, EXIT_STOPPED, EXIT_IN_USE}
    return 128 + number if number else EXIT_FAILED if returncode in taken else returncode


def _signal_number(returncode: int) -> int:
    """The signal that ended a launcher (-n) or a rank, which DeepSpeed passes on as 256 - n; 0 if none did."""
    number = 256 - returncode if 191 < returncode < 255 else -returncode  # 255 is ssh's own failure
    return number if number in set(signal.Signals) else 0


def _name(returncode: int) -> str:
    number = _signal_number(returncode)
    return signal.Signals(number).name if number else f"code {returncode}"
