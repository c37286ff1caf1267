"""The OneVision-Encoder for Hugging Face: configuration, model, processors and a vision tower; needs torch and transformers only.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `AutoVideoProcessor` know the model type
"onevision_encoder", and makes every `save_pretrained` write the code files beside the weights, so that the directory
also loads elsewhere with `trust_remote_code=True`. Reading video files needs PyAV besides.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

# Not from the top: there transformers puts a stand-in in its place where torchvision is missing, which it does not need here.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_onevision_encoder import OneVisionEncoderConfig
from .hub import save_for_hub
from .image_processing_onevision_encoder import OneVisionEncoderImageProcessor
from .modeling_onevision_encoder import OneVisionEncoderModel, OneVisionEncoderPreTrainedModel
from .tower import OneVisionEncoderTower, PatchFeatures
from .video_processing_onevision_encoder import OneVisionEncoderVideoProcessor

__all__ = [
    "OneVisionEncoderConfig",
    "OneVisionEncoderImageProcessor",
    "OneVisionEncoderModel",
    "OneVisionEncoderPreTrainedModel",
    "OneVisionEncoderTower",
    "OneVisionEncoderVideoProcessor",
    "PatchFeatures",
    "save_for_hub",
]

AutoConfig.register(OneVisionEncoderConfig.model_type, OneVisionEncoderConfig, exist_ok=True)
AutoModel.register(OneVisionEncoderConfig, OneVisionEncoderModel, exist_ok=True)
AutoImageProcessor.register(
    OneVisionEncoderConfig, slow_image_processor_class=OneVisionEncoderImageProcessor, exist_ok=True
)
AutoVideoProcessor.register(OneVisionEncoderConfig, OneVisionEncoderVideoProcessor, exist_ok=True)
OneVisionEncoderConfig.register_for_auto_class("AutoConfig")
OneVisionEncoderModel.register_for_auto_class("AutoModel")
OneVisionEncoderImageProcessor.register_for_auto_class("AutoImageProcessor")
OneVisionEncoderVideoProcessor.register_for_auto_class("AutoVideoProcessor")
