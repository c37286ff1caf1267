"""Makes one thing go wrong in one rank of the real program; Python imports this by itself where its folder is in PYTHONPATH.

    TEST_FAULT=rank=3,call=12,at=megatron_ovenc.train.bank_watch:BankWatch.look,do=SIGTERM,log=/shared/fault.json

The 12th call of that method (or, without a dot, function) in rank 3 sends the process SIGTERM first, or any other signal; with
`do=nan` it returns a batch whose pixels are no numbers. The moment is written to `log`.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any


class _Fault:
    def __init__(self, text: str) -> None:
        words = dict(word.split("=", 1) for word in text.split(","))
        self.module, self.method = words["at"].split(":")
        self.rank, self.do, self.log = words["rank"], words["do"], words["log"]
        self.call = int(words["call"])
        self.count = 0

    def install(self, module: ModuleType) -> None:
        *owners, name = self.method.split(".")
        owner = vars(module)[owners[0]] if owners else module
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            due = self.count == self.call
            if due:
                self._note()
            if due and self.do != "nan":
                os.kill(os.getpid(), signal.Signals[self.do])
            result = original(*args, **kwargs)
            return _poisoned(result) if due and self.do == "nan" else result

        setattr(owner, name, wrapper)

    def _note(self) -> None:
        with open(self.log, "w") as file:
            json.dump({"time": time.time(), "pid": os.getpid()}, file)


def _poisoned(batch: Any) -> Any:
    return replace(batch, patches=batch.patches.float() * float("nan"))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, fault: _Fault) -> None:
        self.fault = fault

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.fault.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_break(module: ModuleType) -> None:
            execute(module)
            self.fault.install(module)

        spec.loader.exec_module = execute_and_break  # type: ignore[method-assign]
        return spec


if text := os.environ.get("TEST_FAULT"):
    planned = _Fault(text)
    if os.environ.get("RANK") == planned.rank:
        sys.meta_path.insert(0, _Finder(planned))
