"""What a run would take, before it is paid for: memory of a GPU, traffic, arithmetic, time of a step.

The step is not modelled by formulas: the trainer's own encoder, banks and optimizers run on the meta device, where tensors have
shapes and no data, among ranks that do not exist, and every allocation and every collective is written down (`trace.py`).

    world.py      ranks that do not exist
    trace.py      allocations, collectives, and attention without data
    sharding.py   what fully_shard holds beside the shards, and when
    step.py       one step, traced
    hardware.py   what GPUs can do, and how much of that a run is assumed to get
    speed.py      from bytes and operations to seconds
    advice.py     settings that would fit
    page.py       all of that for a person
"""
