"""Accuracy under changes that a person would not notice (sfumato.audit.invariance), measured in parts and put together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.classifiers import Classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.parts import Part


def measured(classifier: Classifier, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> Part:
    """What ``invariance.measure`` finds on some images: ``right`` (rows, B), and for each row its name and counts."""
    from sfumato.audit import invariance

    rows = invariance.measure(classifier, x, y, seed=seed, ids=ids)
    right = torch.tensor([row["right"] for row in rows])
    plain = [
        {
            "name": row["name"],
            "bounds": row["bounds"],
            "grid": [
                {"change": each["change"], "correct": round(each["accuracy"] * len(x))} for each in row["grid"] or ()
            ],
        }
        for row in rows
    ]
    return Part({"right": right}, {"rows": plain})


def together(parts: list[Part]) -> tuple[list[dict[str, Any]], Tensor]:
    """The rows of the report, each with accuracy and interval, and ``right`` (rows, N).

    Of a row with a search, ``worst`` is the single change at which fewest images are right: ``{change, accuracy}``.
    """
    right = torch.cat([part.tensors["right"] for part in parts], 1)
    count = right.shape[1]
    rows = []
    for index, row in enumerate(parts[0].numbers["rows"]):
        grids = [part.numbers["rows"][index]["grid"] for part in parts]
        correct = [sum(each["correct"] for each in same) for same in zip(*grids, strict=True)]
        worst = None
        if correct:
            place = correct.index(min(correct))
            worst = {"change": grids[0][place]["change"], "accuracy": correct[place] / count}
        found = Accuracy(int(right[index].sum()), count).to_json()
        rows.append({"name": row["name"], "bounds": row["bounds"], **found, "worst": worst})
    return rows, right
