"""The OneVision-Encoder for Hugging Face: configuration, model and image processor; needs torch and transformers only.

Importing the package makes `AutoConfig`, `AutoModel` and `AutoImageProcessor` know the model type
"onevision_encoder", and makes every `save_pretrained` write the code files beside the weights, so that the directory
also loads elsewhere with `trust_remote_code=True`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .configuration_onevision_encoder import OneVisionEncoderConfig
from .hub import save_for_hub
from .image_processing_onevision_encoder import OneVisionEncoderImageProcessor
from .modeling_onevision_encoder import OneVisionEncoderModel, OneVisionEncoderPreTrainedModel

__all__ = [
    "OneVisionEncoderConfig",
    "OneVisionEncoderImageProcessor",
    "OneVisionEncoderModel",
    "OneVisionEncoderPreTrainedModel",
    "save_for_hub",
]

AutoConfig.register(OneVisionEncoderConfig.model_type, OneVisionEncoderConfig, exist_ok=True)
AutoModel.register(OneVisionEncoderConfig, OneVisionEncoderModel, exist_ok=True)
AutoImageProcessor.register(
    OneVisionEncoderConfig, slow_image_processor_class=OneVisionEncoderImageProcessor, exist_ok=True
)
OneVisionEncoderConfig.register_for_auto_class("AutoConfig")
OneVisionEncoderModel.register_for_auto_class("AutoModel")
OneVisionEncoderImageProcessor.register_for_auto_class("AutoImageProcessor")
