"""Whether a failed run starts again: from the last checkpoint, a bounded number of times, and not in vain."""

from __future__ import annotations

from collections.abc import Callable

from launch.outcome import Outcome

FRUITLESS = 2
"""Restarts from one and the same checkpoint after which a job is given up: it fails for a reason that lies in it."""


def repeat(
    attempt: Callable[[int], Outcome],
    last_step: Callable[[], int],
    restarts: int,
    may_restart: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Make attempts until one ends well, is not worth another, or the restarts are used up.

    Args:
        attempt: makes attempt 1, 2, ...; a ValueError means that it could not be started.
        last_step: step of the newest checkpoint, from which the next attempt would go on.
        restarts: the most attempts after the first.
        may_restart: asked before a restart; waits as long as it should.

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
        if not may_restart():
            return Outcome(outcome.code, f"{outcome.reason}; told to stop, so not started again")
        restarted_from.append(step)
        print(f"submit: {outcome.reason}", flush=True)
        print(f"submit: restart {len(restarted_from)} of {restarts} from step {step}", flush=True)
        try:
            outcome = attempt(len(restarted_from) + 1)
        except ValueError as error:
            return Outcome(outcome.code, f"{outcome.reason}; not started again: {error}")
    return outcome
