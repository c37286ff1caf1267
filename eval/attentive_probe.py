"""Attentive probe on a frozen encoder: train on one part of a data set, judge on another.

    python -m eval.attentive_probe --model output/packed_model --train clips/train --val clips/val --output probe.json
    python -m eval.attentive_probe --model output/packed_model --format ssv2 --root data/ssv2 --output probe.json \\
        --view codec --tokens 2048 --lr 1e-4 3e-4 1e-3 --weight-decay 0 0.05 --cache output/features
    torchrun --nproc_per_node 8 -m eval.attentive_probe --config eval.yaml        # keys are the options: `tokens: 2048`

Clips are decoded and encoded once; then one probe for every pair of learning rate and weight decay is trained on the same features.
The JSON and the table give the last and the best epoch of each. `selected` is the pair with the highest score after the last epoch:
among several, it was chosen on the held-out samples. What cannot be read is named: held-out samples count as wrong, training ones
are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from eval import cli, probe_command

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
"""Of the probes that are trained unless told otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.parser("eval.attentive_probe", __doc__)
    probe_command.add_options(parser, LEARNING_RATES)
    return cli.run(
        parser, arguments, "attentive probe", partial(probe_command.build, kind="attentive"), keep_tokens=True
    )


if __name__ == "__main__":
    sys.exit(main())
