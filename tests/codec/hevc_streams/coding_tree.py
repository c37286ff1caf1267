"""Coding tree units: sample adaptive offset syntax, quadtree, coding units and quantisation groups
(H.265 clauses 7.3.8.2 to 7.3.8.7, 8.6.1), drawn at random from weighted choices."""

from dataclasses import dataclass, field
from random import Random

import numpy as np

from tests.codec.hevc_streams import intra
from tests.codec.hevc_streams.cabac_encoder import CabacEncoder
from tests.codec.hevc_streams.motion import MotionContext
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.picture import INTER, INTRA, SKIP, Picture, Reference
from tests.codec.hevc_streams.prediction_unit import code_prediction_units, code_skipped
from tests.codec.hevc_streams.slice_header import SLICE_TYPE, SliceHeader
from tests.codec.hevc_streams.transform import ScalingLists
from tests.codec.hevc_streams.transform_tree import code_transform_tree


@dataclass(frozen=True)
class Choices:
    """Probabilities of what the writer may choose, and sizes of what it draws."""

    split: float = 0.5
    skip: float = 0.25
    intra: float = 0.2
    parts: float = 0.5  # not 2Nx2N, where inter
    nxn: float = 0.5  # NxN, where intra
    pcm: float = 0.4
    bypass: float = 0.3
    merge: float = 0.4
    bi: float = 0.4
    root_cbf: float = 0.6
    split_transform: float = 0.4
    cbf_luma: float = 0.6
    cbf_chroma: float = 0.3
    transform_skip: float = 0.5
    qp_delta: int = 6  # largest absolute difference
    qp_range: tuple[int, int] = (18, 38)
    coefficient: int = 2500  # largest transform coefficient that a level may give
    vector: int = 60  # largest vector difference in quarter pixels


@dataclass
class CodingUnit:
    x: int
    y: int
    log2: int
    depth: int
    bypass: bool = False
    mode: int = INTRA
    part_mode: str = "2Nx2N"
    intra_modes: list[int] = field(default_factory=lambda: [intra.DC])
    chroma_mode: int = intra.DC

    @property
    def size(self) -> int:
        return 1 << self.log2

    def intra_mode_at(self, x: int, y: int) -> int:
        if len(self.intra_modes) == 1:
            return self.intra_modes[0]
        half = self.size >> 1
        return self.intra_modes[int(x >= self.x + half) + 2 * int(y >= self.y + half)]


