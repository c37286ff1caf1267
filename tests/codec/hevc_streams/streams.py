from collections.abc import Callable
from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.sequence import *

def intra_only(): 
    w = Writer(Sps(), [Pps()], Choices())
    for _ in range(2): w.add(Frame(0, nal=IDR_W_RADL))
    return w.finish()
def p_only():
    w = Writer(Sps(), [Pps()], Choices())
    w.add(Frame(0, nal=IDR_W_RADL))
    for i in range(1,5): w.add(Frame(i, (SegmentPlan(0, SliceHeader('P')),), before=(i-1,)))
    return w.finish()
STREAMS = {'intra': intra_only, 'p': p_only}
