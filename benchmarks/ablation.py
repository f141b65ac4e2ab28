"""One change at a time to sfumato's defaults, each trained for the same seconds from the same seed.

For each change: the Frechet distance at a few sampler settings, and the error on plain noisy images ``x + sigma e``
(what defences and likelihoods ask the same network for), as root mean square in [0, 1] units by noise level; to be
compared with ``stages=1``, which is trained for plain states alone. The default's models are sampled with the steps
shared over the stages in several ways as well. One line of ``results/ablation.jsonl`` for each; what is there is skipped.

    .venv/bin/python -m benchmarks.ablation --minutes 5 --seeds 0 --threads 2 [--only stages=1 weights=edm]
    .venv/bin/python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, records
from benchmarks.arms import ladder
from benchmarks.features import Features, test_data, training_data
from benchmarks.generative import measure
from benchmarks.trial import runs_folder, train_apart
from sfumato.config import preset

NAME = "ablation"
DEFAULT = "default"
# Each is one change; several settings are joined by blanks where only together they make sense. The default ladder at
# 32x32 has two stages, 16 and 32 px, and jumps 40,2: the coarse stage ends at 1, the fine one at 0.
CHANGES = (
    DEFAULT,
    "stages=1", "stages=3 jumps=40,4,1",
    "jumps=40,1", "jumps=40,4", "jumps=40,6 mix=0.25,1", "jumps=80,2", "jumps=20,2",
    "plain=1,0.5", "plain=1,1", "plain=1,1.75",
    "plain_share=0", "plain_share=0.25",
    "weights=edm", "weights=min-snr", "weights=uniform", "weights=elbo",
    "levels=logit-normal",
    "batch=16", "batch=64",
    "learning_rate=2e-3", "learning_rate=8e-3", "optimizer=adamw learning_rate=1e-3",
    "mix=0.5,1", "mix=1,0.5 jumps=40,1", "mix=2,1",
    "ema=0.02", "ema=0.1", "decay=0.2", "decay=0.8",
    "sharing=stage",
    "patch=1 channels=32,64,128 blocks=1,2,2", "attention=0", "channels=48,144", "channels=96,112", "blocks=1,3", "blocks=3,1",
    "channels=64,128,192 blocks=1,2,1",
)  # fmt: skip
SAMPLING = ("dpmpp-2m:10", "heun:7")
# Ways to share the steps over the two stages, on the default's models.
SHARES = (
    "dpmpp-2m:3+5", "dpmpp-2m:3+7", "dpmpp-2m:4+6", "dpmpp-2m:6+4", "dpmpp-2m:5+7", "dpmpp-2m:4+8", "dpmpp-2m:6+10",
    "heun:1+4", "heun:2+4", "heun:3+3", "heun:3+5", "heun:5+3", "heun:3+7", "heun:4+6",
)  # fmt: skip
SIGMAS = (0.05, 0.12, 0.25, 0.5, 1.0)  # of plain noise, in [0, 1] units
IMAGES = 500  # of the test set, for the plain error


def plain_errors(out: Path) -> dict[str, float]:
    """Root mean square error of the denoised test images by noise level, with their labels given; noise fixed."""
    generator, data = ladder.load(out), test_data()
    assert data.labels is not None
    x, labels = data.pixels(slice(0, IMAGES)), data.labels[:IMAGES].tolist()
    errors = {}
    for sigma in SIGMAS:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        cleaned = [generator.denoise(a + sigma * e, sigma, labels[i * 100 : (i + 1) * 100])
                   for i, (a, e) in enumerate(zip(x.split(100), noise.split(100), strict=True))]  # fmt: skip
        errors[f"{sigma:g}"] = round(float((torch.cat(cleaned) - x).square().mean().sqrt()), 5)
    return errors


def settings_of(change: str) -> dict[str, str]:
    """``"a=1 b=2"`` as a dictionary; the default has none."""
    return {} if change == DEFAULT else dict(pair.split("=", 1) for pair in change.split())


def changes() -> list[str]:
    """``CHANGES`` without those that change nothing, because they are the default at present."""
    default = preset(training_data().size)
    return [c for c in CHANGES if c == DEFAULT or default.with_settings(settings_of(c)) != default]


def folder_of(change: str, minutes: float, seed: int, threads: int) -> str:
    """The name of a run's folder."""
    return f"ablation-{re.sub('[^a-z0-9.]+', '_', change)}-{minutes:g}min-seed{seed}-threads{threads}"


def sampling_of(change: str, out: Path) -> tuple[str, ...]:
    """The settings to measure: the default is measured with more ways of sharing the steps."""
    shares = SHARES if change == DEFAULT and ladder.load(out).ladder.stages == 2 else ()
    return (*SAMPLING, *shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2, help="0: torch's choice")
    parser.add_argument("--n", type=int, default=2000, help="images for each distance")
    parser.add_argument(
        "--only", nargs="+", metavar="CHANGE", help="these changes, known ones or new (quote those with blanks)"
    )
    parser.add_argument("--runs", help="folder for trained models (default: in $SFUMATO_CACHE or the temporary folder)")
    parser.add_argument("--again", action="store_true", help="train and measure what is there already once more")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    features = Features()
    known = [] if chosen.again else records.read(NAME)
    for change in chosen.only or changes():
        for seed in chosen.seeds:
            run: dict[str, Any] = {"change": change, "minutes": chosen.minutes, "seed": seed, "threads": chosen.threads}
            if records.has(known, **run, n=chosen.n, **features.identity):
                continue
            out = runs_folder(chosen.runs) / folder_of(change, chosen.minutes, seed, chosen.threads)
            stats = train_apart(
                "ladder",
                60 * chosen.minutes,
                seed,
                chosen.threads,
                out,
                again=chosen.again,
                settings=settings_of(change),
            )
            arm_results = [measure(ladder, out, s, chosen.n, seed, features) for s in sampling_of(change, out)]
            kept = {
                key: stats[key] for key in ("steps", "images", "parameters", "seconds", "memory_mib", "cpu_seconds")
            }
            record = {**run, "n": chosen.n, "results": arm_results, "plain_errors": plain_errors(out), **kept,
                      **features.identity, "machine": machine.describe()}  # fmt: skip
            records.append(NAME, record)
            print(
                f"{change}, seed {seed}: " + ", ".join(f"{r['setting']} {r['distance']:.2f}" for r in arm_results),
                flush=True,
            )


if __name__ == "__main__":
    main()
