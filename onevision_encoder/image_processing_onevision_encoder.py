"""CLIP's image preprocessing on PIL and numpy alone: resize, centre crop, rescale, normalise.

    processor = OneVisionEncoderImageProcessor()            # or AutoImageProcessor.from_pretrained(directory)
    pixel_values = processor(images, return_tensors="pt").pixel_values        # [B, 3, 448, 448]

It needs no torchvision and gives the same pixels under transformers 4.57 and 5.x, whose own CLIP processors differ in
backend and in what they do with transparency (here, as in 4.57, it is dropped).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import center_crop, normalize, rescale
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    infer_channel_dimension_format,
)

DEFAULT_SIDE = 448


class OneVisionEncoderImageProcessor(BaseImageProcessor):
    """Turns images into the model's `pixel_values`.

    Args:
        do_resize, do_center_crop, do_rescale, do_normalize, do_convert_rgb: switch one step each.
        size: pixels after resizing: {"shortest_edge": n} keeps the aspect ratio, {"height": h, "width": w} does not.
        resample: a PIL resampling filter; 3 is bicubic.
        crop_size: {"height": h, "width": w} cut from the centre; smaller images are padded with zeros.
        rescale_factor: what raw pixels 0..255 are multiplied by.
        image_mean, image_std: per channel, of rescaled pixels.

    Raises:
        ValueError: a size without the keys above.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = PIL.Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: dict[str, int] | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = {"shortest_edge": DEFAULT_SIDE} if size is None else size
        self.resample = int(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = {"height": DEFAULT_SIDE, "width": DEFAULT_SIDE} if crop_size is None else crop_size
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(OPENAI_CLIP_STD if image_std is None else image_std)
        self.do_convert_rgb = do_convert_rgb
        _check_size("size", self.size, ({"shortest_edge"}, {"height", "width"}))
        _check_size("crop_size", self.crop_size, ({"height", "width"},))

    def preprocess(
        self, images: Any, return_tensors: str | None = None, input_data_format: str | None = None, **overrides: Any
    ) -> BatchFeature:
        """Preprocess one image or any nesting of lists of them.

        Args:
            images: PIL images, or uint8 arrays or tensors [H, W], [H, W, C], [C, H, W] or a batch of the latter two.
            return_tensors: "pt" or "np" to stack the results, None for a list of arrays.
            input_data_format: "channels_first" or "channels_last", for arrays whose shape leaves that open.
            overrides: this call's values for any constructor argument; None leaves it as it is.

        Returns:
            A BatchFeature with pixel_values, one float32 [C, H, W] an image.

        Raises:
            ValueError: an unknown option, or an image of a wrong type or shape.
        """
        settings = self._settings()
        unknown = overrides.keys() - settings.keys()
        if unknown:
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}: the processor takes {', '.join(settings)}.")
        settings |= {name: value for name, value in overrides.items() if value is not None}
        processor = OneVisionEncoderImageProcessor(**settings)
        pixel_values = [processor._process(image, input_data_format) for image in _flatten(images)]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def _settings(self) -> dict[str, Any]:
        names = ["do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"]
        names += ["do_normalize", "image_mean", "image_std", "do_convert_rgb"]
        return {name: getattr(self, name) for name in names}

    def _process(self, image: PIL.Image.Image | np.ndarray, input_data_format: str | None) -> np.ndarray:
        picture = image if isinstance(image, PIL.Image.Image) else _array_to_pil(image, input_data_format)
        if self.do_convert_rgb:
            picture = picture.convert("RGB")
        elif picture.mode != "RGB":
            raise ValueError(f"image has mode {picture.mode}, not RGB: set do_convert_rgb=True.")
        if self.do_resize:
            picture = picture.resize(self._resized(*picture.size), resample=self.resample)
        pixels = np.asarray(picture)
        layout = {"input_data_format": ChannelDimension.LAST}
        if self.do_center_crop:
            pixels = center_crop(pixels, (self.crop_size["height"], self.crop_size["width"]), **layout)
        if self.do_rescale:
            pixels = rescale(pixels, self.rescale_factor, **layout)
        if self.do_normalize:
            pixels = normalize(pixels, self.image_mean, self.image_std, **layout)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; the longer side is truncated, not rounded, as CLIP has it."""
        if "shortest_edge" not in self.size:
            return self.size["width"], self.size["height"]
        edge = self.size["shortest_edge"]
        return (edge, edge * height // width) if width <= height else (edge * width // height, edge)


def _is_side(given: object) -> bool:
    return isinstance(given, int) and given > 0


def _check_size(name: str, given: dict[str, int], allowed: tuple[set[str], ...]) -> None:
    if not isinstance(given, dict) or set(given) not in allowed or not all(_is_side(n) for n in given.values()):
        keys = " or ".join("{" + ", ".join(sorted(choice)) + "}" for choice in allowed)
        raise ValueError(f"{name}={given}: must have exactly the keys {keys}, each a whole number of pixels above 0.")


def _flatten(images: Any) -> Iterator[PIL.Image.Image | np.ndarray]:
    """All images in nested lists and batched arrays, in order; tensors become arrays."""
    if isinstance(images, PIL.Image.Image):
        yield images
    elif isinstance(images, list | tuple):
        for item in images:
            yield from _flatten(item)
    elif isinstance(images, np.ndarray | torch.Tensor):
        if str(images.dtype) not in ("uint8", "torch.uint8") or images.ndim not in (2, 3, 4):
            raise ValueError(
                f"image is a {images.dtype} array of shape {tuple(images.shape)}: pass uint8 pixels 0..255 of shape"
                " [H, W], [H, W, C] or [C, H, W]; pixels already scaled and normalised go to the model directly."
            )
        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else images
        yield from pixels if pixels.ndim == 4 else [pixels]
    else:
        raise ValueError(f"cannot read an image from {type(images).__name__}: pass PIL images or uint8 arrays.")


def _array_to_pil(pixels: np.ndarray, input_data_format: str | None) -> PIL.Image.Image:
    if pixels.ndim == 2:
        return PIL.Image.fromarray(pixels)
    layout = ChannelDimension(input_data_format or infer_channel_dimension_format(pixels, num_channels=(1, 3, 4)))
    if layout is ChannelDimension.FIRST:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"image has {pixels.shape[-1]} channels (input_data_format={layout.value}); expected 1, 3 or 4."
        )
    return PIL.Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
