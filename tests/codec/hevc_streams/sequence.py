"""Coded video sequences: reference lists, the decoded picture buffer and what a decoder must show."""

from dataclasses import dataclass, field
from random import Random

import numpy as np

from tests.codec.hevc_streams.bits import escape, nal_unit
from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.parameter_sets import Pps, ScalingCode, Sps, write_vps
from tests.codec.hevc_streams.picture import Picture, Reference, Truth
from tests.codec.hevc_streams.reference_sets import LongTerm, ReferenceSet, ShortTermSet
from tests.codec.hevc_streams.slice_header import IDR, PictureHeader, SliceHeader
from tests.codec.hevc_streams.slice_writer import PictureCoder, SegmentPlan

TRAIL, TSA, RADL, RASL, BLA, IDR_W_RADL, IDR_N_LP, CRA = 1, 3, 7, 9, 16, 19, 20, 21


@dataclass(frozen=True)
class Frame:
    """One picture to code. `before` and `after` are POCs of short-term references, nearest first; `kept` are POCs
    among them that stay in the buffer but are not used."""

    poc: int
    slices: tuple[SegmentPlan, ...] = (SegmentPlan(0, SliceHeader()),)
    nal: int = TRAIL
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    long: tuple[LongTerm, ...] = ()
    output: bool = True
    temporal_id: int = 0
    sps_set: int | None = None
    choices: Choices | None = None
    pps: int = 0  # index into the stream's picture parameter sets; one that shares its id is sent anew when it is used


@dataclass
class Stream:
    """A finished stream: Annex B bytes, the luma planes that a decoder outputs, in order, and the truth of every
    picture in decoding order."""

    data: bytes
    planes: list[np.ndarray]
    truth: list[Truth]


@dataclass
class Writer:
    """Writes pictures one after another; `data` grows."""

    sps: Sps
    pps: list[Pps]
    choices: Choices = field(default_factory=Choices)
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.buffer: dict[int, Picture] = {}
        self.shown: list[list[Picture]] = []  # by coded video sequence
        self.pictures: list[tuple[Picture, bool]] = []
        self.current_pps = 0
        self.data = self.parameter_sets()

    def parameter_sets(self) -> bytes:
        """All parameter sets; of picture parameter sets with the same id the current one."""
        stream = nal_unit(32, escape(write_vps(self.sps)))
        stream += nal_unit(33, escape(self.sps.write()))
        for pps in {pps.pps_id: pps for pps in [*self.pps, self.pps[self.current_pps]]}.values():
            stream += nal_unit(34, escape(pps.write()))
        return stream

    def add(self, frame: Frame) -> Picture:
        """Code one picture."""
        pps = self.pps[frame.pps]
        if pps.pps_id == self.pps[self.current_pps].pps_id and frame.pps != self.current_pps:
            self.data += nal_unit(34, escape(pps.write()), frame.temporal_id)
        self.current_pps = frame.pps
        if frame.nal in IDR or not self.shown:
            self.shown.append([])
            self.buffer.clear()
        references = self._references(frame)
        picture = Picture(frame.poc, self.sps.width, self.sps.height, frame.output)
        lists = {plan.start: self._lists(frame, references, plan.header) for plan in frame.slices if plan.header}
        header = PictureHeader(frame.poc, frame.nal, references, frame.output)
        code = pps.scaling or self.sps.scaling
        scaling = None
        if self.sps.scaling_list_enabled:
            scaling = (code or ScalingCode()).lists()
        coder = PictureCoder(self.sps, pps, picture, header, scaling, frame.choices or self.choices, self.random)
        self.data += coder.code(list(frame.slices), lists, frame.temporal_id)
        kept = {frame.poc + delta for delta, _ in references.short.deltas} | {entry.poc for entry in references.long}
        self.buffer = {poc: old for poc, old in self.buffer.items() if poc in kept} | {frame.poc: picture}
        if frame.output:
            self.shown[-1].append(picture)
        self.pictures.append((picture, frame.output))
        return picture

    def _references(self, frame: Frame) -> ReferenceSet:
        def deltas(pocs: tuple[int, ...]) -> tuple[tuple[int, bool], ...]:
            return tuple((poc - frame.poc, poc not in frame.kept) for poc in pocs)

        missing = {*frame.before, *frame.after, *(entry.poc for entry in frame.long)} - set(self.buffer)
        assert not missing, f"POC {frame.poc} refers to {missing}, which the buffer has no more"
        return ReferenceSet(ShortTermSet(deltas(frame.before), deltas(frame.after)), frame.long, frame.sps_set)

    def _lists(
        self, frame: Frame, references: ReferenceSet, header: SliceHeader
    ) -> tuple[list[Reference], list[Reference]]:
        """RefPicList0 and RefPicList1 (8.3.4)."""
        before, after = (
            [Reference(self.buffer[frame.poc + delta], False) for delta, used in side if used]
            for side in (references.short.before, references.short.after)
        )
        long = [Reference(self.buffer[entry.poc], True) for entry in references.long if entry.used]
        result: list[list[Reference]] = [[], []]
        for side in range({"I": 0, "P": 1, "B": 2}[header.type]):
            initial = [*before, *after, *long] if side == 0 else [*after, *before, *long]
            entries, count = header.list_entries[side], header.refs[side]
            if entries is None:
                entries = [n % len(initial) for n in range(count)]
            result[side] = [initial[entry] for entry in entries[:count]]
        return result[0], result[1]

    def finish(self) -> Stream:
        """The stream with the planes cropped to the conformance window."""
        left, right, top, bottom = (2 * offset for offset in self.sps.window)
        rows, cols = slice(top, self.sps.height - bottom), slice(left, self.sps.width - right)
        kind = np.uint8 if self.sps.bit_depth == 8 else np.uint16
        ordered = [p for sequence in self.shown for p in sorted(sequence, key=lambda picture: picture.poc)]
        planes = [picture.samples[rows, cols].astype(kind) for picture in ordered]
        return Stream(self.data, planes, [picture.truth(shown) for picture, shown in self.pictures])
