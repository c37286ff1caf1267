"""Pictures of a micro-batch to patches on the run's device, by one DALI pipeline in the training process.

On a GPU, DALI's `mixed` decoder (nvJPEG, the hardware's decoders where there are any) decodes, and the pixels never see the host;
on a CPU the same pipeline has DALI's CPU operators. It is given files with the windows that workers drew, and holds nothing between
calls. Pillow is the judge of what DALI fails on, so that the same samples are bad as without DALI.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from megatron_ovenc.data.dali import inputs, windows_of_files
from megatron_ovenc.data.encoded import Encoded
from megatron_ovenc.data.errors import BadSample, unexpected
from megatron_ovenc.data.images import framed_pixels
from megatron_ovenc.data.views import View, whole
from megatron_ovenc.parallel.device import current_stream, to_device

RUN_PICTURES = 128
"""Most pictures that DALI decodes at once."""
RUN_AREA = 1 << 26
"""Pixels of pictures decoded at once, at three bytes each, unless one has more: what decoding may take of a GPU's memory."""

logger = logging.getLogger(__name__)


class BatchDecoder:
    """Decodes what workers left encoded; its pipeline is built with the first such picture."""

    def __init__(self, *, patch_size: int, device: torch.device, threads: int) -> None:
        """
        Args:
            patch_size: `model.patch_size`.
            device: where patches are wanted, and who decodes.
            threads: of the host, for what a GPU leaves to it, or for all.
        """
        self._patch_size = patch_size
        self._device = device
        self._threads = threads
        self._pipeline: Any = None
        self._failures = 0

    def decode(self, views: Sequence[View | Encoded]) -> list[np.ndarray | torch.Tensor | BadSample]:
        """Patches uint8 [n, 3 * p * p] of each view: on the device what was encoded, and as it is what was not.

        A picture that cannot be decoded is the reason why, and does not change what others look like.
        """
        encoded = [view for view in views if isinstance(view, Encoded)]
        decoded = iter([patches for run in _runs(encoded) for patches in self._decoded(run)])
        return [next(decoded) if isinstance(view, Encoded) else view.patches for view in views]

    def close(self) -> None:
        """Give back the pipeline's memory; `decode` would build another one."""
        self._pipeline = None

    def _decoded(self, pictures: Sequence[Encoded]) -> list[torch.Tensor | BadSample]:
        if self._pipeline is None:
            self._pipeline = _build(self._device, self._threads)
        each = [inputs(picture.content, picture.window) for picture in pictures]
        batch = {name: [one[name] for one in each] for name in each[0]}
        batch["blocks"] = [self._blocks(picture) for picture in pictures]
        try:
            # On a GPU the patches belong to torch's stream: it waits for them, and their memory comes free in its order.
            (patches,) = self._pipeline.run(current_stream(self._device), **batch)
        except (RuntimeError, MemoryError) as error:
            self._pipeline = None  # DALI declares a pipeline unusable after its first error
            if len(pictures) > 1:
                return [one for picture in pictures for one in self._decoded([picture])]
            return [self._decoded_by_pillow(pictures[0], error)]
        lengths = [rows * cols for rows, cols in (picture.grid for picture in pictures)]
        packed = patches.as_reshaped_tensor([sum(lengths), 3 * self._patch_size**2])
        return list(torch.from_dlpack(packed).split(lengths))

    def _blocks(self, picture: Encoded) -> np.ndarray:
        """Shape of a picture whose sides are divided into patches."""
        (rows, cols), side = picture.grid, self._patch_size
        return np.array([rows, side, cols, side, 3], np.int32)

    def _decoded_by_pillow(self, picture: Encoded, error: Exception) -> torch.Tensor | BadSample:
        try:
            pixels = framed_pixels(picture.content.tobytes(), lambda width, height: picture.window)
        except BadSample as bad:
            return bad
        except Exception as defect:  # taken as a worker takes it
            return BadSample(unexpected(defect))
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # ever more rarely
            logger.warning(
                "DALI failed on %d pictures that Pillow decodes, which is slow; the last was %s: %s",
                self._failures,
                picture.sample_id,
                " ".join(str(error).split()),
            )
        return to_device(torch.from_numpy(whole(pixels[None], self._patch_size).patches), self._device)


def _runs(pictures: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Consecutive pictures, as many as may be decoded at once."""
    start, area = 0, 0
    for place, picture in enumerate(pictures):
        if place > start and (area + picture.area > RUN_AREA or place - start == RUN_PICTURES):
            yield pictures[start:place]
            start, area = place, 0
        area += picture.area
    if start < len(pictures):
        yield pictures[start:]


def _build(device: torch.device, threads: int) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    # A picture's decoder must not depend on what else is in its batch: all that the hardware can, it does. Threads go where the
    # system puts them, for several ranks share a host.
    mixed = {"device": "mixed", "hw_decoder_load": 1.0, "affine": False}

    # What is fed comes out of the same call.
    @pipeline_def(batch_size=RUN_PICTURES, num_threads=threads, device_id=device.index, prefetch_queue_depth=1)
    def pictures_to_patches() -> Any:
        pixels = windows_of_files(**(mixed if device.type == "cuda" else {"device": "cpu"}))
        blocks = fn.external_source(name="blocks", dtype=types.INT32, ndim=1)
        # Row, col, channel, y, x: patches in raster order, each as a Conv2d weight flattens.
        return fn.transpose(fn.reshape(pixels, shape=blocks, layout=""), perm=[0, 2, 4, 1, 3])

    pipeline = pictures_to_patches()
    pipeline.build()
    return pipeline
