"""The README.md of a packed encoder: what it is, how it was trained, on what, how well, under which licence.

Every statement is read from a file: the packed configuration, the run's config.yaml and metrics.jsonl, and the JSON of an
evaluation. What no file says is said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ovenc.config import ConfigError, HeadConfig, RunConfig, dump, load
from megatron_ovenc.train.checkpoint import read_scalars
from megatron_ovenc.train.weights import find_checkpoint
from onevision_encoder import OneVisionEncoderModel
from tools.report import read_metrics

_USAGE = """```python
from transformers import AutoImageProcessor, AutoModel
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # from the top, transformers wants torchvision

here = "path/to/this/directory"
model = AutoModel.from_pretrained(here, trust_remote_code=True).eval()
image_processor = AutoImageProcessor.from_pretrained(here, trust_remote_code=True)
video_processor = AutoVideoProcessor.from_pretrained(here, trust_remote_code=True)

picture = model(**image_processor(image, return_tensors="pt"))
clip = model(**video_processor("clip.mp4", sampling="uniform", return_tensors="pt"))
```

`last_hidden_state` has a vector for every patch, `pooler_output` one for the whole input. Video files are read by PyAV;
`sampling="codec"`, the default, needs the `codec` package of megatron-ovenc as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The training run that weights come from."""

    config: RunConfig
    """Its resolved configuration; without heads if the weights were imported."""
    step: int
    """Optimizer steps taken."""
    metrics: Mapping[str, Any] | None
    """The last line of metrics.jsonl up to this step."""


def find_origin(checkpoint: Path) -> Origin | None:
    """The run of a checkpoint or run directory; None for weights that say nothing of their training.

    Raises:
        ValueError: the run's metrics.jsonl is damaged.
    """
    found = find_checkpoint(checkpoint) if checkpoint.is_dir() else None
    if found is None:
        return None
    step, run = int(read_scalars(found)["step"]), found.parent.parent
    records = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    reached = [record for record in records if record["step"] <= step]
    return Origin(config=load(found / "config.yaml"), step=step, metrics=reached[-1] if reached else None)


def model_card(
    model: OneVisionEncoderModel,
    name: str,
    origin: Origin | None,
    probe: Path | None = None,
    licence: str | None = None,
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        model: the packed model.
        name: heading.
        origin: where its weights come from, if they say.
        probe: JSON that `eval.attentive_probe` or `eval.knn` wrote about this model.
        licence: of the weights, an identifier such as `apache-2.0`.

    Raises:
        ConfigError: `probe` is no such file.
    """
    front = ["---", "library_name: transformers", "pipeline_tag: image-feature-extraction"]
    front += [*([f"license: {licence}"] if licence else []), "tags: [vision, video, feature-extraction]", "---", ""]
    sections = {
        "Use": [_USAGE],
        "Model": _table(("", ""), _sizes(model)),
        "Training recipe": _recipe(origin),
        "Training data": _data(origin),
        "Metrics": [*_metrics(origin), "", *_probe(probe)],
        "Licence": _licence(licence),
    }
    body = [line for title, lines in sections.items() for line in (f"## {title}", "", *lines, "")]
    return "\n".join([*front, f"# {name}", "", *body])


def _sizes(model: OneVisionEncoderModel) -> list[tuple[str, object]]:
    config = model.config
    return [
        ("parameters", f"{model.num_parameters():,}"),
        ("type of weights", str(model.dtype).removeprefix("torch.")),
        ("width, MLP width", f"{config.hidden_size}, {config.intermediate_size}"),
        ("blocks, heads", f"{config.num_hidden_layers}, {config.num_attention_heads}"),
        ("patch", f"{config.patch_size} x {config.patch_size} pixels"),
        ("rotary positions", f"`{config.rope_type}`, theta {config.rope_theta:g}, over (t, row, col)"),
    ]


def _recipe(origin: Origin | None) -> list[str]:
    if origin is None or not origin.config.heads:
        return ["Unknown: the weights were packed from files that do not record how they were trained."]
    return [
        f"{origin.step:,} of {origin.config.train.steps:,} optimizer steps of megatron-ovenc with this configuration:",
        *("", "```yaml", dump(origin.config).rstrip(), "```"),
    ]


def _data(origin: Origin | None) -> list[str]:
    if origin is None or not origin.config.heads:
        return ["Unknown."]
    rows = [(*_source(head), f"{origin.step * head.global_batch_size:,}") for head in origin.config.heads]
    return _table(("head", "kind", "shards", "size", "concepts", "samples seen"), rows)


def _source(head: HeadConfig) -> tuple[object, ...]:
    shards = ", ".join(f"`{pattern}`" for pattern in head.source.shards)
    return head.name, head.source.kind, shards, f"{head.source.size} px", f"{head.bank.num_classes:,}"


def _metrics(origin: Origin | None) -> list[str]:
    if origin is None or origin.metrics is None:
        return ["No record of the training's losses was at hand when this model was packed."]
    losses = [
        (key.removeprefix("loss/"), f"{value:.4f}") for key, value in origin.metrics.items() if key.startswith("loss/")
    ]
    return [f"Training losses at step {origin.metrics['step']:,}:", "", *_table(("head", "loss"), losses)]


def _probe(path: Path | None) -> list[str]:
    if path is None:
        return ["No evaluation was given when this model was packed."]
    try:
        report = json.loads(path.read_text())
        scores = _scores(report)
        facts = [
            f"chance {report['chance']:.2f} %",
            f"{report['val_clips']} held-out and {report['train_clips']} training clips",
        ]
        facts += [f"view `{report['view']}`", f"at most {report['tokens_per_clip']} patches a clip"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--probe {path} is no report of eval.attentive_probe or eval.knn: {type(error).__name__} {error}"
        ) from error
    return [f"Evaluation by `{path.name}`: {', '.join(facts)}.", "", *_table(("", "top-1, %", "top-5, %"), scores)]


def _scores(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    if "selected" not in report:
        return [(f"{report['k']} nearest neighbours", f"{report['top1']:.2f}", f"{report['top5']:.2f}")]
    epochs = (("last", report["selected"]["last_epoch"]), ("best", report["selected"]["best_epoch"]))
    return [
        (f"attentive probe, {name} epoch ({one['epoch']})", f"{one['top1']:.2f}", f"{one['top5']:.2f}")
        for name, one in epochs
    ]


def _licence(licence: str | None) -> list[str]:
    weights = (
        f"Weights: {licence}."
        if licence
        else "Weights: none was stated when this model was packed; ask who gave them to you."
    )
    return [f"{weights} Code files: apache-2.0."]


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
