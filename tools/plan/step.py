"""One optimizer step of the trainer's own encoder, banks and optimizers, traced on shapes.

Traced is the last micro-batch of a step, and the update: it begins with all that earlier ones leave behind, so nothing before it
takes more. The encoder sees the head with most patches, and every bank steps while its activations wait; a real step takes
heads one by one, and never more than this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.config import HeadConfig, RunConfig, SourceConfig
from megatron_ovenc.data.order import micro_batch_slices
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.state import EncoderOptimizer
from tools.plan.sharding import ShardingOnShapes
from tools.plan.trace import Trace
from tools.plan.world import imaginary_world


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLoad:
    """A head's micro-batch on the data rank that has most of it."""

    name: str
    samples: int
    views: tuple[tuple[float, int], ...]
    """Share of samples and patches a sample, of each view."""
    gathered: int
    """Samples of the micro-batch over all ranks (N)."""
    competing: int
    """Rows of this rank's part of the bank that the GPU has buffers for in a draw (M)."""
    owned: int
    """Rows of this rank's part of the bank (R)."""

    @property
    def longest(self) -> int:
        """Patches of the longest view."""
        return max(tokens for _, tokens in self.views)

    @property
    def patches(self) -> int:
        """Patches of the micro-batch, at most."""
        return self.samples * self.longest


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedStep:
    """What a step takes on rank 0, which never takes less than another rank."""

    phases: dict[str, Counter[str]]
    """Bytes at the peak of each phase, by purpose."""
    resident: Counter[str]
    """Bytes of what lives for the whole run, by purpose."""
    sent: Counter[tuple[str, str]]
    """Message bytes a step, by collective and group: `tensor`, `data`, `world`, or `sharding` for FSDP's over the data group."""
    heads: tuple[HeadLoad, ...]
    parameters: int
    """Numbers of a tensor rank's encoder."""
    shard: int
    """Numbers of this rank's shard of it."""

    @property
    def peak(self) -> int:
        """Most bytes that tensors take at a time."""
        return max(counter.total() for counter in self.phases.values())


