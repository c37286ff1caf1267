"""Candidates of merge and of vector prediction (H.265 clauses 8.5.3.2.2 to 8.5.3.2.9): a derivation of its own,
judged by FFmpeg's pixels."""

from dataclasses import dataclass

from tests.codec.hevc_streams.picture import INTRA, Motion, Picture, Reference

Vector = tuple[int, int]
ZERO = (0, 0)
COMBINATIONS = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0), (1, 3), (3, 1), (2, 3), (3, 2))


@dataclass(frozen=True)
class Block:
    """A prediction block within its coding block."""

    x: int
    y: int
    width: int
    height: int
    part: int = 0  # partIdx
    part_mode: str = "2Nx2N"
    cu_x: int = 0
    cu_y: int = 0
    cu_size: int = 0


def scale_vector(mv: Vector, wanted_distance: int, distance: int) -> Vector:
    """A vector over `distance` stretched to `wanted_distance` in POC units (8-179 to 8-183)."""
    td, tb = (min(max(value, -128), 127) for value in (distance, wanted_distance))
    tx = (16384 + (abs(td) >> 1)) // abs(td) * (1 if td > 0 else -1)
    factor = min(max((tb * tx + 32) >> 6, -4096), 4095)

    def scaled(component: int) -> int:
        product = factor * component
        size = (abs(product) + 127) >> 8
        return min(max(size if product >= 0 else -size, -32768), 32767)

    return scaled(mv[0]), scaled(mv[1])