class TreeCoder:
    """Codes the coding tree units of one slice; `cabac` and `tile` are set by the caller as the slice goes on."""

    cabac: CabacEncoder

    def __init__(
        self,
        sps: Sps,
        pps: Pps,
        picture: Picture,
        header: SliceHeader,
        slice_address: int,
        scaling: ScalingLists | None,
        choices: Choices,
        random: Random,
        lists: tuple[list[Reference], list[Reference]],
    ) -> None:
        self.sps, self.pps, self.picture, self.header = sps, pps, picture, header
        self.slice_address, self.scaling, self.choices, self.random, self.lists = (
            slice_address,
            scaling,
            choices,
            random,
            lists,
        )
        collocated = None
        if header.temporal_mvp and header.type != "I":
            collocated = lists[0 if header.collocated_from_l0 else 1][header.collocated_ref].picture
        self.motion = MotionContext(
            picture, lists, slice_address, 0, sps.log2_ctb, pps.log2_parallel_merge_level, header.max_merge,
            collocated, header.collocated_from_l0,
        )  # fmt: skip
        self.first_group = True
        self.qp = self.last_qp = self.predicted_qp = header.qp
        self.qp_coded = False

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def available(self, x: int, y: int) -> bool:
        return self.picture.available(x, y, self.slice_address, self.motion.tile)

    def usable_for_intra(self, x: int, y: int) -> bool:
        if not self.available(x, y):
            return False
        return not self.pps.constrained_intra_pred or self.picture.mode[y >> 2, x >> 2] == INTRA

    # Coding tree unit

    def code_sao(self, left: bool, above: bool) -> None:
        """sao(): luma offsets are zero, so that the filter changes no luma sample; those of chroma are free."""
        if not any(self.header.sao):
            return
        for candidate in (left, above):
            if candidate:
                merge = self.chance(0.3)
                self.cabac.decision("sao_merge", 0, int(merge))
                if merge:
                    return
        kind = 0
        for component in range(3):
            if not self.header.sao[component > 0]:
                continue
            if component < 2:
                kind = self.random.randrange(3)
                self.cabac.decision("sao_type_idx", 0, int(kind > 0))
                if kind:
                    self.cabac.bypass(kind - 1)
            if kind:
                self._code_offsets(component, kind)

    def _code_offsets(self, component: int, kind: int) -> None:
        largest = (1 << (min(self.sps.bit_depth, 10) - 5)) - 1
        offsets = [self.random.randint(0, largest) if component else 0 for _ in range(4)]
        for offset in offsets:
            for _ in range(offset):
                self.cabac.bypass(1)
            if offset < largest:
                self.cabac.bypass(0)
        if kind == 1:
            for offset in offsets:
                if offset:
                    self.cabac.bypass(self.random.getrandbits(1))
            self.cabac.bypass_bits(self.random.randrange(32), 5)
        elif component < 2:
            self.cabac.bypass_bits(self.random.randrange(4), 2)

    def code_quadtree(self, x: int, y: int, log2: int, depth: int = 0) -> None:
        sps, size = self.sps, 1 << log2
        split = log2 > sps.log2_min_cb
        if split and x + size <= sps.width and y + size <= sps.height:
            split = self.chance(self.choices.split)
            places = ((x - 1, y), (x, y - 1))
            context = sum(self.available(*p) and self.picture.depth[p[1] >> 2, p[0] >> 2] > depth for p in places)
            self.cabac.decision("split_cu_flag", context, int(split))
        if self.pps.qp_delta_depth is not None:
            group = sps.log2_ctb - self.pps.qp_delta_depth
            if log2 == group or (log2 > group and not split):
                self._start_group(x, y)
        if not split:
            self._code_unit(CodingUnit(x, y, log2, depth))
            return
        half = size >> 1
        for cx, cy in ((x, y), (x + half, y), (x, y + half), (x + half, y + half)):
            if cx < sps.width and cy < sps.height:
                self.code_quadtree(cx, cy, log2 - 1, depth + 1)

    # Quantisation

    def _start_group(self, x: int, y: int) -> None:
        self.qp_coded = False
        previous = self.header.qp if self.first_group else self.last_qp
        self.first_group = False
        mask = (1 << self.sps.log2_ctb) - 1
        left = int(self.picture.qp[y >> 2, (x - 1) >> 2]) if x & mask else previous
        above = int(self.picture.qp[(y - 1) >> 2, x >> 2]) if y & mask else previous
        self.qp = self.predicted_qp = (left + above + 1) >> 1

    def code_qp_delta(self, cu: CodingUnit) -> None:
        """cu_qp_delta_abs and its sign, once in a quantisation group."""
        if self.pps.qp_delta_depth is None or self.qp_coded:
            return
        self.qp_coded = True
        low, high = self.choices.qp_range
        wanted = self.predicted_qp + self.random.randint(-self.choices.qp_delta, self.choices.qp_delta)
        delta = min(max(wanted, low), high) - self.predicted_qp
        self.qp = self.predicted_qp + delta
        size = abs(delta)
        for n in range(min(size, 5)):
            self.cabac.decision("cu_qp_delta_abs", int(n > 0), 1)
        if size < 5:
            self.cabac.decision("cu_qp_delta_abs", int(size > 0), 0)
        else:
            self.cabac.exp_golomb(size - 5, 0)
        if delta:
            self.cabac.bypass(int(delta < 0))

    # Coding unit

    def _area(self, cu: CodingUnit) -> tuple[slice, slice]:
        return slice(cu.y >> 2, (cu.y + cu.size) >> 2), slice(cu.x >> 2, (cu.x + cu.size) >> 2)

    def _code_unit(self, cu: CodingUnit) -> None:
        area, picture = self._area(cu), self.picture
        before = self.cabac.spent
        if self.pps.transquant_bypass_enabled:
            cu.bypass = self.chance(self.choices.bypass)
            self.cabac.decision("cu_transquant_bypass_flag", 0, int(cu.bypass))
        if self.header.type != "I":
            cu.mode = self._code_mode(cu)
        for grid, value in (
            (picture.slice, self.slice_address), (picture.tile, self.motion.tile), (picture.mode, cu.mode),
            (picture.log2_cu_size, cu.log2), (picture.depth, cu.depth), (picture.bypass, cu.bypass),
            (picture.slice_type, SLICE_TYPE[self.header.type]),
        ):  # fmt: skip
            grid[area] = value
        if cu.mode == SKIP:
            code_skipped(self, cu)
        elif cu.mode == INTER:
            if code_prediction_units(self, cu):
                code_transform_tree(self, cu)
        else:
            self._code_intra(cu)
        picture.coded[area] = True
        picture.qp[area] = self.qp
        picture.bits[area] = (self.cabac.spent - before) / (cu.size // 4) ** 2
        self.last_qp = self.qp

    def _code_mode(self, cu: CodingUnit) -> int:
        grid = self.picture.mode
        places = ((cu.x - 1, cu.y), (cu.x, cu.y - 1))
        context = sum(self.available(*p) and grid[p[1] >> 2, p[0] >> 2] == SKIP for p in places)
        skip = self.chance(self.choices.skip)
        self.cabac.decision("cu_skip_flag", context, int(skip))
        if skip:
            return SKIP
        is_intra = self.chance(self.choices.intra)
        self.cabac.decision("pred_mode_flag", 0, int(is_intra))
        return INTRA if is_intra else INTER

    def _code_intra(self, cu: CodingUnit) -> None:
        sps = self.sps
        if cu.log2 == sps.log2_min_cb:
            cu.part_mode = "NxN" if self.chance(self.choices.nxn) else "2Nx2N"
            self.cabac.decision("part_mode", 0, int(cu.part_mode == "2Nx2N"))
        low, high = sps.log2_pcm_sizes
        if sps.pcm_bits is not None and cu.part_mode == "2Nx2N" and low <= cu.log2 <= high:
            pcm = self.chance(self.choices.pcm)
            self.cabac.terminate(int(pcm))
            if pcm:
                self._code_pcm(cu, *sps.pcm_bits)
                return
        self._code_intra_modes(cu)
        code_transform_tree(self, cu)

    def _code_pcm(self, cu: CodingUnit, luma_bits: int, chroma_bits: int) -> None:
        rise = np.add.outer(np.arange(cu.size), np.arange(cu.size)) * self.random.randint(-3, 3)
        noise = [self.random.getrandbits(max(luma_bits - 3, 1)) for _ in range(cu.size**2)]
        drawn = (rise + self.random.getrandbits(luma_bits)).ravel() + noise
        samples = np.clip(drawn, 0, (1 << luma_bits) - 1).astype(np.int64).reshape(cu.size, cu.size)
        self.cabac.raw(samples.ravel().tolist(), luma_bits)
        chroma = [self.random.getrandbits(chroma_bits) for _ in range(cu.size**2 // 2)]
        self.cabac.raw(chroma, chroma_bits)
        place = slice(cu.y, cu.y + cu.size), slice(cu.x, cu.x + cu.size)
        self.picture.samples[place] = samples << (self.sps.bit_depth - luma_bits)
        self.picture.pcm[self._area(cu)] = True

    def _code_intra_modes(self, cu: CodingUnit) -> None:
        parts = 4 if cu.part_mode == "NxN" else 1
        side = cu.size >> (parts // 4)
        cu.intra_modes = []
        coded = []
        for index in range(parts):
            x, y = cu.x + (index & 1) * side, cu.y + (index >> 1) * side
            probable = intra.most_probable_modes(self._candidate(cu, x - 1, y), self._candidate(cu, x, y - 1))
            mode = self.random.choice(probable) if self.chance(0.4) else self.random.randrange(35)
            cu.intra_modes.append(mode)
            self.picture.intra_mode[y >> 2 : (y + side) >> 2, x >> 2 : (x + side) >> 2] = mode
            coded.append((mode, probable))
        for mode, probable in coded:
            self.cabac.decision("prev_intra_luma_pred_flag", 0, int(mode in probable))
        for mode, probable in coded:
            if mode in probable:
                index = probable.index(mode)
                self.cabac.bypass(int(index > 0))
                if index:
                    self.cabac.bypass(index - 1)
            else:
                self.cabac.bypass_bits(mode - sum(other < mode for other in probable), 5)
        chroma = self.random.randrange(5)
        self.cabac.decision("intra_chroma_pred_mode", 0, int(chroma != 4))
        luma = cu.intra_modes[0]
        if chroma == 4:
            cu.chroma_mode = luma
        else:
            self.cabac.bypass_bits(chroma, 2)
            mode = (intra.PLANAR, intra.VERTICAL, 10, intra.DC)[chroma]
            cu.chroma_mode = 34 if mode == luma else mode

    def _candidate(self, cu: CodingUnit, x: int, y: int) -> int:
        """candIntraPredModeX of the neighbour at (x, y) (8.4.2)."""
        if x >= cu.x and y >= cu.y:
            return int(self.picture.intra_mode[y >> 2, x >> 2])
        if not self.available(x, y) or y < cu.y >> self.sps.log2_ctb << self.sps.log2_ctb:
            return intra.DC
        return int(self.picture.intra_mode[y >> 2, x >> 2])
