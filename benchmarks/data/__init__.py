"""The video path against the naive one, on the same real clips: `python -m benchmarks.data --write`.

material    clips, encoded by x264 and x265, and their shards
readers     each way to read them, in a process of its own
"""
