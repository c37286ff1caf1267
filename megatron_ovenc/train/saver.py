"""When a run saves, and what a failed save means to it."""

from __future__ import annotations

from collections.abc import Callable

from megatron_ovenc.train.checkpoint import Checkpointer
from megatron_ovenc.train.checkpoint_reader import CheckpointError
from megatron_ovenc.train.say import Say
from megatron_ovenc.train.state import TrainState


class Saver:
    """Saves a state that may be on disk already. A failed save of a running job is loud but not fatal: the next may succeed.

    Args:
        checkpointer: does the work.
        state: as it is when this is made, it is on disk if it has taken any step.
        say: tells a person.
    """

    def __init__(self, checkpointer: Checkpointer, state: TrainState, say: Say) -> None:
        self.checkpointer, self.state, self._say = checkpointer, state, say
        self._saved_step = state.step or None
        self._told: BaseException | None = None

    def save(self, final: bool = False) -> None:
        """Checkpoint the state unless this step already is. Collective; a final save waits until it is on disk.

        Raises:
            CheckpointError: the final save failed, on any rank.
        """
        if not self._loudly(self.checkpointer.wait):  # a save in the background has failed since
            self._saved_step = None
        if self._saved_step != self.state.step:
            tensors, scalars = self.state.tensors(), self.state.scalars()
            if self._loudly(lambda: self.checkpointer.save(tensors, scalars)):
                self._saved_step = self.state.step
                self._say(f"checkpoint of step {self.state.step} -> {self.checkpointer.directory}")
        if final:
            self.checkpointer.wait()
            if self._saved_step != self.state.step:
                raise CheckpointError(
                    f"the last checkpoint, of step {self.state.step}, could not be written; see above"
                )

    def report(self) -> dict[str, float]:
        """Numbers of a save that has ended since this was last asked. One that failed in the background is told at once."""
        if error := self.checkpointer.failed():
            self._tell(error)
        return self.checkpointer.take_facts()

    def _loudly(self, write: Callable[[], None]) -> bool:
        """Whether `write` succeeded; if not, say so and go on."""
        try:
            write()
        except CheckpointError as error:
            self._tell(error)
            return False
        return True

    def _tell(self, error: BaseException) -> None:
        if error is not self._told:
            self._told = error
            self._say(f"{error}; training goes on", alarm="CHECKPOINT FAILED")
