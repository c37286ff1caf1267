"""The whole way on a laptop: clips are rendered and encoded, an encoder is trained on them, stopped, resumed, probed, exported.

    make demo                                    # or: python -m tools.demo --output output/demo

Every stage is the command that a user would type; this file only strings them together and reads what they wrote.

    output/demo/
    |-- data/ shards/ banks/    clips and pictures, their shards with sidecars, concept banks
    |-- run/                    the training run: config.yaml, metrics.jsonl, checkpoints/, tensorboard/
    |-- packed/ untrained/      Hugging Face directories of the trained encoder and of its initial weights
    |-- summary.json            the numbers of the table
    `-- report.html             loss curves, selected patches, the table
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file, save_file

from megatron_ovenc.config import RunConfig, SourceConfig, dump, load
from megatron_ovenc.train.exit_codes import EXIT_STOPPED
from megatron_ovenc.train.weights import read_weights
from tools.compare import forward, largest_difference, random_inputs
from tools.demo_data import FRAMES
from tools.report import read_metrics
from tools.solo import build_encoder, solo_topology
from tools.stages import Stages, console

CONFIG = Path("configs/demo_cpu.yaml")
GAP_STEPS = 3
"""Steps by which the loss of a resumed run is compared with that of the run that went on."""


def deepspeed(config: Path, *overrides: str) -> list[str]:
    """Command that trains on two ranks of this machine through the deepspeed launcher."""
    command = [
        "deepspeed",
        "--num_gpus",
        "2",
        "--no_local_rank",
        "--module",
        "launch.pretrain",
        "--config",
        str(config),
    ]
    return command + [word for override in overrides for word in ("--set", override)]


def make_data(stages: Stages, output: Path, clips: int, images: int, frames: int) -> None:
    """Clips, pictures, shards with sidecars, banks with their labels."""
    stages.title("render clips of moving objects, encode them as H.264 and HEVC, and cut pictures")
    amount = ("--clips", str(clips), "--images", str(images), "--frames", str(frames))
    stages.run(sys.executable, "-m", "tools.demo_data", "--output", output / "data", *amount, "--workers", "2")
    stages.title("pack shards, with codec sidecars for the clips")
    for kind, name, size in (("video", "clips", ("--size", "112")), ("image", "images", ())):
        source = output / "data" / name / "train"
        command = ("--input", source, "--output", output / "shards" / name, "--kind", kind, "--workers", "2", *size)
        stages.run(sys.executable, "-m", "tools.make_shards", *command)
    stages.title("build concept banks: describe every sample, cluster, label with the nearest centres")
    for head in load(CONFIG).heads:
        name = "clips" if head.source.kind == "video" else "images"
        command = ("--shards", output / "shards" / name / "*.tar", "--output", output / "banks" / name)
        sizes = ("--concepts", str(head.bank.num_classes), "--labels", str(head.bank.positives), "--workers", "2")
        stages.run(
            sys.executable,
            "-m",
            "tools.build_concept_bank",
            *command,
            *sizes,
            "--kind",
            head.source.kind,
            "--overwrite-labels",
        )


def train(stages: Stages, config: RunConfig, resolved: Path) -> float:
    """Train, stop by SIGTERM after two thirds, resume with the other parallelism. Returns the largest relative gap of losses."""
    run = Path(config.run_dir)
    stages.title("train on 2 data-parallel ranks; SIGTERM after two thirds")
    with stages.start(*deepspeed(resolved)) as process:
        terminate_one_rank(process, run, 2 * config.train.steps // 3)
        stages.finish(process, ok=(EXIT_STOPPED,))
    stopped = json.loads((run / "exit_status.json").read_text())["step"]
    stages.title(f"stopped at step {stopped}: continue a copy as it was, to compare with")
    twin = run.with_name("twin")
    shutil.copytree(run, twin)
    until = stopped + GAP_STEPS
    stages.run(*deepspeed(resolved, f"run_dir={twin}", f"train.stop_after={until}"), ok=(EXIT_STOPPED,))
    stages.title("resume on 1 data rank x 2 tensor ranks, to the end")
    stages.run(*deepspeed(resolved, "parallel.tensor=2"))
    ours, theirs = ({r["step"]: r for r in read_metrics(d)} for d in (run, twin))
    heads = [f"loss/{head.name}" for head in config.heads]
    shutil.rmtree(twin)
    gaps = [abs(ours[s][h] - theirs[s][h]) / abs(theirs[s][h]) for s in range(stopped + 1, until + 1) for h in heads]
    return max(gaps)


def terminate_one_rank(launcher: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Send SIGTERM to a single rank once the run has reached a step; all ranks must then stop together."""
    metrics = run / "metrics.jsonl"
    while launcher.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            children = psutil.Process(launcher.pid).children(recursive=True)
            lines = {child: child.cmdline() for child in children}
            ranks = [
                c for c in children if "launch.pretrain" in lines[c] and "deepspeed.launcher.launch" not in lines[c]
            ]
            console.print(f"SIGTERM to process {ranks[-1].pid}, one of {len(ranks)} ranks")
            ranks[-1].terminate()
            return
        time.sleep(0.2)


def video_source(config: RunConfig) -> SourceConfig:
    """What the video head sees."""
    return next(head.source for head in config.heads if head.source.kind == "video")


