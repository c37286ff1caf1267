"""Processes that work for one parent and end with it."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Fresh interpreters, which inherit no locks and no devices. They leave Ctrl-C to their parent, and do not outlive it."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_serve)


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        # A parent that is killed cannot end its pool, whose processes would wait for work for ever.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
