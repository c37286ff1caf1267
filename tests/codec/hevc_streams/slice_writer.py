"""Slice segment data (H.265 clauses 7.3.8.1, 9.3.1 and 9.3.2): tiles, substreams, and contexts carried over."""

from dataclasses import dataclass
from random import Random

from tests.codec.hevc_streams.bits import escape, nal_unit
from tests.codec.hevc_streams.cabac_encoder import CabacEncoder, copy_contexts, initial_contexts
from tests.codec.hevc_streams.coding_tree import Choices, TreeCoder
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.picture import Picture, Reference
from tests.codec.hevc_streams.slice_header import PictureHeader, Segment, SliceHeader, write_slice_header
from tests.codec.hevc_streams.transform import ScalingLists


@dataclass(frozen=True)
class SegmentPlan:
    """A slice segment: its first coding tree block in coding (tile) order; no header makes it dependent."""

    start: int
    header: SliceHeader | None


class TileMap:
    """Coding order of the coding tree blocks (clause 6.5.1)."""

    def __init__(self, sps: Sps, pps: Pps) -> None:
        self.columns, self.rows = sps.ctbs
        widths, heights = pps.tiles if pps.tiles is not None else ([self.columns], [self.rows])
        assert sum(widths) == self.columns and sum(heights) == self.rows
        self.order: list[int] = []  # raster address by coding order
        self.tile: list[int] = []  # tile by coding order
        self.first_column: list[int] = []  # column of the tile's left edge by coding order
        top = 0
        for row, height in enumerate(heights):
            left = 0
            for column, width in enumerate(widths):
                for y in range(top, top + height):
                    for x in range(left, left + width):
                        self.order.append(y * self.columns + x)
                        self.tile.append(row * len(widths) + column)
                        self.first_column.append(left)
                left += width
            top += height
        self.tile_by_address = {address: self.tile[i] for i, address in enumerate(self.order)}


def uniform_tiles(total: int, count: int) -> list[int]:
    """Sizes of uniformly spaced tile columns or rows (6-3)."""
    return [(i + 1) * total // count - i * total // count for i in range(count)]


class PictureCoder:
    """Codes all slice segments of one picture into NAL units."""

    def __init__(
        self,
        sps: Sps,
        pps: Pps,
        picture: Picture,
        picture_header: PictureHeader,
        scaling: ScalingLists | None,
        choices: Choices,
        random: Random,
    ) -> None:
        self.sps, self.pps, self.picture, self.picture_header = sps, pps, picture, picture_header
        self.scaling, self.choices, self.random = scaling, choices, random
        self.map = TileMap(sps, pps)
        self.after_second: dict[str, list[int]] = {}  # contexts after a row's second block, for the next row
        self.after_segment: dict[str, list[int]] = {}  # contexts after a segment, for a dependent one
        self.fresh: dict[str, list[int]] = {}

    def code(
        self, plans: list[SegmentPlan], lists: dict[int, tuple[list[Reference], list[Reference]]], temporal_id: int
    ) -> bytes:
        """All segments; `lists` has the reference lists by the start of their slice."""
        stream, total = b"", len(self.map.order)
        tree: TreeCoder | None = None
        header = SliceHeader()
        for index, plan in enumerate(plans):
            end = plans[index + 1].start if index + 1 < len(plans) else total
            address = self.map.order[plan.start]
            if plan.header is not None:
                header = plan.header
                self.picture.lists[address] = lists[plan.start]
                tree = TreeCoder(
                    self.sps, self.pps, self.picture, header, address, self.scaling, self.choices, self.random,
                    lists[plan.start],
                )  # fmt: skip
                kind = {"I": 0, "P": 1, "B": 2}[header.type]
                if header.cabac_init:
                    kind = {0: 0, 1: 2, 2: 1}[kind]
                self.fresh = initial_contexts(kind, header.qp)
            assert tree is not None
            parts = self._code_segment(tree, plan.start, end, plan.header is None)
            stream += self._pack(header, address, plan.header is None, parts, temporal_id)
        return stream

    def _pack(self, header: SliceHeader, address: int, dependent: bool, parts: list[bytes], temporal_id: int) -> bytes:
        escaped = escape(b"".join(parts))
        sizes, raw, done = [], 0, 0
        for part in parts[:-1]:
            raw += len(part)
            reach = len(_escaped_prefix(escaped, raw))
            sizes.append(reach - done)
            done = reach
        segment = Segment(address, dependent, tuple(sizes))
        head = write_slice_header(self.sps, self.pps, self.picture_header, header, segment).to_bytes()
        return nal_unit(self.picture_header.nal_type, escape(head) + escaped, temporal_id)

    def _code_segment(self, tree: TreeCoder, start: int, end: int, dependent: bool) -> list[bytes]:
        """Substreams of the segment's slice data."""
        order, tiles, sync = self.map, self.map.tile, self.pps.entropy_coding_sync
        encoders: list[CabacEncoder] = []
        for place in range(start, end):
            address = order.order[place]
            row, column = divmod(address, order.columns)
            x, y = column << self.sps.log2_ctb, row << self.sps.log2_ctb
            tree.motion.tile = tiles[place]
            first_in_tile = place == 0 or tiles[place] != tiles[place - 1]
            first_in_row = sync and column == order.first_column[place]
            if place == start or first_in_tile or first_in_row:
                contexts = self.fresh
                if first_in_tile:
                    pass
                elif first_in_row:
                    if tree.available(x + (1 << self.sps.log2_ctb), y - (1 << self.sps.log2_ctb)):
                        contexts = self.after_second
                elif dependent:
                    contexts = self.after_segment
                encoders.append(CabacEncoder(copy_contexts(contexts)))
                tree.cabac = encoders[-1]
                tree.first_group = tree.first_group or first_in_tile or first_in_row
            self._code_unit(tree, address, x, y)
            if sync and column == order.first_column[place] + 1:
                self.after_second = copy_contexts(tree.cabac.contexts)
            tree.cabac.terminate(int(place == end - 1))
            if place < end - 1:
                after = order.order[place + 1] % order.columns
                if tiles[place + 1] != tiles[place] or (sync and after == order.first_column[place + 1]):
                    tree.cabac.terminate(1)
        self.after_segment = copy_contexts(tree.cabac.contexts)
        return [encoder.out.to_bytes() for encoder in encoders]

    def _code_unit(self, tree: TreeCoder, address: int, x: int, y: int) -> None:
        columns, tile = self.map.columns, tree.motion.tile

        def mergeable(other: int) -> bool:
            return other >= tree.slice_address and self.map.tile_by_address[other] == tile

        left = x > 0 and tree.available(x - 1, y)
        above = y > 0 and mergeable(address - columns) and tree.available(x, y - 1)
        tree.code_sao(left, above)
        tree.code_quadtree(x, y, self.sps.log2_ctb)


def _escaped_prefix(escaped: bytes, raw_length: int) -> bytes:
    """The part of an escaped payload that holds its first `raw_length` bytes."""
    zeros = count = 0
    for index, byte in enumerate(escaped):
        if zeros >= 2 and byte == 3:
            zeros = 0
            continue
        if count == raw_length:
            return escaped[:index]
        count += 1
        zeros = zeros + 1 if byte == 0 else 0
    return escaped
