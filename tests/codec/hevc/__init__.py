"""Tests of the HEVC reader. The streams they read are made by x265 and by the writer in `hevc_streams`, both judged by FFmpeg."""
