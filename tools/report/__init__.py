"""A run, or several beside each other, as one HTML page: `python -m tools.report --help`."""

from tools.report.run import read_metrics

__all__ = ["read_metrics"]
