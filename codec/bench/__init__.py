"""Measurements that `python -m codec bench` prints: how fast signals are read, and how well saliency finds what moves."""
