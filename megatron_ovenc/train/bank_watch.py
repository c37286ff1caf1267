"""Looks at the banks every `log.bank_every` steps, and keeps what a picture of them needs.

<run_dir>/banks/<head>.first.safetensors    embeddings of a batch and the centres that it names, at the first look
<run_dir>/banks/<head>.last.safetensors     the same at the latest one
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from megatron_ovenc.concept_bank import ConceptBank
from megatron_ovenc.concept_bank.watch import look, snapshot
from megatron_ovenc.train.say import Say


class BankWatch:
    """One for all heads.

    Args:
        run_dir: where snapshots go; written by the main rank.
        every: steps between looks; 0 never looks.
        say: tells a person.
    """

    def __init__(self, run_dir: Path, every: int, say: Say) -> None:
        self.folder, self.every, self._say = run_dir / "banks", every, say

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, is looked at: the first, and the last of every `every`."""
        return self.every > 0 and (step == 0 or (step + 1) % self.every == 0)

    def look(self, bank: ConceptBank, embeddings: Tensor, labels: Tensor, draw: int, step: int) -> dict[str, float]:
        """Numbers by `<head>/<name>`; embeddings [B, D] and labels [B, K] of this data rank. Collective over the world."""
        numbers = look(bank, embeddings, labels, step=draw)
        picture = snapshot(bank, embeddings, labels)
        if bank.topology.is_main:
            try:
                self._write(bank.head, picture, step)
            except OSError as error:  # a picture is not worth a run
                self._say(f"{error}; training goes on", alarm="BANK SNAPSHOT FAILED")
        return {f"{bank.head}/{name}": value for name, value in numbers.items()}

    def _write(self, head: str, picture: Mapping[str, Tensor], step: int) -> None:
        self.folder.mkdir(exist_ok=True)
        first = self.folder / f"{head}.first.safetensors"
        path = first if step == 0 or not first.exists() else self.folder / f"{head}.last.safetensors"
        partial = path.with_suffix(".tmp")
        save_file(dict(picture), partial, metadata={"step": str(step)})
        os.replace(partial, path)