class MotionContext:
    """What candidates depend on: the picture so far, the slice's lists and the collocated picture."""

    def __init__(
        self,
        picture: Picture,
        lists: tuple[list[Reference], list[Reference]],
        slice_address: int,
        tile: int,
        log2_ctb: int,
        merge_level: int,
        max_merge: int,
        collocated: Picture | None,
        collocated_from_l0: bool,
    ) -> None:
        self.picture, self.lists, self.slice_address, self.tile = picture, lists, slice_address, tile
        self.log2_ctb, self.merge_level, self.max_merge = log2_ctb, merge_level, max_merge
        self.collocated, self.collocated_from_l0 = collocated, collocated_from_l0
        self.bidirectional = bool(lists[1])
        self.no_backward = all(ref.poc <= picture.poc for side in lists for ref in side)

    def _neighbour(self, x: int, y: int) -> Motion | None:
        """Motion at (x, y) if it is available and not intra (6.4.2)."""
        if not self.picture.available(x, y, self.slice_address, self.tile):
            return None
        if self.picture.mode[y >> 2, x >> 2] == INTRA:
            return None
        return self.picture.motion[y >> 2, x >> 2]

    # Temporal candidates

    def temporal(self, block: Block, side: int, ref: int) -> Vector | None:
        """mvLXCol of list `side` for reference index `ref`, or None where it is not available (8.5.3.2.8)."""
        if self.collocated is None:
            return None
        x, y = block.x + block.width, block.y + block.height
        if block.y >> self.log2_ctb == y >> self.log2_ctb and y < self.picture.height and x < self.picture.width:
            found = self._collocated_vector(x >> 4 << 4, y >> 4 << 4, side, ref)
            if found is not None:
                return found
        x, y = block.x + (block.width >> 1), block.y + (block.height >> 1)
        return self._collocated_vector(x >> 4 << 4, y >> 4 << 4, side, ref)

    def _collocated_vector(self, x: int, y: int, side: int, ref: int) -> Vector | None:
        picture = self.collocated
        assert picture is not None
        motion = picture.motion[y >> 2, x >> 2]
        if motion is None:
            return None
        if not motion.used[0]:
            source = 1
        elif not motion.used[1]:
            source = 0
        else:
            source = side if self.no_backward else int(self.collocated_from_l0)
        theirs = picture.reference(x, y, source, motion.ref[source])
        ours = self.lists[side][ref]
        if theirs.long_term != ours.long_term:
            return None
        distance, wanted = picture.poc - theirs.poc, self.picture.poc - ours.poc
        if ours.long_term or distance == wanted:
            return motion.mv[source]
        return scale_vector(motion.mv[source], wanted, distance)

    # Merge

    def merge_candidates(self, block: Block) -> list[Motion]:
        """MaxNumMergeCand merge candidates of a prediction block."""
        small = block.width + block.height == 12
        if self.merge_level > 2 and block.cu_size == 8:
            block = Block(block.cu_x, block.cu_y, 8, 8, cu_x=block.cu_x, cu_y=block.cu_y, cu_size=8)
        candidates = self._spatial_merge(block)
        column = [self.temporal(block, side, 0) if self.lists[side] else None for side in range(2)]
        if any(mv is not None for mv in column):
            used = column[0] is not None, column[1] is not None
            candidates.append(Motion(used, (column[0] or ZERO, column[1] or ZERO), (0, 0)))
        self._combine(candidates)
        self._fill(candidates)
        candidates = candidates[: self.max_merge]
        if small:
            candidates = [Motion((True, False), c.mv, c.ref) if all(c.used) else c for c in candidates]
        return candidates

    def _spatial_merge(self, block: Block) -> list[Motion]:
        x, y, width, height = block.x, block.y, block.width, block.height
        level = self.merge_level

        def at(nx: int, ny: int) -> Motion | None:
            same_region = x >> level == nx >> level and y >> level == ny >> level
            return None if same_region else self._neighbour(nx, ny)

        def equal(first: Motion | None, second: Motion | None) -> bool:
            return first is not None and second is not None and same_motion(first, second)

        a1 = at(x - 1, y + height - 1)
        if block.part == 1 and block.part_mode in ("Nx2N", "nLx2N", "nRx2N"):
            a1 = None
        b1 = at(x + width - 1, y - 1)
        if block.part == 1 and block.part_mode in ("2NxN", "2NxnU", "2NxnD"):
            b1 = None
        b1_candidate = None if equal(a1, b1) else b1
        b0 = at(x + width, y - 1)
        b0 = None if equal(b1, b0) else b0
        a0 = at(x - 1, y + height)
        a0 = None if equal(a1, a0) else a0
        found = [motion for motion in (a1, b1_candidate, b0, a0) if motion is not None]
        b2 = at(x - 1, y - 1)
        if b2 is not None and len(found) < 4 and not equal(a1, b2) and not equal(b1, b2):
            found.append(b2)
        return found

    def _combine(self, candidates: list[Motion]) -> None:
        original = len(candidates)
        if not self.bidirectional or not 1 < original < self.max_merge:
            return
        for first, second in COMBINATIONS[: original * (original - 1)]:
            one, two = candidates[first], candidates[second]
            if not (one.used[0] and two.used[1]):
                continue
            different = self.lists[0][one.ref[0]].poc != self.lists[1][two.ref[1]].poc or one.mv[0] != two.mv[1]
            if different:
                candidates.append(Motion((True, True), (one.mv[0], two.mv[1]), (one.ref[0], two.ref[1])))
                if len(candidates) == self.max_merge:
                    return

    def _fill(self, candidates: list[Motion]) -> None:
        count = len(self.lists[0])
        if self.bidirectional:
            count = min(count, len(self.lists[1]))
        index = 0
        while len(candidates) < self.max_merge:
            ref = index if index < count else 0
            candidates.append(Motion((True, self.bidirectional), (ZERO, ZERO), (ref, ref)))
            index += 1

    # Vector prediction

    def vector_candidates(self, block: Block, side: int, ref: int) -> list[Vector]:
        """The two candidates of mvp_lX_flag."""
        x, y, width, height = block.x, block.y, block.width, block.height
        left = [self._neighbour(x - 1, y + height), self._neighbour(x - 1, y + height - 1)]
        places = ((x + width, y - 1), (x + width - 1, y - 1), (x - 1, y - 1))
        above = [self._neighbour(*place) for place in places]
        is_scaled = any(motion is not None for motion in left)
        from_left = self._same_picture(left, side, ref)
        if from_left is None:
            from_left = self._any_picture(left, side, ref)
        from_above = self._same_picture(above, side, ref)
        if not is_scaled:
            if from_above is not None:
                from_left = from_above
            from_above = self._any_picture(above, side, ref)
        found = [mv for mv in (from_left, from_above) if mv is not None]
        if len(found) == 2 and found[0] == found[1]:
            found.pop()
        if len(found) < 2:
            column = self.temporal(block, side, ref)
            if column is not None:
                found.append(column)
        return [*found, ZERO, ZERO][:2]

    def _same_picture(self, motions: list[Motion | None], side: int, ref: int) -> Vector | None:
        target = self.lists[side][ref].poc
        for motion in motions:
            for other in (side, 1 - side):
                if motion and motion.used[other] and self.lists[other][motion.ref[other]].poc == target:
                    return motion.mv[other]
        return None

    def _any_picture(self, motions: list[Motion | None], side: int, ref: int) -> Vector | None:
        ours = self.lists[side][ref]
        for motion in motions:
            for other in (side, 1 - side):
                if not motion or not motion.used[other]:
                    continue
                theirs = self.lists[other][motion.ref[other]]
                if theirs.long_term != ours.long_term:
                    continue
                if ours.long_term:
                    return motion.mv[other]
                return scale_vector(motion.mv[other], self.picture.poc - ours.poc, self.picture.poc - theirs.poc)
        return None


def same_motion(first: Motion, second: Motion) -> bool:
    """Equal vectors and reference indices in the lists that are used."""
    if first.used != second.used:
        return False
    return all(first.mv[i] == second.mv[i] and first.ref[i] == second.ref[i] for i in range(2) if first.used[i])
