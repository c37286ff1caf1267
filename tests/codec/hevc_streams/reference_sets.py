"""Reference picture sets (H.265 clauses 7.3.7 and 7.4.8)."""

from dataclasses import dataclass, field

from tests.codec.hevc_streams.bits import BitWriter


@dataclass(frozen=True)
class ShortTermSet:
    """Negative and positive POC deltas, nearest first, each with whether the current picture uses it."""

    before: tuple[tuple[int, bool], ...] = ()
    after: tuple[tuple[int, bool], ...] = ()

    @property
    def deltas(self) -> tuple[tuple[int, bool], ...]:
        return self.before + self.after


@dataclass(frozen=True)
class LongTerm:
    """A long-term reference picture in a slice header."""

    poc: int
    used: bool = True
    msb_present: bool = False
    sps_index: int | None = None  # taken from the SPS's list instead of coding the lsb


@dataclass(frozen=True)
class ReferenceSet:
    short: ShortTermSet = field(default_factory=ShortTermSet)
    long: tuple[LongTerm, ...] = ()
    sps_set: int | None = None  # index of the SPS's short-term set; None codes the set in the slice header

    @property
    def used_count(self) -> int:
        """NumPicTotalCurr."""
        return sum(used for _, used in self.short.deltas) + sum(entry.used for entry in self.long)


def _prediction(target: ShortTermSet, source: ShortTermSet) -> tuple[int, list[bool | None]] | None:
    """deltaRps and for each of the source's deltas (and zero at the end) used, unused (False) or dropped (None)."""
    wanted = dict(target.deltas)
    candidates = [*(delta for delta, _ in source.deltas), 0]
    for shift in sorted({have - base for have in wanted for base in candidates} - {0}, key=abs):
        moved = [base + shift for base in candidates]
        if set(wanted) <= set(moved):
            return shift, [wanted.get(delta) for delta in moved]
    return None


def write_short_term_set(bits: BitWriter, sets: list[ShortTermSet], index: int, predict: bool) -> None:
    """st_ref_pic_set( index ) of the SPS; the last set of `sets` stands for the slice header's own where asked so."""
    target = sets[index]
    prediction = _prediction(target, sets[index - 1]) if predict and index else None
    if index:
        bits.u(int(prediction is not None))
    if prediction is not None:
        shift, uses = prediction
        bits.u(int(shift < 0))
        bits.ue(abs(shift) - 1)
        for use in uses:
            bits.u(int(bool(use)))
            if not use:
                bits.u(int(use is not None))
        return
    bits.ue(len(target.before))
    bits.ue(len(target.after))
    for side in (target.before, target.after):
        previous = 0
        for delta, used in side:
            bits.ue(abs(delta - previous) - 1)
            bits.u(int(used))
            previous = delta


def write_slice_short_term_set(bits: BitWriter, sets: list[ShortTermSet], target: ShortTermSet, predict: bool) -> None:
    """st_ref_pic_set( num_short_term_ref_pic_sets ) in a slice header; predicted from the SPS's last set if asked."""
    prediction = _prediction(target, sets[-1]) if predict and sets else None
    if prediction is None:
        write_short_term_set(bits, [*sets, target], len(sets), False)
        return
    bits.u(1)
    bits.ue(0)  # delta_idx_minus1
    shift, uses = prediction
    bits.u(int(shift < 0))
    bits.ue(abs(shift) - 1)
    for use in uses:
        bits.u(int(bool(use)))
        if not use:
            bits.u(int(use is not None))
