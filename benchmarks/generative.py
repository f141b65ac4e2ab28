"""Quality against training seconds and against sampling milliseconds: sfumato, its single-stage form, and diffusers.

For each arm, training budget and seed: trains (one process at a time, nothing else should run), then for each sampler
setting draws images and measures their Frechet distance to the training set and how often the classifier sees the class
that was asked for, with milliseconds, network evaluations and GFLOP per image. Every result is one line of
``results/generative.jsonl``; what is there already is skipped, so the same command goes on where it was stopped.

    .venv/bin/python -m benchmarks.generative --arms ladder single diffusers --minutes 5 --seeds 0 1 2 --threads 2
    .venv/bin/python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import arms, machine, records
from benchmarks.features import Features, floor
from benchmarks.trial import runs_folder, train_apart

NAME = "generative"
BATCH = 250  # images drawn at once: what the times are taken at


def draw(arm: Any, out: Path, n: int, setting: str, seed: int) -> tuple[Tensor, float]:
    """n images in [0, 1] in batches of ``BATCH``, and the milliseconds per image of the fastest whole batch."""
    arm.sample(out, min(n, BATCH), setting, seed)  # loads the model and warms up
    pictures, fastest = [], float("inf")
    for batch in range(max(2, -(-n // BATCH))):
        began = time.perf_counter()
        pictures.append(arm.sample(out, BATCH, setting, 1_000_003 * (seed + 1) + batch))
        fastest = min(fastest, time.perf_counter() - began)
    return torch.cat(pictures)[:n], 1e3 * fastest / BATCH


def gflop(arm: Any, out: Path, setting: str) -> float:
    """Arithmetic of the matrix products and convolutions for an image (a multiply and an add are two operations)."""
    with FlopCounterMode(display=False) as counter:
        arm.sample(out, 10, setting, 0)
    return counter.get_total_flops() / 10 / 1e9


def measure(arm: Any, out: Path, setting: str, n: int, seed: int, features: Features) -> dict[str, Any]:
    """Distance, accuracy, time and arithmetic of one trained model at one sampler setting."""
    pictures, milliseconds = draw(arm, out, n, setting, seed)
    return {
        "setting": setting,
        "n": n,
        **features.measure(pictures),
        "milliseconds": round(milliseconds, 3),
        "evaluations": arm.evaluations(out, setting),
        "gflop": round(gflop(arm, out, setting), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=arms.ARMS, default=["ladder", "single", "diffusers"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5.0], help="training budgets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2, help="0: torch's choice")
    parser.add_argument("--n", type=int, default=2000, help="images for each distance")
    parser.add_argument("--runs", help="folder for trained models (default: in $SFUMATO_CACHE or the temporary folder)")
    parser.add_argument("--again", action="store_true", help="train and measure what is there already once more")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    features = Features()
    lowest = round(floor(features, chosen.n)["distance"], 4)
    known = [] if chosen.again else records.read(NAME)
    for minutes in chosen.minutes:
        for seed in chosen.seeds:
            for name in chosen.arms:
                run = {"arm": name, "minutes": minutes, "seed": seed, "threads": chosen.threads}
                arm = arms.find(name)
                missing = [
                    s for s in arm.SAMPLING if not records.has(known, **run, n=chosen.n, setting=s, **features.identity)
                ]
                if not missing:
                    continue
                out = runs_folder(chosen.runs) / f"{name}-{minutes:g}min-seed{seed}-threads{chosen.threads}"
                stats = train_apart(name, 60 * minutes, seed, chosen.threads, out, again=chosen.again)
                for setting in missing:
                    result = measure(arm, out, setting, chosen.n, seed, features)
                    kept = {
                        key: stats[key]
                        for key in ("steps", "images", "parameters", "seconds", "memory_mib", "cpu_seconds")
                    }
                    records.append(
                        NAME,
                        {**run, **result, **kept, **features.identity, "floor": lowest, "machine": machine.describe()},
                    )
                    print(f"{name} {minutes:g} min, seed {seed}, {setting}: distance {result['distance']:.2f}, "
                          f"accuracy {result['accuracy']:.3f}, {result['milliseconds']:.2f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
