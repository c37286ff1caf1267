"""k-NN of the encoder that is being trained, every `eval.every` steps, on all of its ranks.

Data rank r of n encodes samples r, r + n, ... and keeps their embeddings; `eval.shared_knn` compares them where they are. Nothing
random is drawn and no training sample is consumed, so that a run's losses are the same with and without. A damaged sample is named
and left out.

All data ranks make the same number of forward passes, because sharded parameters are gathered in each: a rank that has no sample
left encodes a blank one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from eval.datasets import Dataset
from eval.in_training_data import evaluation_data
from eval.reading import look
from eval.scores import score
from eval.shared_knn import Share, shared_votes
from eval.views import CodecPatches, Picture, SampleView, UniformFrames
from eval.workers import ordered_map
from megatron_ovenc.config import RunConfig
from megatron_ovenc.data.batch import PatchBatch, Sample, pack
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.views import View
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.say import Say
from megatron_ovenc.train.state import BatchSource
from megatron_ovenc.train.stream import BatchStream

_BLANK = -1
"""Row of a sample that is encoded for company only."""


class TrainingExaminer:
    """Called with the number of steps taken after each step; evaluates when it is time to. Collective over all ranks."""

    def __init__(
        self,
        config: RunConfig,
        encoder: Encoder,
        sharding: ShardedEncoder,
        topology: Topology,
        say: Say,
        alive: Callable[[], None],
    ) -> None:
        """
        Args:
            config: of the run.
            encoder: as it is trained.
            sharding: its parameters' whereabouts.
            topology: the ranks.
            say: tells a person.
            alive: tells the watchdog, before each batch and each meeting of the ranks.

        Raises:
            ConfigError: see `evaluation_data`.
        """
        self._config, self._encoder, self._sharding = config, encoder, sharding
        self._topology, self._say, self._alive = topology, say, alive
        self._data = evaluation_data(config)

    def __call__(self, step: int) -> dict[str, float]:
        """`knn_top1` and `knn_top5` in percent, and `bad_samples`, on the main rank; nothing when it is not time to evaluate."""
        if self._data is None or (step % self._config.eval.every and step != self._config.train.steps):
            return {}
        (train, known), (val, answered) = (self._embed(part) for part in self._data)
        bad = int((~known).sum() + (~answered).sum())
        k = min(self._config.eval.k, int(known.sum()))
        if k == 0:
            self._say("no sample of eval.train can be read; training goes on", alarm="EVALUATION FAILED")
            return {"bad_samples": bad} if self._topology.is_main else {}
        labels = [torch.tensor([sample.labels[0] for sample in part.samples]) for part in self._data]
        votes = shared_votes(
            train,
            labels[0][train.rows],
            val,
            counts=(len(labels[0]), len(labels[1])),
            classes=len(self._data[0].classes),
            k=k,
            topology=self._topology,
            alive=self._alive,
        )
        if votes is None:
            return {}
        scores = score(votes, labels[1].numpy(), answered.numpy())
        self._say(
            f"step {step}: {k}-NN top-1 {scores.top1:.2f} % of {scores.samples} held-out samples, {bad} unreadable"
        )
        return {"knn_top1": scores.top1, "knn_top5": scores.top5, "bad_samples": bad}

    def _embed(self, dataset: Dataset) -> tuple[Share, Tensor]:
        """This rank's samples, and which samples any rank could read, bool [N]."""
        topology, count, batch_size = self._topology, len(dataset.samples), self._config.eval.batch_size
        share = -(-count // topology.data)
        batches = _Batches(self._looks(dataset), batch_size, self._config.model.patch_size)
        stream = BatchStream(source=cast(BatchSource, batches), topology=topology)
        rows, vectors = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, self._config.model.hidden_size)]
        with torch.no_grad():  # not inference mode: what fully_shard gathers must serve the next step
            for _ in range(-(-share // batch_size)):
                self._alive()
                batch = stream.next()
                pooled = self._encoder(batch.patches, batch.positions, batch.cu_seqlens).pooled
                rows.append(batch.labels[:, 0].cpu())
                vectors.append(F.normalize(pooled.float(), dim=1).cpu())
        self._sharding.release()
        # Ranks of a tensor group have the same samples: those of its first count.
        kept = (torch.cat(rows) != _BLANK) & (topology.tensor_rank == 0)
        mine = Share(torch.cat(rows)[kept], torch.cat(vectors)[kept])
        there = torch.zeros(count, dtype=torch.uint8)
        there[mine.rows] = 1
        dist.all_reduce(there, group=topology.host_group)  # over all ranks, on the host: each sample is one rank's
        self._tell_failures(dataset, batches.failures)
        return mine, there.bool()

    def _tell_failures(self, dataset: Dataset, mine: dict[int, str]) -> None:
        everyone: list[dict[int, str]] = [{}] * self._topology.world
        wanted = everyone if self._topology.is_main else None
        # Over all ranks, on the host, to the one that speaks.
        dist.gather_object(mine, wanted, dst=0, group=self._topology.host_group)
        for row, reason in sorted(item for failures in everyone for item in failures.items()):
            self._say(f"evaluation: {dataset.samples[row].name} cannot be read: {reason}")

    def _looks(self, dataset: Dataset) -> Iterator[tuple[int, list[View] | BadSample]]:
        """This data rank's samples, by row; only its first tensor rank asks for any."""
        rows = range(self._topology.data_rank, len(dataset.samples), self._topology.data)
        samples = [dataset.samples[row] for row in rows]
        # Threads: decoders work outside of Python's lock, and a fresh process would import all that training has imported.
        looks = ordered_map(partial(look, self._view(), 1), samples, self._config.data.workers, ThreadPoolExecutor)
        return zip(rows, looks, strict=True)

    def _view(self) -> SampleView:
        wanted, patch_size = self._config.eval, self._config.model.patch_size
        if wanted.kind == "image":
            return Picture(size=wanted.size, patch_size=patch_size)
        if wanted.view == "codec":
            return CodecPatches(size=wanted.size, patch_size=patch_size, tokens=wanted.tokens, i_frames=wanted.i_frames)
        frames = wanted.tokens // (wanted.size // patch_size) ** 2
        return UniformFrames(size=wanted.size, patch_size=patch_size, frames=frames)


class _Batches:
    """A data rank's samples in batches whose number depends on no sample; `labels` carry row numbers."""

    def __init__(self, looks: Iterator[tuple[int, list[View] | BadSample]], batch_size: int, patch_size: int) -> None:
        self._looks, self._batch_size = looks, batch_size
        self._blank = _sample(_BLANK, np.zeros((1, 3 * patch_size**2), np.uint8), np.zeros((1, 3), np.int32))
        self.failures: dict[int, str] = {}
        """Why, by row."""

    def next(self) -> PatchBatch:
        """The next batch: what of it can be read, or a blank."""
        samples = []
        for row, views in islice(self._looks, self._batch_size):
            if isinstance(views, BadSample):
                self.failures[row] = str(views)
            else:
                samples.append(_sample(row, views[0].patches, views[0].positions))
        return pack(samples or [self._blank])


def _sample(row: int, patches: np.ndarray, positions: np.ndarray) -> Sample:
    return Sample(patches=patches, positions=positions, labels=np.array([row], np.int64), sample_id=str(row))
