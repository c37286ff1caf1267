"""Real ranks for tests: processes that are started once a session and joined into a fresh gloo world for every task.

    def check(topology: Topology, x: int) -> int: ...            # a module-level function: it is sent by name
    results = rank_pool.run(check, world=4, tensor=2, args=(3,)) # one result a rank, in rank order

A task's failure carries the rank's traceback. A task that does not end in time fails, and the pool is started anew.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any


def _rank_main(connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    from megatron_ovenc.parallel.device import prepare_device
    from megatron_ovenc.parallel.topology import build_topology

    torch.set_num_threads(1)
    device = torch.device("cpu")
    prepare_device(device)
    while (task := connection.recv()) is not None:
        function, rank, world, tensor, store, args = task
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world,
                timeout=datetime.timedelta(seconds=60),
            )
            try:
                connection.send((True, function(build_topology(world, rank, tensor, device), *args)))
            finally:
                dist.destroy_process_group()
        except Exception:
            connection.send((False, traceback.format_exc()))


def fork_server() -> ForkServerContext:
    """Forks processes off one that has done nothing but import what a rank needs, which takes seconds of a core."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["megatron_ovenc.train.build"])
    with contextlib.chdir(Path(__file__).parents[1]):  # it imports this checkout, wherever a test has gone meanwhile
        forkserver.ensure_running()
    return context


class RankPool:
    """Up to `size` rank processes, started when first needed."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._workers: list[tuple[Any, Connection]] = []

    def run(
        self,
        function: Callable[..., Any],
        *,
        world: int,
        tensor: int = 1,
        args: Sequence[Any] = (),
        timeout_s: float = 120.0,
    ) -> list[Any]:
        """Call `function(topology, *args)` on `world` ranks; returns their results in rank order."""
        context = fork_server()
        while len(self._workers) < world:
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank_main, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, ours))
        with tempfile.TemporaryDirectory() as directory:
            store = Path(directory) / "store"
            for rank, (_, connection) in enumerate(self._workers[:world]):
                connection.send((function, rank, world, tensor, str(store), tuple(args)))
            answers = []
            for rank, (_, connection) in enumerate(self._workers[:world]):
                if not connection.poll(timeout_s):
                    self.close()
                    raise TimeoutError(f"rank {rank} of {world} did not finish {function.__name__} in {timeout_s} s")
                answers.append(connection.recv())
        for rank, (ok, value) in enumerate(answers):
            if not ok:
                raise AssertionError(f"rank {rank} of {world} failed in {function.__name__}:\n{value}")
        return [value for _, value in answers]

    def close(self) -> None:
        """End all rank processes."""
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers.clear()
