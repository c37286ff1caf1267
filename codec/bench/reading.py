"""Read one clip in this process and print what it took, as JSON: so that peak memory is this reading's alone.

    python reading.py decode|signals|codec-video-prep|motion-vector-extractor CLIP REPEATS

It is run by `codec.bench.speed`, for the peers with the Python of their own environment, where `codec` is not: each
reader imports what it needs.
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def decode(clip: str) -> int:
    """FFmpeg's decoder through PyAV, one thread, nothing done with the pictures."""
    import av

    with av.open(clip) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def signals(clip: str) -> int:
    """Signals of every frame; pixels are decoded on the way where the reader needs them."""
    import codec

    return sum(1 for _ in codec.signals(clip))


def codec_video_prep(clip: str) -> int:
    """Bits per macroblock or coding tree unit, of all frames at once."""
    from codec_video_prep.cv_reader_fast import read_video_fast

    return len(read_video_fast(clip, thread_count=1, export_bitcost=1, thread_type="slice"))


def motion_vector_extractor(clip: str) -> int:
    """Motion vectors, without converting pictures."""
    from mvextractor.videocap import VideoCap

    reader = VideoCap()
    if not reader.open(clip):
        raise ValueError(f"{clip} cannot be opened")
    reader.set_decode_frames(False)
    frames = 0
    while reader.read()[0]:
        frames += 1
    reader.release()
    return frames


READERS: dict[str, Callable[[str], int]] = {
    "decode": decode,
    "signals": signals,
    "codec-video-prep": codec_video_prep,
    "motion-vector-extractor": motion_vector_extractor,
}


def main() -> None:
    """Take the best of some repetitions; the first also warms caches."""
    reader, clip, repeats = sys.argv[1:]
    seconds = []
    for _ in range(int(repeats)):
        begin = time.perf_counter()
        frames = READERS[reader](clip)
        seconds.append(time.perf_counter() - begin)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"frames": frames, "seconds": min(seconds), "megabytes": kilobytes / 1024}))


if __name__ == "__main__":
    main()
