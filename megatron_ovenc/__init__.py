"""A distributed trainer for codec-fed vision encoders. See README.md; each package of this directory is one room."""

import warnings

# megatron-core says this four times on import. What we use of it needs neither.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