def head_views(source: SourceConfig, patch_size: int) -> tuple[tuple[float, int], ...]:
    """Views of a picture, at most, or of a clip as long as the time axis: (share, patches)."""
    frame = (source.size // patch_size) ** 2
    if source.kind == "image":
        return ((1.0, source.tokens if source.resize == "native" else frame),)
    frames, modes = source.num_frames * frame, source.modes
    views = ((modes.codec, source.tokens), (modes.frames, frames), (modes.collage, frames))
    return tuple(view for view in views if view[0] > 0)


def trace_step(config: RunConfig, world_size: int) -> TracedStep:
    """Trace a checked configuration on rank 0 of `world_size`."""
    # Transformer Engine's layers exist on a GPU only; torch's take their place, at the same sizes.
    model = replace(config.model, init=None, layers="sdpa" if config.model.layers == "te" else config.model.layers)
    config = replace(config, model=model)
    with imaginary_world(world_size, config.parallel.tensor) as topology:
        return _StepOnShapes(config, topology).run()


class _StepOnShapes:
    """What the trainer builds and does, without data."""

    def __init__(self, config: RunConfig, topology: Topology) -> None:
        self.config, self.topology, self.trace = config, topology, Trace()
        self.phases: dict[str, Counter[str]] = {}
        parallel, optimizer = config.parallel, config.optimizer
        with topology.device:
            sharded = Encoder(config.model, parallel, topology)
            self.encoder = Encoder(config.model, parallel, topology)
        # FSDP asks the mesh for a device with streams; the shards stay on the meta device all the same.
        on_host = replace(topology, device=torch.device("cpu"))
        ShardedEncoder(sharded, sharded.block.layers, on_host, parallel.zero, parallel.precision)
        self.shards = [local(parameter) for parameter in sharded.parameters()]
        with self.trace:
            self.trace.keep("parameters", self.shards)
            with self.trace.purpose("moments"):
                self.optimizer = EncoderOptimizer(sharded, optimizer)
            with self.trace.purpose("bank centres"):
                self.banks = {
                    head.name: ConceptBank(
                        head.bank,
                        dim=config.model.hidden_size,
                        head=head.name,
                        seed=config.train.seed,
                        topology=topology,
                    )
                    for head in config.heads
                }
            with self.trace.purpose("bank moments"):
                self.bank_optimizer = BankOptimizer(
                    self.banks, betas=optimizer.betas, eps=optimizer.eps, world_group=topology.world_group
                )
        self.resident = +self.trace.live
        if parallel.precision == "bf16":
            for parameter in self.encoder.parameters():
                parameter.data = parameter.data.bfloat16()
        self.trace.overlook(self.encoder.parameters())  # gathered weights stand for them

    def run(self) -> TracedStep:
        config, trace, heads = self.config, self.trace, [self._load(head) for head in self.config.heads]
        largest = max(heads, key=lambda load: load.patches)
        earlier = config.train.grad_accumulation - 1
        with trace:
            self.bank_optimizer.begin(config.train.steps)
            several = earlier > 0 or len(heads) > 1
            sharding = ShardingOnShapes(self.encoder, config.parallel, self.topology.data, trace, several)
            with trace.purpose("bank gradients"):
                for head in config.heads:
                    self.banks[head.name].gradient = self._earlier_gradient(head, earlier)
            with trace.purpose("batches"):
                patches, positions, offsets = self._batch(largest)
            with self._phase("forward", "activations"):
                pooled = self.encoder(patches, positions, offsets).pooled
            for head in config.heads:
                self._bank_step(head)
            sharding.last_backward = True
            with self._phase("backward", "backward"):
                pooled.backward(torch.empty_like(pooled))
            sharding.release()
            with self._phase("optimizer", "optimizer step"):
                self._update()
        return TracedStep(
            phases=self.phases,
            resident=self.resident,
            sent=self._messages(sum(h.patches for h in heads) / largest.patches),
            heads=tuple(heads),
            parameters=sum(p.numel() for p in self.encoder.parameters()),
            shard=sum(shard.numel() for shard in self.shards),
        )

    def _bank_step(self, head: HeadConfig) -> None:
        bank, sizes = self.banks[head.name], self._batch_sizes(head)
        with self._phase("bank", "bank step"):
            with self.topology.device:
                embeddings = torch.empty(sizes[0], bank.dim, requires_grad=True)
                labels = torch.empty(sizes[0], head.bank.positives, dtype=torch.int64)
            bank.loss(embeddings, labels, step=0, batch_sizes=sizes).backward()
            assert bank.gradient is not None
            self.trace.keep("bank gradients", [bank.gradient.values])

    @contextmanager
    def _phase(self, name: str, purpose: str) -> Iterator[None]:
        """The peak inside is that of phase `name` if it is the largest so far; what is allocated is for `purpose`."""
        self.trace.restart()
        with self.trace.purpose(purpose):
            yield
        self.phases[name] = max(self.phases.get(name, Counter()), +self.trace.peak, key=Counter.total)

    def _update(self) -> None:
        norms = self.bank_optimizer.grad_norms()
        self.bank_optimizer.clip(norms, 1.0)
        # On a GPU torch's AdamW works on all tensors at once, and makes the roots of all second moments.
        roots = [torch.empty_like(shard) for shard in self.shards]
        del roots
        self.bank_optimizer.step(1.0)

    def _batch_sizes(self, head: HeadConfig) -> list[int]:
        accumulation, data = self.config.train.grad_accumulation, self.topology.data
        slices = micro_batch_slices(head.global_batch_size, accumulation, data, head=head.name)
        return [part.stop - part.start for part in slices]

    def _batch(self, load: HeadLoad) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """patches and positions on the device, offsets on the host; every clip in the longest view."""
        with self.topology.device:
            patches = torch.empty(load.patches, 3 * self.config.model.patch_size**2, dtype=torch.uint8)
            positions = torch.empty(load.patches, 3, dtype=torch.int32)
        return patches, positions, torch.arange(load.samples + 1, dtype=torch.int32) * load.longest

    def _competing(self, head: HeadConfig) -> int:
        """Rows that a draw has room for on a GPU."""
        bank = self.banks[head.name]
        labels = torch.empty(sum(self._batch_sizes(head)), head.bank.positives, dtype=torch.int64, device="meta")
        rows = bank.competitors(labels, step=0).rows
        return len(bank.weight) if rows is None else len(rows)

    def _earlier_gradient(self, head: HeadConfig, draws: int) -> RowGradient | None:
        """What `draws` micro-batches leave in a bank."""
        bank = self.banks[head.name]
        if draws == 0:
            return None
        total, everything = len(bank.weight), head.bank.sample_rate == 1
        size = total if everything else min(draws * self._competing(head), total)
        rows = None if everything else torch.empty(size, dtype=torch.int64, device="meta")
        return RowGradient(rows=rows, values=bank.weight.new_empty(size, bank.dim), total=total)

    def _load(self, head: HeadConfig) -> HeadLoad:
        sizes = self._batch_sizes(head)
        return HeadLoad(
            name=head.name,
            samples=sizes[0],
            views=head_views(head.source, self.config.model.patch_size),
            gathered=sum(sizes),
            competing=self._competing(head),
            owned=len(self.banks[head.name].weight),
        )

    def _messages(self, encoder_passes: float) -> Counter[tuple[str, str]]:
        """Of a step: what was traced in a micro-batch, for all micro-batches, and the encoder's sharding by its rules.

        Args:
            encoder_passes: all heads' patches by those of the head that the encoder was traced with.
        """
        config, topology = self.config, self.topology
        groups = {"tensor": topology.tensor_group, "data": topology.data_group, "world": topology.world_group}
        names = {str(group.group_name): name for name, group in groups.items()}
        accumulation = config.train.grad_accumulation
        times = {"bank step": accumulation, "optimizer step": 1}
        sent: Counter[tuple[str, str]] = Counter()
        for (operation, group, purpose), size in self.trace.sent.items():
            sent[operation, names[group]] += round(size * times.get(purpose, accumulation * encoder_passes))
        numbers = sum(p.numel() for p in self.encoder.parameters())
        passes = accumulation * len(config.heads)
        if config.parallel.zero == 0:
            sent["all-reduce", "sharding"] = 4 * numbers
        else:
            gathers = 2 * passes if config.parallel.zero == 3 else 1
            sent["all-gather", "sharding"] = gathers * numbers * (2 if config.parallel.precision == "bf16" else 4)
            sent["reduce-scatter", "sharding"] = 4 * numbers
        return sent
