"""Whether a failed run starts again: from the last checkpoint, a bounded number of times, and not in vain."""

from __future__ import annotations

from collections.abc import Callable

from launch.outcome import Outcome

FRUITLESS = 2
"""Restarts from one and the same checkpoint after which a job is given up: it fails for a reason that lies in it."""
FIRST_PAUSE_S = 5.0
"""Seconds between an attempt's end and the next one's checks; doubled for each further look at hosts that are not ready."""
LONGEST_PAUSE_S = 120.0
PATIENCE_S = 900.0
"""Seconds of pauses after which hosts that are still not ready end the job. A server takes up to ten minutes to reboot."""


def repeat(
    attempt: Callable[[int], Outcome],
    last_step: Callable[[], int],
    restarts: int,
    pause: Callable[[float], bool],
) -> Outcome:
    """Make attempts until one ends well, is not worth another, or the restarts are used up.

    Args:
        attempt: makes attempt 1, 2, ...; a ValueError means that it could not be started, and then it does not count.
        last_step: step of the newest checkpoint, from which the next attempt would go on.
        restarts: the most attempts after the first.
        pause: waits for so many seconds; False when told to stop.

    Returns:
        The last attempt's outcome, and why there is no further one.

    Raises:
        ValueError: of the first attempt.
    """
    outcome = attempt(1)
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
            following = _when_ready(attempt, len(restarted_from) + 1, pause)
        except ValueError as error:
            return Outcome(outcome.code, f"{outcome.reason}; not started again: {error}")
        if following is None:
            return Outcome(outcome.code, f"{outcome.reason}; told to stop, so not started again")
        outcome = following
    return outcome


def _when_ready(attempt: Callable[[int], Outcome], number: int, pause: Callable[[float], bool]) -> Outcome | None:
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
            if waited >= PATIENCE_S:
                raise ValueError(f"after {waited:g} s of waiting, {error}") from error
            wait = min(2 * wait, LONGEST_PAUSE_S)
            print(f"submit: not yet: {error}\nsubmit: looking again in {wait:g} s", flush=True)
    return None