def probe(stages: Stages, output: Path, config: RunConfig) -> dict[str, float]:
    """k-NN and attentive probe on held-out clips, of the trained encoder and of its initial weights.

    k-NN counts as the probe: it trains nothing, so it can only find what is in the encoder. The attentive probe is a small
    transformer layer of its own; it is reported beside it.
    """
    stages.title("pack the trained encoder and its initial weights for Hugging Face")
    where = {"packed": output / "run", "untrained": output / "run" / "config.yaml"}
    pack = (sys.executable, "-m", "tools.pack_model", "--image-size", "112")
    stages.run_together(
        *((*pack, "--checkpoint", weights, "--output", output / name) for name, weights in where.items())
    )
    source = video_source(config)
    clips = ("--train", output / "data/clips/probe", "--val", output / "data/clips/val")
    size = ("--size", str(source.size), "--tokens", str(source.tokens), "--i-frames", source.i_frames)
    results: dict[str, float] = {}
    # The probe first: it keeps tokens too, so that k-NN finds its features in the cache.
    for command, key in (("attentive_probe", "attentive_probe"), ("knn", "probe")):
        stages.title(f"{command}: a few labelled clips, then held-out ones, by either encoder")
        options = ("--epochs", "30", "--lr", "1e-3") if command == "attentive_probe" else ("--k", "5")
        common = (sys.executable, "-m", f"eval.{command}", *clips, "--view", "codec", *size, *options, "--workers", "1")
        answers = {label: output / f"{key}_{label}.json" for label in ("trained", "untrained")}
        stages.run_together(
            *(
                (*common, "--model", output / name, "--cache", output / "features" / name, "--output", answers[label])
                for name, label in (("packed", "trained"), ("untrained", "untrained"))
            )
        )
        results |= {f"{key}_top1_{label}": top1(answer) for label, answer in answers.items()}
    return results


def top1(answer: Path) -> float:
    """Top-1 in percent of what an evaluation wrote; of the last epoch where there are several."""
    result: dict[str, Any] = json.loads(answer.read_text())
    return float(result["selected"]["last_epoch"]["top1"] if "selected" in result else result["top1"])


def reload_as_a_stranger(output: Path) -> float:
    """Largest difference between the trainer's encoder and the exported directory in a process that knows no more."""
    model, published = read_weights(output / "run")
    inputs = random_inputs(model.patch_size)
    with solo_topology() as topology:
        ours = forward(build_encoder(model, published, str(output / "run"), topology), inputs)
    with tempfile.TemporaryDirectory() as elsewhere:
        files = [Path(elsewhere) / name for name in ("inputs.safetensors", "outputs.safetensors")]
        save_file(inputs, files[0])
        environment = os.environ | {"HF_HOME": elsewhere, "HF_HUB_OFFLINE": "1"}
        script = Path(__file__).with_name("reload_exported.py")
        command = [sys.executable, "-I", script, (output / "packed").resolve(), *files]
        subprocess.run([str(word) for word in command], env=environment, cwd=elsewhere, check=True)
        return largest_difference(ours, load_file(files[1]))


def summarise(stages: Stages, output: Path, config: RunConfig, summary: dict[str, Any]) -> None:
    """Picture, summary.json, report.html, table."""
    stages.title("report")
    clip = sorted((output / "data/clips/val").rglob("*.mp4"))[0]
    picture = output / "selected_patches.gif"
    source = video_source(config)
    side = source.size // config.model.patch_size
    selection = ("--grid", f"{side}x{side}", "--budget", str(source.tokens), "--policy", source.i_frames)
    stages.run(sys.executable, "-m", "codec", "render", clip, "-o", picture, *selection)
    summary["seconds"] = round(time.monotonic() - stages.started)
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    facts = ("--facts", output / "summary.json", "--picture", picture)
    stages.run(sys.executable, "-m", "tools.report", config.run_dir, "--output", output / "report.html", *facts)
    table = Table("", "", show_header=False)
    for key, value in summary.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Train, stop, resume, probe and export a tiny encoder on rendered clips."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="directory to make; replaced if it exists"
    )
    parser.add_argument("--clips", type=int, default=560, help="clips to render")
    parser.add_argument("--images", type=int, default=384, help="pictures to cut")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of a clip")
    parser.add_argument("--steps", type=int, help=f"steps to train, if not those of {CONFIG}")
    options = parser.parse_args(argv)
    output: Path = options.output
    marker = output / ".demo"
    if output.exists() and any(output.iterdir()) and not marker.exists():
        parser.error(f"--output {output} is not empty and no earlier demo's; name another directory")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    marker.touch()
    os.environ["OMP_NUM_THREADS"] = "1"  # two ranks and their workers share two cores
    stages = Stages(os.environ | {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"})
    make_data(stages, output, options.clips, options.images, options.frames)
    config = load(
        CONFIG,
        [
            f"run_dir={output}/run",
            f"heads.image.source.shards=['{output}/shards/images/*.tar']",
            f"heads.video.source.shards=['{output}/shards/clips/*.tar']",
            f"heads.video.source.clip_frames={options.frames}",
            *([] if options.steps is None else [f"train.steps={options.steps}"]),
        ],
    )
    resolved = output / "config.yaml"
    resolved.write_text(dump(config))
    gap = train(stages, config, resolved)
    probed = probe(stages, output, config)
    stages.title("reload the exported encoder with AutoModel, without this project")
    difference = reload_as_a_stranger(output)
    records = read_metrics(output / "run")
    keys = [f"loss/{head.name}" for head in config.heads]
    tenth = max(1, len(records) // 10)
    source = video_source(config)
    dense = source.clip_frames * (source.size // config.model.patch_size) ** 2
    summary: dict[str, Any] = {
        "loss_first": sum(records[0][key] for key in keys),
        "loss_last": sum(sum(record[key] for key in keys) for record in records[-tenth:]) / tenth,
        "resume_loss_gap": gap,
        **probed,
        "chance": 100 / len([p for p in (output / "data/clips/val").iterdir() if p.is_dir()]),
        "hf_max_abs_diff": difference,
        "tokens_per_clip": source.tokens,
        "dense_tokens_per_clip": dense,
    }
    summarise(stages, output, config, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
