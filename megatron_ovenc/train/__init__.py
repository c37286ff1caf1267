"""Training: state, schedule, checkpoints, metrics, faults, and the loop that ties them together."""
