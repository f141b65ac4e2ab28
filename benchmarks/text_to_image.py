"""Texts to images at equal training seconds: sfumato's ladder, its classic cascade, and diffusers.

All arms train on the same captioned images with the same frozen language model, in a process of their own with one
thread, for the same seconds of the processor (so that others on the machine do not matter). For each setting of steps
and guidance, images are drawn from training captions and from held-out ones and measured: Frechet distance to the
training images in the features of effnet-lite0, R-precision among 100 captions by a scorer that no arm has seen, and
milliseconds of the processor for an image, without the reading of the text. Every result is one line of
``results/text_to_image.jsonl``; what is there already is skipped. One picture an arm shows the same eight prompts.

    .venv/bin/python -m benchmarks.text_to_image --data ../shared/data/emoji_noto64 --size 32 --minutes 12
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine, records
from benchmarks.trial import STATS, runs_folder
from sfumato.conditions import Condition
from sfumato.conditions.text import LatentStore, find_encoder
from sfumato.core.pictures import grid, named_rows, save, to_bytes
from sfumato.data import ImageSet, load
from sfumato.metrics import frechet_distance, reference_features
from sfumato.metrics.retrieval import Retrieval, find_judge

NAME = "text_to_image"
ARMS = ("ladder", "cascade", "diffusers")
BATCH = 100  # images drawn at once: what the times are taken at
PROMPTS = (
    "red heart", "smiling face with sunglasses", "cat face", "green apple", "house", "sun", "blue heart", "purple cat",
)  # fmt: skip
EACH = 8  # pictures of each prompt
HELD_OUT = 3  # pictures of each held-out caption
SHOWN = {"ladder": "10:3", "cascade": "10:3", "diffusers": "15:3"}  # settings of the pictures


def find(name: str) -> Any:
    """The module of an arm: ``train``, ``sample`` and the settings to measure, ``SAMPLING``."""
    return importlib.import_module(f"benchmarks.arms.text_{name}")


# -- training -----------------------------------------------------------------------------------------------------------


def train_apart(arm: str, data: str, size: int, minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """The stats of a training in a fresh process; those of an earlier one where ``out`` holds it."""
    if out.exists() and not (out / STATS).exists():
        shutil.rmtree(out)
    if not out.exists():
        command = [sys.executable, "-m", "benchmarks.text_to_image", "--data", data, "--size", str(size), "--minutes",
                   str(minutes), "--seed", str(seed), "--arms", arm, "--train-into", str(out)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
    return json.loads((out / STATS).read_text())


def train_here(arm: str, data: ImageSet, minutes: float, seed: int, out: Path) -> None:
    """Train in this process and write the stats, last of all: a folder with stats holds a whole run."""
    machine.count_processor_seconds()
    stats = find(arm).train(data, 60 * minutes, seed, out)
    beside = out / (STATS + ".part")
    beside.write_text(json.dumps({**stats, "memory_mib": round(machine.peak_memory(), 1)}) + "\n")
    beside.replace(out / STATS)


# -- measuring ----------------------------------------------------------------------------------------------------------


def told(captions: list[str]) -> Condition:
    """What each of some captions tells."""
    latents = LatentStore(captions, find_encoder())[captions]
    return Condition(vector=latents.vector, tokens=latents.tokens, mask=latents.mask)


def draw(arm: Any, out: Path, captions: list[str], setting: str, seed: int) -> tuple[Tensor, float]:
    """An image for each caption, (N, C, H, W) in [0, 1], and the milliseconds for an image of the fastest batch."""
    c, pictures, fastest = told(captions), [], float("inf")
    arm.sample(out, c[:2], 2, setting, 0)  # loads the model and warms up
    for first in range(0, len(captions), BATCH):
        count = min(BATCH, len(captions) - first)
        began = time.process_time()
        pictures.append(arm.sample(out, c[first : first + count], count, setting, 1_000_003 * (seed + 1) + first))
        fastest = min(fastest, (time.process_time() - began) / count)
    return torch.cat(pictures), 1e3 * fastest


class Measures:
    """What all arms are measured with: the captions that are asked for, the reference features, the judge of captions."""

    def __init__(self, train: ImageSet, test: ImageSet, n: int) -> None:
        assert train.captions is not None and test.captions is not None
        captions = [texts[0] for texts in train.captions]
        self.known = [captions[i] for i in np.random.default_rng(0).permutation(len(train))[:n]]
        new = [texts[0] for texts in test.captions if texts[0] not in set(captions)]
        self.held_out = new * HELD_OUT
        self.retrieval = Retrieval(find_judge(train, torch.device("cpu")), train, test)
        self.space = self.retrieval.judge.space
        self.reference = reference_features(self.space, train)
        self.fixed = {
            "features": f"{self.space.name} {self.space.digest}",
            "known_real": round(self.retrieval.of_real(train)["r_precision"], 4),
            "held_out_real": round(self.retrieval.of_real(test)["r_precision"], 4),
        }

    def __call__(self, arm: Any, out: Path, setting: str, seed: int) -> dict[str, Any]:
        """Distance, R-precision and time of one trained model at one setting."""
        known, milliseconds = draw(arm, out, self.known, setting, seed)
        held_out, _ = draw(arm, out, self.held_out, setting, seed + 1)
        features = self.features(known)
        return {
            "distance": round(frechet_distance(features, self.reference), 4),
            "known": round(self.retrieval(features, self.known)["r_precision"], 4),
            "held_out": round(self.retrieval(self.features(held_out), self.held_out)["r_precision"], 4),
            **self.fixed,
            "milliseconds": round(milliseconds, 3),
        }

    def features(self, pictures: Tensor) -> Tensor:
        """Those of (N, C, H, W) pictures in [0, 1], rounded to 8 bits as if saved."""
        return self.space.of(ImageSet(to_bytes(pictures), None, (), "samples", "test"))


def picture(arm: Any, out: Path, setting: str, file: Path) -> None:
    """``EACH`` images of each of ``PROMPTS``, a row a prompt."""
    captions = [prompt for prompt in PROMPTS for _ in range(EACH)]
    pixels, _ = draw(arm, out, captions, setting, 0)
    save(named_rows(grid(pixels, columns=EACH), PROMPTS), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/emoji_noto64", help="a captioned set")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=12.0, help="training budget, of the processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=500, help="images for each distance")
    parser.add_argument("--runs", help="folder for trained models (default: in $SFUMATO_CACHE or the temporary folder)")
    parser.add_argument("--train-into", type=Path, help="only train the one arm, in this process, into this new folder")
    chosen = parser.parse_args()
    machine.set_threads(1)
    train = load(chosen.data, size=chosen.size)
    if chosen.train_into:
        train_here(chosen.arms[0], train, chosen.minutes, chosen.seed, chosen.train_into)
        return
    known, runs, stats = records.read(NAME), {}, {}
    for name in chosen.arms:
        run = {"arm": name, "data": train.name, "reference": train.fingerprint(), "size": chosen.size,
               "minutes": chosen.minutes, "seed": chosen.seed, "n": chosen.n}  # fmt: skip
        if not all(records.has(known, **run, setting=setting) for setting in find(name).SAMPLING):
            runs[name] = run
    place = f"{train.name}-{chosen.size}px-{chosen.minutes:g}min-seed{chosen.seed}"
    folders = {name: runs_folder(chosen.runs) / f"text-{name}-{place}" for name in runs}
    for name, out in folders.items():
        stats[name] = train_apart(name, chosen.data, chosen.size, chosen.minutes, chosen.seed, out)
        print(name, stats[name], flush=True)
    if not runs:
        return
    measures = Measures(train, load(chosen.data, size=chosen.size, split="test"), chosen.n)
    for name, run in runs.items():
        arm, out = find(name), folders[name]
        for setting in arm.SAMPLING:
            if records.has(known, **run, setting=setting):
                continue
            result = {"setting": setting, **measures(arm, out, setting, chosen.seed)}
            records.append(NAME, {**run, **result, **stats[name], "machine": machine.describe()})
            print(name, result, flush=True)
        picture(arm, out, SHOWN[name], records.RESULTS / f"text-{name}-{place}.png")


if __name__ == "__main__":
    main()
