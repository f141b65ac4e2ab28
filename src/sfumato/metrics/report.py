"""The result of an evaluation for people: a table, and samples beside the training images nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from sfumato.data import ImageSet

_NUMBERS = {"n": "n", "frechet": "frechet (lower)", "kernel": "kernel (lower)"}  # their heads say what is better
_NUMBERS |= {name: f"{name} (higher)" for name in ("precision", "recall", "density", "coverage")}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What ``evaluate`` returned, as lines of text: what was drawn, a table a feature space, labels, memorisation."""
    reference, test, near = result["reference"], result["test"], result["neighbours"]
    steps = "default steps" if result["steps"] is None else f"steps {result['steps']}"
    drawn = [f"{result['samples']} samples", f"seed {result['seed']}", result["sampler"] or "its own sampler", steps]
    if result["guidance"] is not None:
        drawn.append(f"guidance {result['guidance']:g}")
    if result["network_evaluations"] is not None:
        drawn.append(f"{result['network_evaluations']:g} network evaluations an image")
    text = [", ".join(drawn)]
    for what, one in (("reference: ", reference), ("baseline:  ", test)):
        text.append(f"{what}{one['name']} {one['split']}, {one['count']} images, {one['fingerprint']}")
    for name, space in result["features"].items():
        about = f"{space['dimension']} numbers, {space['hash']}"
        text += ["", f"features: {name} ({about}), reference of {space['reference_n']} images"]
        rows = [["", *_NUMBERS.values()]]
        for row in ("model vs train", "test vs train"):
            rows.append([row, *(_number(space[row][number]) for number in _NUMBERS)])
        text += _table(rows)
    if (conditional := result["conditional"]) is not None:
        real = conditional["classifier_test_accuracy"]
        beside = "" if real is None else f" (of real test images: {real:.1%})"
        text += ["", f"label as asked: {conditional['accuracy']:.1%} of samples{beside}"]
    if (found := result.get("retrieval")) is not None:
        text += _retrieval(found)
    rows = [
        ["nearest training image", "samples", "test images"],
        ["near copies", f"{near['near_copies']:.2%}", f"{near['near_copies_test']:.2%}"],
        ["nearer than 99% of test images", f"{near['closer']:.2%}", f"{near['closer_test']:.2%}"],
        ["median distance", _number(near["distance"]), _number(near["distance_test"])],
    ]
    sampling, total = result["seconds"]["sampling"], result["seconds"]["total"]
    each = f"{1000 * sampling / result['samples']:.1f} ms an image"
    return [*text, "", *_table(rows), "", f"{sampling:.1f} s of sampling ({each}), {total:.1f} s in all"]


def _retrieval(found: Mapping[str, Any]) -> list[str]:
    """The judge, its four numbers, and whether samples resemble the image of their caption."""

    def share(part: Mapping[str, Any]) -> str:
        return f"{part['r_precision']:.1%} ({part['low']:.1%} to {part['high']:.1%})"

    rows = [
        [name, share(found[key]), str(found[key]["images"]), share(found[f"{key}_real"])]
        for name, key in (("captions of training images", "train"), ("captions held out", "held_out"))
        if found[key] is not None
    ]
    judge = f"judge: {found['judge']} ({found['hash']})"
    text = ["", f"own caption among {found['candidates']} (chance {found['chance']:.1%}), {judge}"]
    text += _table([["R-precision (95% interval)", "samples", "n", "real images"], *rows])
    for space, rate in found["own_image"].items():
        text.append(f"nearest training image is the caption's own, in {space}: {rate:.1%}")
    return text


def picture(result: Mapping[str, Any], samples: ImageSet, train: ImageSet) -> Image.Image:
    """The samples that came nearest to a training image, each with that image on its right, four pairs a row.

    ``result`` is from ``evaluate``, ``samples`` what it handed to ``on_samples``.
    """
    from sfumato.core.pictures import grid

    pairs = result["neighbours"]["closest"]
    drawn, real = samples.images[[pair["sample"] for pair in pairs]], train.images[[pair["train"] for pair in pairs]]
    return grid(np.stack([drawn, real], axis=1).reshape(-1, *samples.images.shape[1:]), columns=8)


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]
