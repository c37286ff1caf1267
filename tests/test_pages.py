"""The pages name keys, modules, functions and files that exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import types
import typing
from pathlib import Path

import pytest

import codec
from megatron_ovenc.config import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    "docs/README.md",
    "docs/data.md",
    "docs/getting_started.md",
    "docs/huggingface.md",
    "docs/porting.md",
    "docs/questions.md",
    "docs/recipes.md",
]
SECTIONS = {field.name for field in dataclasses.fields(RunConfig)}


def has_key(kind: typing.Any, path: list[str]) -> bool:
    """Whether a dotted key leads somewhere in the configuration; a head is called `h`."""
    if not path:
        return True
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        return path[0] == "h" and has_key(typing.get_args(kind)[0], path[1:])
    return dataclasses.is_dataclass(kind) and (
        path[0] in (hints := typing.get_type_hints(kind)) and has_key(hints[path[0]], path[1:])
    )


@pytest.mark.parametrize("page", PAGES)
def test_configuration_keys_exist(page: str) -> None:
    spans = re.findall(r"`([^`]+)`", (ROOT / page).read_text())
    keys = [match[0] for span in spans if (match := re.match(r"(\w+)(\.\w+)+", span)) and match[1] in SECTIONS]
    assert [key for key in keys if not has_key(RunConfig, key.split("."))] == []
    assert keys or page != "docs/porting.md"


@pytest.mark.parametrize("page", PAGES)
def test_modules_functions_and_links_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for module in re.findall(r"python -m ((?:tools|eval|launch|codec|benchmarks)[.\w]*)", text):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"`codec\.(\w+)", text):
        assert hasattr(codec, name), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for file in re.findall(r"`((?:tests|configs|megatron_ovenc|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / file).exists(), file


def test_the_porting_page_has_every_option_of_the_reference() -> None:
    """Options that its training command parses, as of June 2026."""
    options = """
    debug output workers local_rank dataloader-type dali_is_training input_gray image_size image_size_video
    num_frames random_diff list_datasets list_batch_sizes list_sample_rates list_margins list_filters list_lr_pfc_weights
    list_loss_weights list_init_partial_fc_paths model_name model_weight embedding_size gradient_checkpoint mask
    finetune_backbone opt lr weight_decay weight_decay_pfc warmup_ratio backward_passes_per_step repeat_pfc save_pfc
    init_backbone frequent ckpt_interval num_sampled_data visualize vis_samples vis_interval total_indices must_num
    target_num num_tokens_per_frame enable_multi_frame multi_frame_list base_num_frames residual_ratio
    frame_sampling_ratio"""
    text = (ROOT / "docs/porting.md").read_text()
    assert [option for option in re.findall(r"\S+", options) if f"`--{option}`" not in text] == []


def test_the_index_has_every_page_and_the_recipes_every_configuration() -> None:
    for index, folder, pattern in (("README.md", "docs", "*.md"), ("recipes.md", "configs", "*.yaml")):
        text = (ROOT / "docs" / index).read_text()
        names = {path.name for path in (ROOT / folder).glob(pattern)} - {index}
        assert [name for name in sorted(names) if f"{name})" not in text] == []
