"""The run configuration: one frozen dataclass tree, one YAML file.

Every field carries a docstring with its unit and range; `schema.py` turns them into the JSON schema that editors read, and
`loader.py` is the only place that builds the tree from text. Values that depend on each other are checked in `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The vision transformer. Sizes are global: they do not depend on the parallel layout."""

    preset: Literal["tiny", "base", "large", "huge"] | None = None
    """Named sizes that fill in what this section leaves out; a key given here overrides its preset."""
    hidden_size: int = 1024
    """Width D of a token."""
    ffn_size: int = 4096
    """Inner width of every MLP, the pooling head's included."""
    num_layers: int = 24
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads of a block and of the pooling head; hidden_size / num_heads must be a multiple of 32."""
    patch_size: int = 14
    """Side of a square patch in pixels."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Normalisation before, in and after the blocks. The pooling head always uses RMSNorm."""
    norm_eps: float = 1e-6
    """Added to the variance inside every normalisation."""
    rope: Literal["reference", "rotation"] = "reference"
    """`reference` reproduces released weights (not a true rotation); `rotation` is one, for models trained from scratch."""
    rope_theta: float = 10000.0
    """Base of the geometric series of rotary frequencies."""
    gelu: Literal["erf", "tanh"] = "erf"
    """Activation of every MLP, the pooling head's included: `erf` is exact and that of released weights, `tanh` an approximation
    that fused kernels know, for models trained from scratch."""
    layers: Literal["sdpa", "te", "fp8_torch"] = "sdpa"
    """What a block is built from; weights and checkpoints are the same. `sdpa`: torch, any device; `te`: Transformer Engine on a
    GPU, bf16 or FP8 (parallel.fp8); `fp8_torch`: linear layers in FP8 by torch itself, any device."""
    init: str | None = None
    """Weights to start the encoder from: a Hugging Face directory, a checkpoint or run directory, or a reference .pt file;
    random when absent. A resumed run ignores it."""
    init_std: float = 0.02
    """Standard deviation of randomly initialised linear weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Config:
    """Products of the blocks' linear layers in FP8. Patch embedding, attention, pooling head and banks never are."""

    recipe: Literal["auto", "tensorwise", "delayed", "blockwise", "mxfp8"] | None = None
    """How `model.layers=te` scales FP8 operands: absent, not at all (bf16); `auto`: mxfp8 on Blackwell, else tensorwise.
    `fp8_torch` is tensorwise always, and needs no key."""
    first_last_bf16: int = 0
    """Number of first blocks, and as many last ones, that are left in parallel.precision."""
    weight_gradient: Literal["fp8", "high"] = "fp8"
    """Products that make weight gradients (`fp8_torch`): in FP8 like the others, or in `high`, parallel.precision, which a gradient
    sums up over steps and two bits of mantissa can be too few for. `high` keeps inputs for backward in that precision too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How ranks divide the work. world size = data x tensor; data follows from the launcher's world size."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share one copy of the encoder. Keep it inside a node."""
    sequence_parallel: bool = False
    """Split activations between blocks along the tokens over the tensor group (saves activation memory)."""
    zero: Literal[0, 2, 3] = 2
    """Sharding of the encoder over the data group: 0 none, 2 gradients and optimizer, 3 also parameters between uses."""
    recompute: bool = False
    """Recompute each block in backward instead of keeping its activations."""
    compile: bool = False
    """Let torch.compile fuse what lies between a block's products and attention; the first steps take a minute longer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the encoder's matrix work. Master weights, gradients' sums and moments are fp32 either way."""
    fp8: Fp8Config = field(default_factory=Fp8Config)
    """FP8 in the blocks, for the layers that can (model.layers)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes CUDA when a GPU is visible."""
    timeout_s: float = 600.0
    """Seconds after which a collective that not every rank has joined ends the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """A head's concept bank: one centre a class, rows sharded over all ranks."""

    num_classes: int
    """Number of concept centres C; a label is a row index in [0, C)."""
    positives: int = 8
    """K: candidate labels of a sample that are drawn as positives each step (fewer candidates: all of them)."""
    sample_rate: float = 1.0
    """Share of the rows that compete in a step, in (0, 1]. Positives always do."""
    correct_sampling: bool = False
    """Weigh each drawn negative by the number of rows it stands for, so that the expected sum over negatives is that over the
    whole bank (the reference does not). Needs sample_rate < 1."""
    loss: Literal["cosface", "sigmoid"] = "cosface"
    """`cosface`: softmax with a margin, K positives a sample (the reference's code); `sigmoid`: a yes-or-no question for
    every class (the paper's equation 9)."""
    margin: float = 0.3
    """Subtracted from a positive's cosine, in [0, 2)."""
    filter_threshold: float = 0.75
    """A negative whose cosine exceeds this is taken as a false negative: its logit becomes 0, or with `sigmoid` it is left
    out. 0 switches the filter off."""
    logit_scale: float = 64.0
    """Factor on the cosines."""
    logit_bias: float = 0.0
    """Added to the logits of `sigmoid`; `cosface` knows none. About -log(num_classes * sample_rate) makes a fresh bank's
    positives and negatives cost alike."""
    learn_scale: bool = False
    """Learn the scale (up to 100, as CLIP does), and the bias of `sigmoid`, at the bank's learning rate, from the values above."""
    gradient: Literal["sum", "mean"] = "sum"
    """Reduction of the gradient over the K positives (the logged loss is always the mean); `sum` is the reference's."""
    co_positives: Literal["negative", "ignore"] = "negative"
    """Role of a sample's other positives in the softmax of one of them (`cosface`)."""
    gemm: Literal["fp32", "bf16"] = "fp32"
    """Type of the operands when centres and embeddings are multiplied; softmax and master weights are fp32 either way. A GPU
    sums and returns such products in fp32; a CPU returns them rounded to bf16."""
    chunk_rows: int | None = None
    """Rows whose logits exist at a time; memory only, results do not depend on it. Absent: what suits the device."""
    init: str | None = None
    """Initial centres [C, D], float32, float16 or bfloat16: a `.safetensors`, `.npy` or `.pt` file, numbered parts such as
    `bank_%03d.npy`, or a directory that tools.reshard_bank wrote; random N(0, 0.01) when absent. A resumed run ignores it."""
    lr_scale: float = 1.0
    """Factor on the schedule's learning rate for this bank."""
    weight_decay: float = 0.05
    """AdamW's decoupled decay of this bank's rows."""
    optimizer: Literal["dense", "rows"] = "dense"
    """`dense`: AdamW steps every row every time (the reference); `rows`: it reads and writes only rows that compete, and applies
    what a row missed when it is next read: the same trajectory, at a cost that does not grow with the bank."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Type in which AdamW's two moments are stored; `bf16` is rounded stochastically and halves their memory."""
    warmup_steps: int = 0
    """Steps of linear warm-up of this bank's own, on top of the schedule's, after `freeze_steps`."""
    freeze_steps: int = 0
    """First optimizer steps in which this bank does not change, while the encoder learns against it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModesConfig:
    """How a video head turns clips into patches: shares of each global micro-batch (exact where they divide it, else rounded
    up or down so that the mean is right), in seeded positions."""

    codec: float = 0.5
    """Share of clips fed as the `tokens` most salient patches of all frames."""
    frames: float = 0.375
    """Share of clips fed as whole frames, one drawn from each of `num_frames` equal bins of the clip."""
    collage: float = 0.125
    """Share of clips fed as whole frames stacked vertically into one tall picture (t = 0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Where a head's samples come from and how they become patches."""

    kind: Literal["image", "video"]
    """What the shards hold: pictures, or clips with saliency sidecars."""
    shards: tuple[str, ...]
    """Files or glob patterns, relative to the working directory, or fsspec URLs: WebDataset `.tar` with an `.index.json` beside it,
    MXNet `.rec` with an `.idx`, or lists of files (`.txt`, `.csv`, `.jsonl`); mixed as you like."""
    weights: tuple[float, ...] = ()
    """A positive number an entry of `shards`: samples are taken in proportion, exactly in every micro-batch, each entry in epochs
    of its own. Absent: all samples are one set, and come equally often."""
    size: int = 224
    """Side in pixels to which pictures or frames are resized; a multiple of the patch size."""
    resize: Literal["square", "native"] = "square"
    """Pictures become squares of `size`, or keep their aspect and size within `tokens` patches. Frames are always square."""
    decoder: Literal["pillow", "dali", "dali_gpu"] = "pillow"
    """Who decodes and resizes pictures: Pillow or DALI in the workers, or (`dali_gpu`) DALI in the training process on the run's
    device, with workers that only read. DALI needs the extra of that name."""
    augment: bool | None = None
    """Random-resized crop and mirroring, of clips changed colours too, all seeded by the sample. Absent: pictures are augmented,
    clips are not, as in the reference."""
    num_frames: int = 8
    """Whole frames of a clip in the modes `frames` and `collage`."""
    clip_frames: int = 64
    """Length of the virtual time axis; longer clips are sampled to it, shorter ones keep their own length."""
    tokens: int = 2048
    """Patch budget of a clip in the mode `codec`, and of a picture with `resize: native`."""
    i_frames: Literal["keep", "anchor", "free"] = "keep"
    """Whether codec selection takes all intra frames whole, only the first frame, or gives them no privilege."""
    modes: ModesConfig = field(default_factory=ModesConfig)
    """Mixture of view modes of a video head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """One task: a source of samples and the bank they are classified against."""

    name: str
    """Name in logs, checkpoints and metrics; letters, digits, `_` and `-`."""
    global_batch_size: int
    """Samples an optimizer step takes from this head, over all ranks and accumulation steps."""
    loss_weight: float = 1.0
    """Factor on this head's loss in the sum."""
    bank: BankConfig
    """The centres this head is trained against."""
    source: SourceConfig
    """The samples of this head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Loading, common to all heads."""

    workers: int = 2
    """Decoding processes a rank that loads data; 0 decodes in the training process."""
    prefetch: int = 8
    """Samples that each worker prepares ahead."""
    prefetch_mb: float = 1024.0
    """Bound of what a rank prepares ahead for a head, in 10^6 bytes, divided evenly among its workers; 0 = none but `prefetch`."""
    sample_timeout_s: float = 120.0
    """Seconds after which a sample that has not arrived is given up, named and replaced."""
    cache_dir: str | None = None
    """Folder, on a disk of each host, for whole copies of remote shards; absent: they are read by ranges."""
    cache_gb: float = 100.0
    """Most that cache_dir may take, in 10^9 bytes; shards for which there is no room are read by ranges."""
    remote_retry_s: float = 60.0
    """Seconds for which a remote read that fails is tried again; then the sample is bad. Below sample_timeout_s if any is."""
    max_bad_share: float = 0.05
    """Share of consumed samples, in [0, 1), that may be bad before the run stops (checked from 100 samples on)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, for the encoder and (with its own decay and scale) for the banks."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled decay of the encoder's parameters."""
    decay_norms_and_biases: bool = True
    """Whether one-dimensional parameters decay too, as the reference's do."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float = 5.0
    """Largest global gradient norm, of the encoder and of each bank apart; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over optimizer steps, as a pure function of the step."""

    kind: Literal["cosine", "polynomial", "reference"] = "polynomial"
    """Shape of the decay; `reference` reproduces the reference's schedule, its first step at full rate included."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    power: float = 2.0
    """Exponent of the polynomial decay."""
    final_lr_share: float = 0.0
    """Share of the peak rate that remains at the last step, in [0, 1]; not used by `reference`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeConfig:
    """What to do about a step whose loss lies far above those before it, in any head."""

    action: Literal["none", "warn", "skip", "stop"] = "none"
    """`warn` names the samples, `skip` also leaves the step out, `stop` also ends the run with the state before it saved."""
    factor: float = 8.0
    """Robust standard deviations above the median of the last losses that are a spike; above 0."""
    window: int = 100
    """Taken steps whose losses are compared with, at least 10; nothing is a spike before there are as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Length and conduct of the run."""

    steps: int
    """Optimizer steps of the whole run."""
    grad_accumulation: int = 1
    """Micro-batches a step; every head's global_batch_size must be a multiple of it."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation, positives and negatives."""
    max_skipped_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient, or a spike, that are skipped before the run stops with a checkpoint."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    """Steps whose loss jumps."""
    hang_timeout_s: float = 300.0
    """Seconds without progress after which the job is ended and the rank that hangs is named; above data.sample_timeout_s. At
    start-up, in the first step, in looks at the banks, in saves, in evaluations, while a profile is written and at the end
    parallel.timeout_s holds if it is longer. 0 never looks."""
    stop_after: int | None = None
    """Step of the schedule at which to stop with a checkpoint although it runs to `steps`; for staged runs and tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What is written under `<run_dir>/checkpoints`."""

    every: int = 1000
    """Steps between checkpoints; one is also written at the end and when the run is told to stop."""
    keep_last: int = 3
    """Newest checkpoints that are kept; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for good; 0 keeps none but the newest."""
    asynchronous: bool = True
    """Write in the background after a copy in memory, while training goes on."""
    resume: bool = True
    """Continue from the newest complete checkpoint in the run directory, if there is one. False refuses to start where there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases, beside the files. A restarted run continues under the id in `<run_dir>/wandb_id`."""

    project: str
    """Project that the run appears in."""
    name: str | None = None
    """Name that it appears under; absent: the last part of run_dir."""
    entity: str | None = None
    """User or team that owns the project; absent: the account's default."""
    mode: Literal["online", "offline"] = "online"
    """`offline` needs neither network nor account: it writes `<run_dir>/wandb/`, for `wandb sync` to send later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """torch.profiler over chosen steps: traces and tables in `<run_dir>/profile/`. Recorded steps are slower."""

    steps: tuple[int, int]
    """First and last optimizer step to record, counted from 1 as in metrics.jsonl. A step takes tens of MB in a trace."""
    ranks: tuple[int, ...] = (0,)
    """Ranks that record themselves."""
    memory: bool = False
    """Also record every allocation on the GPU, as a snapshot for https://pytorch.org/memory_viz. Not on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """Metrics, under `<run_dir>`: the console, metrics.jsonl, tensorboard/, and what else is asked for."""

    every: int = 10
    """Steps between console lines and TensorBoard points; metrics.jsonl has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    bank_every: int = 100
    """Steps between closer looks at the banks (cosines, dead and duplicate centres, effective negatives); 0 never looks."""
    peak_tflops: float | None = None
    """Dense peak of one device in TFLOP/s at the configured precision, for MFU; known GPUs fill it in themselves."""
    wandb: WandbConfig | None = None
    """Also report to Weights & Biases, every `every` steps; needs its package (the extra `wandb`)."""
    profile: ProfileConfig | None = None
    """Steps to look into with torch's profiler; none when absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """k-NN classification of held-out samples by the encoder while it is trained; training is the same with and without."""

    every: int = 0
    """Steps between evaluations; one is also made at the last step. 0 never evaluates."""
    train: str | None = None
    """Folder of class folders whose samples vote. Needed if `every` > 0."""
    val: str | None = None
    """Folder of class folders whose samples are classified. Needed if `every` > 0."""
    kind: Literal["image", "video"] = "video"
    """What the folders hold."""
    view: Literal["frames", "codec"] = "frames"
    """What of a clip is shown: evenly spaced whole frames, or the most salient patches."""
    tokens: int = 2048
    """Most patches of a clip; as many whole frames as fit."""
    i_frames: Literal["keep", "anchor", "free"] = "keep"
    """As `heads.*.source.i_frames`, for the view `codec`."""
    size: int = 224
    """Side in pixels to which pictures or frames are resized; a multiple of the patch size."""
    k: int = 20
    """Neighbours that vote, at least 1."""
    batch_size: int = 8
    """Samples of a forward pass of a data rank, at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that a run depends on, apart from the number of ranks."""

    run_dir: str
    """Directory of this run's configuration, checkpoints, metrics and logs; created if missing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder."""
    heads: tuple[HeadConfig, ...]
    """The tasks whose losses are summed, at least one."""
    train: TrainConfig
    """Length and conduct of the run."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout and precision."""
    data: DataConfig = field(default_factory=DataConfig)
    """Loading."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over steps."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    log: LogConfig = field(default_factory=LogConfig)
    """Metrics."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation during training."""


LARGEST_LEARNED_SCALE = 100.0
"""Where a learned `logit_scale` stops (CLIP, arXiv 2103.00020)."""

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "ffn_size": 256, "num_layers": 4, "num_heads": 2},
    "base": {"hidden_size": 768, "ffn_size": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"hidden_size": 1024, "ffn_size": 4096, "num_layers": 24, "num_heads": 16},
    "huge": {"hidden_size": 1280, "ffn_size": 5120, "num_layers": 32, "num_heads": 20},
}
"""Sizes of the released family (base, large, huge) and one for a laptop's CPU."""
