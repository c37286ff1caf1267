"""`clip.mp4` to the model's arguments: codec-selected patches, or evenly spaced whole frames.

    processor = OneVisionEncoderVideoProcessor.from_pretrained(directory)
    inputs = processor("clip.mp4", return_tensors="pt")                        # 2048 patches of 64 frames
    inputs = processor("clip.mp4", sampling="uniform", return_tensors="pt")    # 8 whole frames
    outputs = model(**inputs)

Uniform frames need PyAV; codec selection needs the `codec` package of this project as well. torchvision, on which transformers'
own video processors rest, is not needed.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.video_processing_utils import BaseVideoProcessor

from .video_pixels_onevision_encoder import resized  # noqa: F401  transformers 4 copies only files that this one names
from .video_reading_onevision_encoder import codec_patches, uniform_frames

SAMPLINGS = ("codec", "uniform")
I_FRAMES = ("keep", "anchor", "free")


class OneVisionEncoderVideoProcessor(BaseVideoProcessor):
    """Turns video files into the model's `pixel_values` and `patch_positions`.

    Args:
        sampling: what of a clip is shown: "codec", the most salient patches of all frames, or "uniform", whole frames.
        size: {"height": h, "width": w} in pixels that every frame is stretched to, multiples of `patch_size`.
        patch_size: the model's, pixels.
        num_tokens: patches of a clip ("codec"); a clip that has fewer shows all.
        num_frames: whole frames of a clip ("uniform").
        virtual_frames: length of the time axis; of longer clips, "codec" considers this many evenly spaced frames.
        i_frames: whether "codec" takes I frames whole ("keep"), only the first frame ("anchor"), or gives them no
            privilege ("free").
        image_mean, image_std: per channel, of pixels in [0, 1].

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "patch_positions"]

    def __init__(
        self,
        sampling: str = "codec",
        size: dict[str, int] | None = None,
        patch_size: int = 14,
        num_tokens: int = 2048,
        num_frames: int = 8,
        virtual_frames: int = 64,
        i_frames: str = "keep",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sampling = sampling
        self.size = {"height": 224, "width": 224} if size is None else dict(size)
        self.patch_size = patch_size
        self.num_tokens = num_tokens
        self.num_frames = num_frames
        self.virtual_frames = virtual_frames
        self.i_frames = i_frames
        self.image_mean = list(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(OPENAI_CLIP_STD if image_std is None else image_std)
        self._check()

    def preprocess(self, videos: Any, return_tensors: str | None = None, **overrides: Any) -> BatchFeature:
        """Read one video file, or a list of them.

        Args:
            videos: paths.
            return_tensors: "pt" or "np" to stack the results, None for lists of arrays.
            overrides: this call's values for any constructor argument; None leaves it as it is.

        Returns:
            A BatchFeature of arguments for the model. "uniform": pixel_values [B, 3, T, H, W] and patch_positions
            [B, T * h * w, 3]. "codec": pixel_values [B, 3, p, K * p], the patches side by side, and patch_positions [B, K, 3]
            that say where each belongs.

        Raises:
            ImportError: a package that reads videos is missing; the message says which.
            ValueError: an unknown option, a file that cannot be read, or clips of different lengths that are to be stacked.
        """
        settings = self._settings()
        if unknown := overrides.keys() - settings.keys():
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}: the processor takes {', '.join(settings)}.")
        settings |= {name: value for name, value in overrides.items() if value is not None}
        processor = OneVisionEncoderVideoProcessor(**settings)
        read = processor._codec if processor.sampling == "codec" else processor._uniform
        pixels, positions = zip(*(read(path) for path in _paths(videos)), strict=True)
        if return_tensors is not None and len({len(each) for each in positions}) > 1:
            raise ValueError(
                f"the clips have {sorted({len(each) for each in positions})} patches and cannot be stacked: process them one by"
                " one (OneVisionEncoderTower takes such inputs together), or leave return_tensors out."
            )
        data = {"pixel_values": list(pixels), "patch_positions": list(positions)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """What is saved. The class is named by auto_map alone: on the usual key, transformers 4.57 fails without torchvision."""
        saved = super().to_dict()
        saved.pop("video_processor_type", None)
        return saved

    def _codec(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """float32 [3, p, K * p], int64 [K, 3]."""
        patches, positions = codec_patches(
            path, self.num_tokens, self._shape, self.patch_size, self.virtual_frames, self.i_frames
        )
        strip = patches.transpose(2, 0, 3, 1).reshape(self.patch_size, -1, 3)  # [p, K * p, 3]
        return self._normalise(strip).transpose(2, 0, 1), positions

    def _uniform(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """float32 [3, T, H, W], int64 [T * h * w, 3]."""
        pixels, times = uniform_frames(path, self.num_frames, self._shape, self.virtual_frames)
        rows, cols = (side // self.patch_size for side in self._shape)
        positions = np.stack(np.meshgrid(times, np.arange(rows), np.arange(cols), indexing="ij"), axis=-1)
        return self._normalise(pixels).transpose(3, 0, 1, 2), positions.reshape(-1, 3)

    def _normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., 3] -> float32 of the same shape."""
        mean, std = (np.asarray(values, np.float32) for values in (self.image_mean, self.image_std))
        return (pixels.astype(np.float32) / 255 - mean) / std

    @property
    def _shape(self) -> tuple[int, int]:
        return self.size["height"], self.size["width"]

    def _settings(self) -> dict[str, Any]:
        names = ["sampling", "size", "patch_size", "num_tokens", "num_frames", "virtual_frames", "i_frames"]
        return {name: getattr(self, name) for name in [*names, "image_mean", "image_std"]}

    def _check(self) -> None:
        for name, allowed in (("sampling", SAMPLINGS), ("i_frames", I_FRAMES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}.")
        for name in ("patch_size", "num_tokens", "num_frames", "virtual_frames"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be an integer of at least 1.")
        sides = self.size.values()
        if set(self.size) != {"height", "width"} or any(n < 1 or n % self.patch_size for n in sides):
            raise ValueError(
                f"size={self.size}: must have the keys height and width, multiples of patch_size={self.patch_size}."
            )


def _paths(videos: Any) -> list[str]:
    given = videos if isinstance(videos, list | tuple) else [videos]
    if not given or not all(isinstance(each, str | os.PathLike) for each in given):
        kinds = sorted({type(each).__name__ for each in given}) or ["nothing"]
        raise ValueError(
            f"cannot read a video from {', '.join(kinds)}: pass paths of video files; frames that are decoded already go through"
            " the image processor."
        )
    return [os.fspath(each) for each in given]
