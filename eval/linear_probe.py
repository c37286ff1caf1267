"""Linear probe on a frozen encoder's pooled embeddings: pictures (a folder of class folders) or clips.

    python -m eval.linear_probe --model output/packed_model --format images --train imagenet/train --val imagenet/val \\
        --output linear.json
    python -m eval.linear_probe --model output/packed_model --train clips/train --val clips/val --output linear.json --lr 1e-3 1e-2

As `eval.attentive_probe`, with a linear classifier in place of the attention, on embeddings brought to mean 0 and deviation 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from eval import cli, probe_command

LEARNING_RATES = (1e-4, 1e-3, 1e-2)
"""Of the probes that are trained unless told otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.parser("eval.linear_probe", __doc__)
    probe_command.add_options(parser, LEARNING_RATES)
    return cli.run(parser, arguments, "linear probe", partial(probe_command.build, kind="linear"), keep_tokens=False)


if __name__ == "__main__":
    sys.exit(main())
