"""Writes a directory that any transformers user can load, with this package installed or not.

save_for_hub(model, processor, "out/encoder")
AutoModel.from_pretrained("out/encoder", trust_remote_code=True)

out/encoder/
    config.json                  with the auto_map that names the code files
    model.safetensors
    preprocessor_config.json
    *_onevision_encoder.py       copies of this package's code files
"""

from __future__ import annotations

from pathlib import Path

from .image_processing_onevision_encoder import OneVisionEncoderImageProcessor
from .modeling_onevision_encoder import OneVisionEncoderModel


def save_for_hub(
    model: OneVisionEncoderModel, processor: OneVisionEncoderImageProcessor, output_dir: str | Path
) -> Path:
    """Write weights, configuration, preprocessing and code to `output_dir`, and return it.

    The code files and the auto_map come from transformers itself: the package registers its classes for them on import.
    """
    directory = Path(output_dir)
    # transformers only logs an error, and writes nothing, where the path is a file: fail here instead.
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
