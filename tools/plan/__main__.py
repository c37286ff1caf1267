"""What a run would take, in seconds and without a GPU.

    python -m tools.plan configs/large_video.yaml --world 128 --gpu h100-80g
    python -m tools.plan my_run.yaml --world 16 --set parallel.zero=3 --assume bf16=0.5 --json

Exit codes: 0 it fits; 1 it does not, and what would is told; 2 wrong configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence

from megatron_ovenc.config import ConfigError, check, load
from tools.plan.hardware import GPUS, assume


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Memory, traffic and time of a run, before it is started.")
    parser.add_argument("config", help="YAML run configuration")
    parser.add_argument("--world", type=int, required=True, help="number of ranks (GPUs) of the whole job")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100-80g", help="hardware profile (default: h100-80g)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=NUMBER", help="override one of the assumptions it prints"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Plan; returns the exit code."""
    options = arguments(argv)
    try:
        assumed = assume(options.assume)
        config = load(options.config, options.overrides)
        if options.world < 1:
            raise ConfigError(f"--world {options.world} must be at least 1")
        check(config, options.world)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")  # of megatron-core, about GPUs that are not here
    from tools.plan.page import make_plan, show  # megatron-core takes seconds to import; errors should not

    plan = make_plan(config, options.world, options.gpu, assumed)
    if options.json:
        print(json.dumps(plan.as_json(), indent=2))
    else:
        show(plan)
    return 0 if plan.memory.fits else 1


if __name__ == "__main__":
    sys.exit(main())
