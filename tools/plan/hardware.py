"""What GPUs can do by their data sheets, and how much of that a run is assumed to get."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU of a node of eight. Rates are dense peaks of the vendor's data sheets, links are counted one way."""

    memory_gib: float
    """What a process can see of it."""
    bf16_tflops: float
    fp8_tflops: float | None
    """None: no FP8 units."""
    fp32_tflops: float
    hbm_gb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    """A GPU's own InfiniBand port."""


GPUS_A_NODE = 8

GPUS = {
    "a100-80g": Gpu(
        memory_gib=79,
        bf16_tflops=312,
        fp8_tflops=None,
        fp32_tflops=19.5,
        hbm_gb_s=2039,
        nvlink_gb_s=300,
        network_gb_s=25,
    ),
    "h100-80g": Gpu(
        memory_gib=79,
        bf16_tflops=989,
        fp8_tflops=1979,
        fp32_tflops=67,
        hbm_gb_s=3350,
        nvlink_gb_s=450,
        network_gb_s=50,
    ),
    "h200": Gpu(
        memory_gib=139,
        bf16_tflops=989,
        fp8_tflops=1979,
        fp32_tflops=67,
        hbm_gb_s=4800,
        nvlink_gb_s=450,
        network_gb_s=50,
    ),
    "b200": Gpu(
        memory_gib=178,
        bf16_tflops=2250,
        fp8_tflops=4500,
        fp32_tflops=75,
        hbm_gb_s=7700,
        nvlink_gb_s=900,
        network_gb_s=50,
    ),
}
"""SXM modules by name; networks of 200 Gb/s a GPU for A100, 400 Gb/s for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What no data sheet tells. None of these has been measured on a GPU by this project: they are to be overridden."""

    bf16: float = 0.45
    """Share of the bf16 peak that the encoder reaches, all that is not a matrix product included."""
    fp8: float = 0.3
    """Share of the FP8 peak that the blocks' linear layers reach in FP8."""
    fp32: float = 0.6
    """Share of the fp32 peak that products in fp32 reach."""
    hbm: float = 0.7
    """Share of the memory's bandwidth that optimizers and banks reach."""
    nvlink: float = 0.7
    """Share of NVLink's bandwidth that collectives inside a node reach."""
    network: float = 0.7
    """Share of the network's bandwidth that collectives between nodes reach."""
    frames_a_worker: float = 1000.0
    """Frames of clips that a loading worker decodes, resizes and cuts a second."""
    pictures_a_worker: float = 150.0
    """Pictures that a loading worker does a second."""
    context_gib: float = 1.5
    """Memory of the CUDA context, cuBLAS and kernels' workspaces."""
    communicator_gib: float = 0.5
    """Memory of one NCCL communicator; a rank has one for the world, one for data, one for tensor ranks."""
    fragmentation: float = 0.08
    """Share of what tensors take that the caching allocator holds on top."""


def assume(settings: list[str]) -> Assumptions:
    """Assumptions with some of them changed, `name=number` each.

    Raises:
        ValueError: a name that is none, or no positive number.
    """
    known, assumptions = [field.name for field in fields(Assumptions)], Assumptions()
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ValueError(f"--assume {setting}: there is no assumption `{name}`; known are {', '.join(known)}")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise ValueError(f"--assume {setting}: expected {name}=<positive number>")
        assumptions = replace(assumptions, **{name: value})
    return assumptions
