"""Where the time goes, against what the machine's own matrix multiplication gives in the same run.

Measures for sfumato's default at 32x32: milliseconds, arithmetic and rate of the forward and backward pass of each
stage and of a whole training step; the share of time by kind of operator; milliseconds per image in sampling by stage;
and the peak resident memory of a training process. Prints a table and adds a line to ``results/speed.jsonl``.

    .venv/bin/python -m benchmarks.speed --threads 2
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

from benchmarks import machine, records
from benchmarks.features import training_data
from benchmarks.trial import train_apart
from sfumato.config import preset
from sfumato.generator import Generator
from sfumato.training.objective import stage_loss
from sfumato.training.run import Run

NAME = "speed"
REPEATS = 7
SAMPLED = 250  # images at once
# The first kind with a piece of its name in the operator's takes the time.
KINDS = {
    "convolution": ("convolution", "conv2d", "mkldnn_conv"),
    "matrix product": ("mm", "linear", "matmul"),
    "normalisation": ("group_norm", "layer_norm", "rms_norm"),
    "optimiser, average, clipping": ("optimizer", "adam", "foreach", "lerp", "linalg", "norm"),
    "copies and casts": (
        "copy",
        "clone",
        "contiguous",
        "cat",
        "stack",
        "shuffle",
        "transpose",
        "index",
        "empty",
        "fill",
        "zero",
    ),
    "random numbers": ("rand", "normal_", "uniform_"),
    "pooling and resizing": ("pool", "upsample"),
    "attention weights": ("softmax", "scaled_dot_product"),
    "element by element": (
        "silu",
        "add",
        "mul",
        "div",
        "sub",
        "sigmoid",
        "sum",
        "mean",
        "pow",
        "sqrt",
        "where",
        "clamp",
    ),
}


def median_seconds(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the median repeat, after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def flops(action: Callable[[], object]) -> float:
    """Arithmetic of matrix products and convolutions, forward and backward, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops() / 1e9


def training_times(run: Run) -> dict[str, dict[str, float]]:
    """For each stage's forward and backward pass, and for the whole step: ms, GFLOP and GFLOP/s."""
    generator = torch.Generator().manual_seed(0)

    def stage_pass(stage: int) -> None:
        x, c = run._batch(run.counts[stage], generator)
        with torch.autocast(run.device.type, run.kind or torch.bfloat16, enabled=run.kind is not None):
            loss = stage_loss(run.denoiser, run.config, x, c, stage, generator)
        loss.backward()
        run.denoiser.zero_grad(set_to_none=True)

    actions: dict[str, Callable[[], object]] = {
        f"stage {stage}": lambda stage=stage: stage_pass(stage) for stage in range(run.denoiser.ladder.stages)
    }
    actions["whole step"] = lambda: run.advance(0.5)
    found = {}
    for name, action in actions.items():
        seconds, work = median_seconds(action), flops(action)
        found[name] = {
            "milliseconds": round(1e3 * seconds, 2),
            "gflop": round(work, 2),
            "gflops": round(work / seconds, 1),
        }
    return found


def kind_of(operator: str) -> str:
    """The kind of an operator by its name."""
    return next((kind for kind, pieces in KINDS.items() if any(piece in operator.lower() for piece in pieces)), "other")


def shares(run: Run, steps: int = 3) -> dict[str, float]:
    """The share of a training step's time by kind of operator, largest first."""
    from torch.profiler import ProfilerActivity, profile

    run.advance(0.5)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            run.advance(0.5)
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: round(spent / total, 4) for kind, spent in sorted(times.items(), key=lambda item: -item[1])}


def sampling_times(generator: Generator) -> dict[str, dict[str, float]]:
    """Milliseconds per image and evaluations by stage, and in all, at the default sampler and steps; best of 3."""
    stages = generator.ladder.stages
    best = [float("inf")] * stages
    calls = [0] * stages
    for _ in range(3):
        times, rungs = [0.0] * stages, [0] * stages
        before = time.perf_counter()
        for rung in generator.trace(SAMPLED):
            now = time.perf_counter()
            times[rung.stage] += now - before
            rungs[rung.stage] += 1
            before = now
        best, calls = [min(pair) for pair in zip(best, times, strict=True)], rungs
    found = {
        f"stage {stage}": {"milliseconds": round(1e3 * seconds / SAMPLED, 3), "rungs": calls[stage]}
        for stage, seconds in enumerate(best)
    }
    found["all"] = {"milliseconds": round(1e3 * sum(best) / SAMPLED, 3), "rungs": sum(calls)}
    return found


def table(record: records.Record) -> str:
    """The record as markdown."""
    rate, roof = record["rates"], record["roof"]
    lines = [
        f"Machine: {record['machine']['cpu']}, {record['machine']['threads']} threads, torch {record['machine']['torch']}. "
        f"Matrix products: {rate['bf16']:.0f} GFLOP/s in bf16, {rate['float32']:.0f} in float32; training runs in {roof}. "
        f"Batch {record['batch']} images of each stage. Peak resident memory of a training process: {record['memory_mib']:.0f} MiB.",
        "",
        "| training | ms | GFLOP | GFLOP/s | of the machine's rate |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["training"].items():
        lines.append(
            f"| {name} | {row['milliseconds']:.1f} | {row['gflop']:.1f} | {row['gflops']:.0f} | {row['gflops'] / rate[roof]:.0%} |"
        )
    lines += ["", "| time of a training step by operator | share |", "|---|---|"]
    lines += [f"| {kind} | {share:.1%} |" for kind, share in record["shares"].items()]
    lines += ["", "| sampling, default steps | rungs | ms per image |", "|---|---|---|"]
    lines += [f"| {name} | {row['rungs']} | {row['milliseconds']:.3f} |" for name, row in record["sampling"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="0: torch's choice")
    parser.add_argument("--memory-seconds", type=float, default=30.0, help="of training, for the memory's peak")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    rates = {
        name: round(machine.matmul_rate(kind), 1)
        for name, kind in (("bf16", torch.bfloat16), ("float32", torch.float32))
    }
    data = training_data()
    run = Run(preset(data.size), data, torch.device("cpu"), 0)
    record = {
        "machine": machine.describe(),
        "rates": rates,
        "roof": "bf16" if run.kind is not None else "float32",
        "batch": run.config.batch,
        "training": training_times(run),
        "shares": shares(run),
        "sampling": sampling_times(run.generator()),
    }
    with tempfile.TemporaryDirectory() as folder:
        stats = train_apart("ladder", chosen.memory_seconds, 0, chosen.threads, Path(folder) / "run")
    record["memory_mib"] = stats["memory_mib"]
    records.append(NAME, record)
    print(table(record))


if __name__ == "__main__":
    main()
