"""Fuzzing of the HEVC core; not part of the test run."""
