"""Orders of pictures that several streams share, and the registry that the streams enter."""

from collections.abc import Callable

from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.sequence import CRA, IDR_W_RADL, RASL, Frame, Stream, Writer
from tests.codec.hevc_streams.slice_header import SliceHeader
from tests.codec.hevc_streams.slice_writer import SegmentPlan

# Gives the slice segments of an inter picture for its number of reference pictures.
Slicer = Callable[[int], tuple[SegmentPlan, ...]]

STREAMS: dict[str, Callable[[], Stream]] = {}

# Coding order of a group of four after POC p: (offset, references before, references after), nearest first.
PYRAMID = ((4, (0,), ()), (2, (0,), (4,)), (1, (0,), (2, 4)), (3, (2, 0), (4,)))


def stream(function: Callable[[], Stream]) -> Callable[[], Stream]:
    """Enter a stream under its function's name."""
    STREAMS[function.__name__] = function
    return function


def whole(kind: str, refs: int = 1, **fields) -> tuple[SegmentPlan, ...]:
    """One slice of `kind` with `refs` active references in each list."""
    fields = {"temporal_mvp": True, **fields}
    return (SegmentPlan(0, SliceHeader(kind, (refs, refs), **fields)),)


def bipredicted(references: int) -> tuple[SegmentPlan, ...]:
    """One B slice with two active references in each list."""
    return whole("B", 2, collocated_from_l0=references % 2 == 0)


def predicted(references: int) -> tuple[SegmentPlan, ...]:
    """One P slice with all references active."""
    return whole("P", references)


def intra_slices() -> tuple[SegmentPlan, ...]:
    return (SegmentPlan(0, SliceHeader()),)


def add_pyramid(writer: Writer, groups: int, slices: Slicer = bipredicted, start: int = 0, **fields) -> None:
    """Groups of four pictures with two levels of B pictures after the one at POC `start`."""
    for group in range(groups):
        base = start + 4 * group
        for offset, before, after in PYRAMID:
            pocs = tuple(base + o for o in before), tuple(base + o for o in after)
            writer.add(Frame(base + offset, slices(len(before + after)), before=pocs[0], after=pocs[1], **fields))


def add_low_delay(
    writer: Writer, count: int, slices: Slicer = predicted, refs: int = 2, start: int = 0, **fields
) -> None:
    """Pictures that refer to the `refs` before them."""
    for poc in range(start + 1, start + count + 1):
        before = tuple(range(poc - 1, max(poc - 1 - refs, start - 1), -1))
        writer.add(Frame(poc, slices(len(before)), before=before, **fields))


def add_open_group(writer: Writer, base: int, nal: int = CRA) -> None:
    """A CRA or BLA picture at POC `base`, RASL pictures before it that refer to POC `base` - 4, and one after it."""
    writer.add(Frame(base, intra_slices(), nal, before=(base - 4,), kept=(base - 4,)))
    writer.add(Frame(base - 2, whole("B", 2), RASL, before=(base - 4,), after=(base,)))
    writer.add(Frame(base - 3, whole("B", 2), RASL, before=(base - 4,), after=(base - 2, base)))
    writer.add(Frame(base - 1, whole("B", 2), RASL, before=(base - 2, base - 4), after=(base,)))
    writer.add(Frame(base + 1, whole("P"), before=(base,)))


def simple(
    sps: Sps | None = None,
    pps: Pps | None = None,
    choices: Choices | None = None,
    seed: int = 0,
    slices: Slicer = bipredicted,
    first: tuple[SegmentPlan, ...] | None = None,
    low_delay: int = 0,
    groups: int = 1,
) -> Stream:
    """An IDR picture and, after it, a pyramid or `low_delay` pictures."""
    writer = Writer(sps or Sps(), [pps or Pps()], choices or Choices(), seed)
    writer.add(Frame(0, first or intra_slices(), nal=IDR_W_RADL))
    if low_delay:
        add_low_delay(writer, low_delay, slices)
    else:
        add_pyramid(writer, groups, slices)
    return writer.finish()
