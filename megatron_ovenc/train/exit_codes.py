"""Exit codes of what trains and of what starts training. Launchers lose them, so exit_status.json says the same in words."""

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
"""Refused, or a wrong configuration: starting again does not help. (What argparse ends with, too.)"""
EXIT_IN_USE = 69
"""Another job has the run directory; starting again helps when that one has ended (EX_UNAVAILABLE)."""
EXIT_STOPPED = 75
"""Told to stop, and can be continued (EX_TEMPFAIL: a scheduler may requeue it)."""
