"""HEVC streams for the reader's tests: a small writer that knows all that it coded, and a matrix of x265 streams."""
