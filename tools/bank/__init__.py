"""Parts of `tools.build_concept_bank`: what samples look like (descriptors, encoders), features on disk, clustering."""
