"""The arithmetic encoder (H.265 clause 9.3): contexts, decision, bypass and terminating bins."""

from collections.abc import Sequence
from math import log2

from tests.codec.hevc_streams.bits import BitWriter
from tests.codec.hevc_streams.syntax_tables import CONTEXT_INIT, RANGE_LPS, TRANSITION_LPS

LOG2 = [0.0, *(log2(value) for value in range(1, 512))]


def initial_contexts(init_type: int, slice_qp: int) -> dict[str, list[int]]:
    """The states (pStateIdx << 1 | valMps) of every syntax element for one initType (0: I, 1 and 2: P and B)."""
    qp = min(max(slice_qp, 0), 51)
    contexts = {}
    for name, per_type in CONTEXT_INIT.items():
        states = []
        for value in per_type[init_type]:
            slope, offset = (value >> 4) * 5 - 45, ((value & 15) << 3) - 16
            state = min(max(((slope * qp) >> 4) + offset, 1), 126)
            states.append((state - 64) << 1 | 1 if state > 63 else (63 - state) << 1)
        contexts[name] = states
    return contexts


def copy_contexts(contexts: dict[str, list[int]]) -> dict[str, list[int]]:
    return {name: list(states) for name, states in contexts.items()}


class CabacEncoder:
    """Encodes bins into `bits`; a new one begins at every slice segment, substream and after every PCM block."""

    def __init__(self, contexts: dict[str, list[int]]) -> None:
        self.contexts = contexts
        self.out = BitWriter()
        self.spent = 0.0  # bits: what each bin narrows the range by, and PCM samples as they are
        self._restart()

    def _restart(self) -> None:
        self.low, self.range, self.outstanding, self.first = 0, 510, 0, True

    def _put(self, bit: int) -> None:
        if self.first:
            self.first = False
        else:
            self.out.bits.append(bit)
        if self.outstanding:
            self.out.bits.extend([1 - bit] * self.outstanding)
            self.outstanding = 0

    def _renormalise(self) -> None:
        while self.range < 256:
            if self.low < 256:
                self._put(0)
            elif self.low >= 512:
                self.low -= 512
                self._put(1)
            else:
                self.low -= 256
                self.outstanding += 1
            self.range <<= 1
            self.low <<= 1

    def decision(self, name: str, context: int, value: int) -> None:
        """One bin with the adaptive context `context` of the syntax element `name`."""
        states = self.contexts[name]
        state, most_probable = states[context] >> 1, states[context] & 1
        lps = RANGE_LPS[state][(self.range >> 6) & 3]
        self.spent += LOG2[self.range]
        self.range -= lps
        if value != most_probable:
            self.low += self.range
            self.range = lps
            if state == 0:
                most_probable = 1 - most_probable
            states[context] = TRANSITION_LPS[state] << 1 | most_probable
        else:
            states[context] = min(state + 1, 62) << 1 | most_probable
        self.spent -= LOG2[self.range]
        self._renormalise()

    def bypass(self, value: int) -> None:
        """One bin of probability one half."""
        self.spent += 1
        self.low <<= 1
        if value:
            self.low += self.range
        if self.low >= 1024:
            self._put(1)
            self.low -= 1024
        elif self.low < 512:
            self._put(0)
        else:
            self.low -= 512
            self.outstanding += 1

    def bypass_bits(self, value: int, length: int) -> None:
        """Fixed-length code of bypass bins."""
        for shift in range(length - 1, -1, -1):
            self.bypass((value >> shift) & 1)

    def exp_golomb(self, value: int, order: int) -> None:
        """k-th order Exp-Golomb code of bypass bins (9.3.3.5)."""
        while value >= 1 << order:
            self.bypass(1)
            value -= 1 << order
            order += 1
        self.bypass(0)
        self.bypass_bits(value, order)

    def terminate(self, value: int) -> None:
        """A terminating bin; a one also flushes the encoder and aligns to a byte (9.3.5.6 and byte_alignment())."""
        self.spent += LOG2[self.range]
        self.range -= 2
        self.spent -= LOG2[self.range if not value else 2]
        if not value:
            self._renormalise()
            return
        self.low += self.range
        self.range = 2
        self._renormalise()
        self._put((self.low >> 9) & 1)
        self.out.u((self.low >> 7) & 3 | 1, 2)
        self.out.align()

    def raw(self, values: Sequence[int], length: int) -> None:
        """PCM samples after a terminating bin, then a new start of the arithmetic coder."""
        self.spent += length * len(values)
        for value in values:
            self.out.u(value, length)
        self.out.align()
        self._restart()
