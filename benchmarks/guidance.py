"""Guidance: fidelity against diversity of a trained text-to-image model.

For each guidance scale the same captions of training images are drawn from the same noise: R-precision and precision
(fidelity), recall (diversity) and Fréchet distance, in the judge's features. `MODEL` is a run folder or a saved model, `DATA`
the captioned set that it was trained on (see `text_to_image.md`).
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.base import record, trial
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, rows
from benchmarks.features import Judge
from sfumato import recipes
from sfumato.data import load
from sfumato.metrics import compare

NAME = "guidance"
COMMANDS = ("guidance src/sfumato/packaged/emoji --data DATA --scales 1 1.5 2 3 5 8 -n 200",)
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
NOTES = """\
The packaged model (its default scale is 3); 200 images of training captions and 95 of held-out ones. The Fréchet distance of
so few images is biased upward, and compares within this table alone. 1.5 to 3 cannot be told apart by 200 images; above,
fidelity and diversity both fall."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder of a text-to-image model")
    parser.add_argument("--data", required=True, help="the captioned set that it was trained on")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("-n", type=int, default=1000, help="images of each scale")


def run(chosen: argparse.Namespace) -> None:
    model = recipes.load(chosen.model, "cpu")
    train, test = (load(chosen.data, size=model.ladder.size, split=split) for split in ("train", "test"))
    judge = Judge(train, test)
    captions = captions_for(judge, chosen.n)
    identity = {"model": fingerprint(chosen.model), "data": train.fingerprint(), "n": chosen.n}
    identity |= {"name": chosen.model.name}
    for scale in chosen.scales:
        key = {**identity, "guidance": scale}
        record.once(NAME, key, chosen.again, lambda scale=scale: measure(judge, model, captions, scale))
    draw(results(), record.RESULTS / f"guidance-{chosen.model.name}.png")


def fingerprint(model: Path) -> str:
    """16 hex digits of a model's files."""
    digest = hashlib.sha256()
    for file in sorted([model] if model.is_file() else model.glob("**/model.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measure(judge: Judge, model: Any, captions: tuple[list[str], list[str]], scale: float) -> Record:
    """All numbers of one scale; ``captions``: of training images, held-out ones."""

    def features(asked: list[str], seed: int) -> torch.Tensor:
        return judge.features(model.sample(len(asked), prompt=asked, guidance=scale, seed=seed))

    known, new = captions
    drawn, seconds = trial.timed(lambda: features(known, 0))
    found, asked = compare(drawn, judge.reference), judge.retrieval(drawn, known)
    held_out = judge.retrieval(features(new, 1), new) if new else None
    return {
        "guidance": scale,
        "r_precision": asked["r_precision"],
        "r_precision_interval": [asked["low"], asked["high"]],
        "held_out": held_out and held_out["r_precision"],
        "held_out_interval": held_out and [held_out["low"], held_out["high"]],
        **{name: found[name] for name in ("precision", "recall", "density", "coverage", "frechet", "kernel")},
        "judge": f"{judge.space.name} {judge.space.digest}",
        "cpu_seconds": round(seconds, 1),
        "real": judge.real,
    }


def captions_for(judge: Judge, n: int) -> tuple[list[str], list[str]]:
    """n captions of training images, and a fifth as many held-out ones or all of them."""
    numbers, new = np.random.default_rng(0), list(dict.fromkeys(judge.new))
    known = [judge.known[i] for i in np.resize(numbers.permutation(len(judge.known)), n)]
    return known, [new[i] for i in np.resize(numbers.permutation(len(new)), max(len(new), n // 5))] if new else []


def results() -> list[Record]:
    """The newest model's records by scale."""
    lines = record.read(NAME)
    same = [each for each in lines if all(each[key] == lines[-1][key] for key in ("model", "data", "n"))]
    return sorted(record.latest(same, ("guidance",)), key=lambda each: each["guidance"])


def page() -> list[str]:
    head = "guidance | R-precision | held out | precision | recall | distance"
    row = "{guidance:g} | {r_precision:.3f} | {held_out:.3f} | {precision:.3f} | {recall:.3f} | {frechet:.1f}"
    found = results()
    return [rows(head, row, found), f"![guidance](guidance-{found[-1]['name']}.png)"]


def draw(found: list[Record], out: Path) -> None:
    """Fidelity against diversity, and the distance against guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    line: Any = {"marker": "o", "markersize": 4}
    recall = [each["recall"] for each in found]
    for name, colour in (("r_precision", "#c2410c"), ("held_out", "#f59e0b"), ("precision", "#0f766e")):
        values = [each[name] for each in found]
        if None not in values:
            left.plot(recall, values, color=colour, label=name.replace("_", " "), **line)
    for each in found:
        point, place = (each["recall"], each["r_precision"]), {"xytext": (3, 4), "textcoords": "offset points"}
        left.annotate(f"{each['guidance']:g}", point, fontsize=8, **place)
    left.set(xlabel="recall (diversity)", ylabel="fidelity")
    left.legend(frameon=False, fontsize=8)
    right.plot([each["guidance"] for each in found], [each["frechet"] for each in found], color="#475569", **line)
    right.set(xlabel="guidance", ylabel="Fréchet distance")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.savefig(out, dpi=130)


def claims() -> list[Claim]:
    return []
