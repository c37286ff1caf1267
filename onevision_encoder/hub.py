"""Writes a directory that any transformers user can load, with this package installed or not.

save_for_hub(model, image_processor, video_processor, "out/encoder")
AutoModel.from_pretrained("out/encoder", trust_remote_code=True)

out/encoder/
    config.json                      with the auto_map that names the code files
    model.safetensors                or model-00001-of-00007.safetensors, ... and model.safetensors.index.json
    preprocessor_config.json         of pictures
    video_preprocessor_config.json
    *_onevision_encoder.py           copies of this package's code files
"""

from __future__ import annotations

from pathlib import Path

from .image_processing_onevision_encoder import OneVisionEncoderImageProcessor
from .modeling_onevision_encoder import OneVisionEncoderModel
from .video_processing_onevision_encoder import OneVisionEncoderVideoProcessor


def save_for_hub(
    model: OneVisionEncoderModel,
    image_processor: OneVisionEncoderImageProcessor,
    video_processor: OneVisionEncoderVideoProcessor,
    output_dir: str | Path,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write weights, configuration, preprocessing and code to `output_dir`, and return it.

    The code files and the auto_map come from transformers itself: the package registers its classes for them on import.
    Weights that exceed `max_shard_size` (bytes, or a text such as "500MB") are written to several files and an index.
    """
    directory = Path(output_dir)
    # transformers only logs an error, and writes nothing, where the path is a file: fail here instead.
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    image_processor.save_pretrained(directory)
    video_processor.save_pretrained(directory)
    return directory
