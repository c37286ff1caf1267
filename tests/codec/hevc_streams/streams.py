"""The registry of written streams: `STREAMS` maps a name to a function that returns a Stream."""

from tests.codec.hevc_streams import (
    block_streams,
    header_streams,
    partition_streams,
    random_streams,
    reference_streams,
)
from tests.codec.hevc_streams.groups import STREAMS

__all__ = ["STREAMS", "block_streams", "header_streams", "partition_streams", "random_streams", "reference_streams"]
