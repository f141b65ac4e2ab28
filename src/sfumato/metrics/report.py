"""The result of an evaluation for people: a table, and samples beside the training images nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from sfumato.data import ImageSet

_NUMBERS = ("n", "frechet", "kernel", "precision", "recall", "density", "coverage")
_LOWER = ("frechet", "kernel")


def lines(result: Mapping[str, Any]) -> list[str]:
    """What ``evaluate`` returned, as lines of text: what was drawn, a table a feature space, labels, memorisation."""
    reference, test, near = result["reference"], result["test"], result["neighbours"]
    steps = "default steps" if result["steps"] is None else f"steps {result['steps']}"
    drawn = [f"{result['samples']} samples", f"seed {result['seed']}", result["sampler"] or "its own sampler", steps]
    if result["guidance"] is not None:
        drawn.append(f"guidance {result['guidance']:g}")
    if result["network_evaluations"] is not None:
        drawn.append(f"{result['network_evaluations']:g} network evaluations an image")
    text = [
        ", ".join(drawn),
        f"reference: {reference['name']} {reference['split']}, {reference['count']} images, {reference['fingerprint']}",
        f"baseline:  {test['name']} {test['split']}, {test['count']} images, {test['fingerprint']}",
    ]
    for name, space in result["features"].items():
        text += [
            "",
            f"features: {name} ({space['dimension']} numbers, {space['hash']}), reference of {space['reference_n']} images",
        ]
        heads = [
            f"{number} ({'lower' if number in _LOWER else 'higher'})" if number != "n" else "n" for number in _NUMBERS
        ]
        rows = [["", *heads]]
        rows += [
            [row, *(_number(space[row][number]) for number in _NUMBERS)] for row in ("model vs train", "test vs train")
        ]
        text += _table(rows)
    if (conditional := result["conditional"]) is not None:
        real = conditional["classifier_test_accuracy"]
        beside = "" if real is None else f" (of real test images: {real:.1%})"
        text += ["", f"label as asked: {conditional['accuracy']:.1%} of samples{beside}"]
    if (found := result.get("retrieval")) is not None:
        text += _retrieval(found)
    text += [
        "",
        *_table(
            [
                ["nearest training image", "samples", "test images"],
                ["near copies", f"{near['near_copies']:.2%}", f"{near['near_copies_test']:.2%}"],
                ["nearer than 99% of test images", f"{near['closer']:.2%}", f"{near['closer_test']:.2%}"],
                ["median distance", _number(near["distance"]), _number(near["distance_test"])],
            ]
        ),
        "",
        f"{result['seconds']['sampling']:.1f} s of sampling "
        f"({1000 * result['seconds']['sampling'] / result['samples']:.1f} ms an image), {result['seconds']['total']:.1f} s in all",
    ]
    return text


def _retrieval(found: Mapping[str, Any]) -> list[str]:
    """The judge, its four numbers, and whether samples resemble the image of their caption."""

    def share(part: Mapping[str, Any]) -> str:
        return f"{part['r_precision']:.1%} ({part['low']:.1%} to {part['high']:.1%})"

    rows = [
        [name, share(found[key]), str(found[key]["images"]), share(found[f"{key}_real"])]
        for name, key in (("captions of training images", "train"), ("captions held out", "held_out"))
        if found[key] is not None
    ]
    text = [
        "",
        f"own caption among {found['candidates']} (chance {found['chance']:.1%}), judge: {found['judge']} ({found['hash']})",
        *_table([["R-precision (95% interval)", "samples", "n", "real images"], *rows]),
    ]
    for space, rate in found["own_image"].items():
        text.append(f"nearest training image is the caption's own, in {space}: {rate:.1%}")
    return text


def picture(result: Mapping[str, Any], samples: ImageSet, train: ImageSet) -> Image.Image:
    """The samples that came nearest to a training image, each with that image on its right, four pairs a row.

    ``result`` is from ``evaluate``, ``samples`` what it handed to ``on_samples``.
    """
    from sfumato.core.pictures import grid

    closest = result["neighbours"]["closest"]
    drawn, real = (
        images.images[[pair[key] for pair in closest]] for images, key in ((samples, "sample"), (train, "train"))
    )
    return grid(np.stack([drawn, real], axis=1).reshape(-1, *samples.images.shape[1:]), columns=8)


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
