"""Where the time goes, against what the machine's own matrix multiplication gives in the same run.

For sfumato's default at 32x32: milliseconds, arithmetic and rate of the forward and backward pass of each stage and of a
whole training step; the share of time by kind of operator; milliseconds per image in sampling by stage; and the peak
resident memory of a training process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.base import record, trial
from benchmarks.base.table import Claim, rows
from benchmarks.features import images
from sfumato.config import preset
from sfumato.engine.trainer import Trainer
from sfumato.generator import Generator
from sfumato.training.denoising import DenoisingObjective
from sfumato.training.loss import stage_loss

NAME = "speed"
COMMANDS = ("speed",)
NOTES = "Aimed at: a whole training step at 60% of the machine's rate or more, and at most 2 GiB of memory."
REPEATS = 7
SAMPLED = 250  # images at once
SIZES, ENOUGH = (1024, 2048, 4096), 0.6  # of the matrix products; seconds of repeats for each
# The first kind with a piece of its name in the operator's takes the time.
KINDS = {
    "convolution": "convolution conv2d mkldnn_conv",
    "matrix product": "mm linear matmul",
    "normalisation": "group_norm layer_norm rms_norm",
    "optimiser, average, clipping": "optimizer adam foreach lerp linalg norm",
    "copies and casts": "copy clone contiguous cat stack shuffle transpose index empty fill zero",
    "random numbers": "rand normal_ uniform_",
    "pooling and resizing": "pool upsample",
    "attention weights": "softmax scaled_dot_product",
    "element by element": "silu add mul div sub sigmoid sum mean pow sqrt where clamp",
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory-seconds", type=float, default=30.0, help="of training, for the memory's peak")
    parser.add_argument("--data", default=trial.FASHION, help="padded to 32x32")


def run(chosen: argparse.Namespace) -> None:
    kinds = {"bf16": torch.bfloat16, "float32": torch.float32}
    rates = {name: round(matmul_rate(kind), 1) for name, kind in kinds.items()}
    data = images(chosen.data)
    objective = DenoisingObjective(preset(data.size), data, torch.device("cpu"), 0)
    trainer = Trainer(objective, 0)
    made = {
        "rates": rates,
        "roof": "bf16" if objective.precision is not None else "float32",
        "batch": objective.config.batch,
        "training": training_times(trainer, objective),
        "shares": shares(trainer),
        "sampling": sampling_times(objective.generator()),
    }
    with tempfile.TemporaryDirectory() as folder:
        stats = trial.train_apart("ladder", chosen.memory_seconds, 0, Path(folder) / "run", data=chosen.data)
    record.append(NAME, {**made, "memory_mib": stats["memory_mib"]})
    print("\n\n".join(page()))


def matmul_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest square matrix product over ``SIZES`` (a multiply and an add are two operations)."""
    best = 0.0
    for size in SIZES:
        a, b = torch.randn(2, size, size).to(dtype)
        torch.mm(a, b)  # the first call chooses and prepares a kernel
        spent = 0.0
        while spent < ENOUGH:
            once = seconds_of(lambda a=a, b=b: torch.mm(a, b))
            best, spent = max(best, 2 * size**3 / once / 1e9), spent + once
    return best


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median_seconds(action: Callable[[], object]) -> float:
    """Seconds of the median repeat, after one that warms up."""
    action()
    return statistics.median(seconds_of(action) for _ in range(REPEATS))


