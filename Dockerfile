# The GPU image. NVIDIA's PyTorch image brings CUDA, cuDNN, NCCL, PyTorch, Transformer Engine and flash-attn that belong together;
# the constraint files keep pip from replacing any of them. 25.12: CUDA 13.1, PyTorch 2.10 (alpha), Python 3.12; blockwise FP8 wants
# CUDA 12.9, torch's attention for ragged batches PyTorch 2.10, megatron-core 0.19 Python 3.12. The last step of the build refuses
# an image whose versions do not belong together.
#
#   docker build -t megatron-ovenc .
#   docker run --gpus all -v "$PWD:/workspace" megatron-ovenc make gpu-check gpu-bench
#   docker run --gpus all --ipc=host --network=host --ulimit memlock=-1 --device=/dev/infiniband -v "$PWD:/workspace" megatron-ovenc
#
# Not built or run by this project's tests: their machine has neither a GPU nor a Docker engine.
FROM nvcr.io/nvidia/pytorch:25.12-py3

# pdsh and ssh start ranks on other machines; OpenMPI comes with the base image.
RUN apt-get update && apt-get install -y --no-install-recommends pdsh openssh-server openssh-client iproute2 \
    && rm -rf /var/lib/apt/lists/* && mkdir -p /run/sshd

WORKDIR /opt/megatron-ovenc
COPY pyproject.toml setup.py README.md ./
COPY megatron_ovenc megatron_ovenc
COPY onevision_encoder onevision_encoder
COPY codec codec
COPY launch launch
COPY eval eval
COPY tools tools

# Keep the image's own torch, Transformer Engine and flash-attn: what is installed is the constraint.
RUN pip list --format=freeze | grep -iE '^(torch|transformer[_-]engine|flash[_-]attn|nvidia-dali[a-z0-9-]*)==' > /tmp/image.txt \
    && pip install --no-cache-dir -c /tmp/image.txt \
        "megatron-core>=0.19,<0.20" "deepspeed==0.19.8" "nvidia-dali-cuda130" "mpi4py>=4" "faiss-cpu>=1.8" \
    && pip install --no-cache-dir -c /tmp/image.txt ".[bank,cluster]" "pytest>=8" "psutil>=5" \
    && python -c "import torch, megatron.core, transformer_engine.pytorch, flash_attn, deepspeed, nvidia.dali, faiss, mpi4py" \
    && python -m megatron_ovenc.parallel.requirements

WORKDIR /workspace
