"""Whether a failed run starts again: from the last checkpoint, a bounded number of times, and not in vain."""

from __future__ import annotations

import signal
from collections.abc import Callable

from launch.outcome import Outcome
from megatron_ovenc.train.run_lock import RunInUse

FRUITLESS = 2
"""Restarts from one and the same checkpoint after which a job is given up: it fails for a reason that lies in it."""
FIRST_PAUSE_S = 5.0
"""Seconds between an attempt's end and the next one's checks; doubled for each further look at what is not ready."""
LONGEST_PAUSE_S = 120.0
PATIENCE_S = 900.0
"""Seconds of pauses after which hosts, or a lock on the run directory, that still keep a restart back end the job. A server takes
up to ten minutes to reboot, and a file server keeps the locks of a dead host for a minute or two."""


def repeat(
    attempt: Callable[[int], Outcome],
    last_step: Callable[[], int],
    restarts: int,
    pause: Callable[[float], bool],
    *,
    patience_s: float = PATIENCE_S,
    requeued: bool = False,
) -> Outcome:
    """Make attempts until one ends well, is not worth another, or the restarts are used up.

    Args:
        attempt: makes attempt 1, 2, ...; a ValueError means that it could not be started, and then it does not count.
        last_step: step of the newest checkpoint, from which the next attempt would go on.
        restarts: the most attempts after the first.
        pause: waits for so many seconds; False when told to stop.
        patience_s: seconds of pauses for which a restart that cannot be started is tried again.
        requeued: the first attempt is a restart, too: a person waits to hear what is wrong, a scheduler does not.

    Returns:
        The last attempt's outcome, and why there is no further one.

    Raises:
        ValueError: of the first attempt.
    """
    outcome = _when_ready(attempt, 1, pause, patience_s) if requeued else attempt(1)
    if outcome is None:
        return Outcome(128 + signal.SIGINT, "told to stop before anything was started")
    restarted_from: list[int] = []
    while outcome.worth_another and len(restarted_from) < restarts:
        step = last_step()
        if restarted_from[-FRUITLESS:] == [step] * FRUITLESS:
            why = f"given up: {FRUITLESS} restarts from step {step} reached no further checkpoint"
            return Outcome(outcome.code, f"{outcome.reason}; {why}")
        restarted_from.append(step)
        print(f"submit: {outcome.reason}", flush=True)
        print(f"submit: restart {len(restarted_from)} of {restarts} from step {step}", flush=True)
        try:
            following = _when_ready(attempt, len(restarted_from) + 1, pause, patience_s)
        except ValueError as error:
            return Outcome(outcome.code, f"{outcome.reason}; not started again: {error}")
        if following is None:
            return Outcome(outcome.code, f"{outcome.reason}; told to stop, so not started again")
        outcome = following
    return outcome


def _when_ready(
    attempt: Callable[[int], Outcome], number: int, pause: Callable[[float], bool], patience_s: float
) -> Outcome | None:
    """Make an attempt as soon as it can be started; None when told to stop before.

    Raises:
        ValueError: it cannot be started, and patience is at its end.
    """
    waited, wait = 0.0, FIRST_PAUSE_S
    while pause(wait):
        waited += wait
        try:
            return attempt(number)
        except ValueError as error:
            if waited >= patience_s:
                kind = RunInUse if isinstance(error, RunInUse) else ValueError
                raise kind(f"after {waited:g} s of waiting (--patience {patience_s:g}), {error}") from error
            wait = min(2 * wait, LONGEST_PAUSE_S)
            print(f"submit: not yet: {error}\nsubmit: looking again in {wait:g} s", flush=True)
    return None