def training_times(trainer: Trainer, objective: DenoisingObjective) -> dict[str, dict[str, float]]:
    """For each stage's forward and backward pass, and for the whole step: ms, GFLOP and GFLOP/s."""
    generator = torch.Generator().manual_seed(0)

    def stage_pass(stage: int) -> None:
        x, c = objective.batch(objective.counts[stage], generator)
        kind = objective.precision
        with torch.autocast(objective.device.type, kind or torch.bfloat16, enabled=kind is not None):
            loss = stage_loss(objective.denoiser, objective.config, x, c, stage, generator)
        loss.backward()
        objective.denoiser.zero_grad(set_to_none=True)

    stages = range(objective.denoiser.ladder.stages)
    actions: dict[str, Callable[[], object]] = {
        f"stage {stage}": lambda stage=stage: stage_pass(stage) for stage in stages
    }
    actions["whole step"] = lambda: trainer.advance(0.5)
    found = {}
    for name, action in actions.items():
        seconds = median_seconds(action)
        with FlopCounterMode(display=False) as counter:
            action()
        work = counter.get_total_flops() / 1e9
        found[name] = {
            "milliseconds": round(1e3 * seconds, 2),
            "gflop": round(work, 2),
            "gflops": round(work / seconds, 1),
        }
    return found


def kind_of(operator: str) -> str:
    """The kind of an operator by its name."""
    name = operator.lower()
    return next((kind for kind, pieces in KINDS.items() if any(piece in name for piece in pieces.split())), "other")


def shares(trainer: Trainer, steps: int = 3) -> dict[str, float]:
    """The share of a training step's time by kind of operator, largest first."""
    from torch.profiler import ProfilerActivity, profile

    trainer.advance(0.5)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            trainer.advance(0.5)
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: round(spent / total, 4) for kind, spent in sorted(times.items(), key=lambda item: -item[1])}


def sampling_times(generator: Generator) -> dict[str, dict[str, float]]:
    """Milliseconds per image and evaluations by stage, and in all, at the default sampler and steps; best of 3."""
    stages = generator.ladder.stages
    best, calls = [float("inf")] * stages, [0] * stages
    for _ in range(3):
        times, rungs = [0.0] * stages, [0] * stages
        before = time.perf_counter()
        for rung in generator.trace(SAMPLED):
            now = time.perf_counter()
            times[rung.stage] += now - before
            rungs[rung.stage] += 1
            before = now
        best, calls = [min(pair) for pair in zip(best, times, strict=True)], rungs
    rows = {f"stage {stage}": (seconds, calls[stage]) for stage, seconds in enumerate(best)} | {
        "all": (sum(best), sum(calls))
    }
    return {name: {"milliseconds": round(1e3 * s / SAMPLED, 3), "rungs": rungs} for name, (s, rungs) in rows.items()}


def page() -> list[str]:
    last = record.read(NAME)[-1]
    machine, rate = last["machine"], last["rates"]
    training = [
        {"name": name, "share": row["gflops"] / rate[last["roof"]], **row} for name, row in last["training"].items()
    ]
    shares = [{"name": name, "share": share} for name, share in last["shares"].items()]
    about = """{cpu}, {threads} thread(s), torch {torch}. Matrix products: {bf16:.0f} GFLOP/s in bf16, {float32:.0f} in float32; training \
runs in {roof}. Batch {batch} images of each stage. Peak resident memory of a training process: {memory_mib:.0f} MiB."""
    row = "{name} | {milliseconds:.1f} | {gflop:.1f} | {gflops:.0f} | {share:.0%}"
    sampling = [{"name": name, **row} for name, row in last["sampling"].items()]
    return [
        about.format(**machine, **rate, **{key: last[key] for key in ("roof", "batch", "memory_mib")}),
        rows("training | ms | GFLOP | GFLOP/s | of the machine's rate", row, training),
        rows("time of a training step by operator | share", "{name} | {share:.1%}", shares),
        rows("sampling, default steps | rungs | ms per image", "{name} | {rungs} | {milliseconds:.3f}", sampling),
    ]


def claims() -> list[Claim]:
    last = record.read(NAME)[-1]
    step, roof = last["training"]["whole step"]["gflops"], last["rates"][last["roof"]]
    number = f"{step / roof:.0%} of its matrix product rate; {last['memory_mib']:.0f} MiB"
    return [
        Claim(
            "a training step uses the processor",
            number,
            f"median of {REPEATS}, one run",
            "the machine's own `mm`",
            NAME,
        )
    ]
