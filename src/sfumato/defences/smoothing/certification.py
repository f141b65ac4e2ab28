"""Certificates for a set of images, beside what an attack finds, as numbers, files and a picture.

Schema ``sfumato.certificates/1``. Accuracies are ``{accuracy, low, high, correct, count}`` with the exact 95 % interval of
Clopper and Pearson; sizes are in units of pixels in [0, 1].

* ``schema``, ``verdict`` (one sentence), ``seed``
* ``classifier``: ``name``, ``hash``, ``labels``; ``generator``: its name, or null without a denoiser
* ``data``: ``name``, ``split``, ``fingerprint``, ``images`` (certified), ``of`` (in the split), ``dimensions``
* ``smoothing``: ``sigma``, ``mode``, ``alpha``, ``n0``, ``n``
* ``table``: for radius 0 and each that was asked for: ``radius``, the ``linf`` and ``l1`` radii that follow, ``certified``;
  ``guaranteed``, the share of these images that is truly robust but for a probability of 0.001; ``undecided`` images;
  and for the images that were attacked ``empirical`` and ``certified_attacked``, or null
* ``curve``: certified accuracy at each ``radius`` where it falls, as a step function that holds up to there: ``accuracy``,
  ``low``, ``high``; in sequential mode it ends at the largest radius asked for, beyond which nothing was tried
* ``abstained``: images; ``draws``: ``median`` and ``p95`` of an image, selection included, and the ``passes`` of the network
* ``attack``: ``images``, ``steps``, ``draws``, ``contradictions`` (images fooled within their certified radius: 0 but for
  a share of alpha, or something is wrong), or null
* ``stamp``: versions, device and number types; ``seconds``, ``written``: all that differs between two runs of a command

``certificates.npz`` has an entry an image: ``row`` (in the data), ``label``, ``predicted`` (-1: abstains), ``selected``,
``radius``, ``p_lower``, ``hits``, ``n``, ``selection``; ``radii`` and ``verdicts`` (images, radii), 1 certified, -1 not, 0
undecided; and of the first images ``fell``, the radius at which the attack fooled them.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.classifiers import Accuracy, match_labels
from sfumato.classifiers.stamp import classifier_hash, stamp
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write, finite, make_folder
from sfumato.core.parts import Part, Store
from sfumato.defences.fit import check_smoothing
from sfumato.defences.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    certified,
    certified_curve,
    guaranteed,
    l1_radius,
    linf_radius,
)
from sfumato.defences.smoothing.certify import certify
from sfumato.defences.smoothing.smoothed_attack import attack_smoothed

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator

SCHEMA = "sfumato.certificates/1"
RESULT, ARRAYS, PICTURE = "certificates.json", "certificates.npz", "certificates.png"
STEPS, DRAWS = 20, 16  # of the attack
FOLDER = "certification"  # of the parts, in that of the results
PART = 25  # images in a part: what a kill can lose
COLUMNS = {
    "label": torch.int64, "selected": torch.int64, "radius": torch.float64, "p_lower": torch.float64, "hits": torch.int64,
    "n": torch.int64, "selection": torch.int64,
}  # fmt: skip
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Certification:
    """What was found; ``save`` writes it."""

    report: dict[str, Any]
    certificates: list[Certificate]
    rows: np.ndarray  # (N,) in the data
    labels: Tensor  # (N,)
    fell: Tensor  # (M,) of the first M images: the radius at which the attack fooled them, inf for none

    def save(self, folder: str | Path) -> None:
        """Write ``certificates.png``, ``.npz`` and, last of all, ``.json``, each whole or not at all."""
        from sfumato.defences.smoothing.figure import draw

        folder = Path(folder)
        make_folder(folder)
        packed = io.BytesIO()
        np.savez_compressed(packed, **self.arrays())  # type: ignore[arg-type]
        atomic_write(folder / ARRAYS, packed.getvalue())
        atomic_write(folder / PICTURE, draw(self.report))
        atomic_write(folder / RESULT, json.dumps(finite(self.report), indent=2, allow_nan=False) + "\n")

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``certificates.npz`` holds."""
        found = {name: column.numpy() for name, column in _columns(self.certificates).items()}
        return {
            "row": self.rows.astype(np.int64),
            "label": self.labels.numpy(),
            "predicted": found.pop("label"),
            **found,
            "radii": np.array(self.certificates[0].radii),
            "fell": self.fell.numpy(),
        }


def certify_data(
    classifier: Classifier,
    data: ImageSet,
    *,
    sigma: float,
    generator: Generator | None = None,
    count: int = 500,
    attacked: int = 50,
    radii: Sequence[float] | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    mode: str = "sequential",
    seed: int = 0,
    batch_size: int | None = None,
    names: tuple[str, str] = ("classifier", "generator"),
    out: str | Path | None = None,
    progress: Progress | None = None,
    remark: Callable[[str], None] | None = None,
) -> Certification:
    """Certify images of ``data``, and attack the first of them.

    Args:
        classifier: its labels are matched with the data's as ``match_labels`` does.
        data: labelled images of a size that it takes.
        generator: whose denoiser goes in front; None: the classifier sees the noise.
        count: images, drawn at random from all without repetition; all of them where there are fewer.
        attacked: how many of them are attacked too, 0 for none.
        sigma, radii, n0, n, alpha, mode, batch_size: as for ``certify``.
        seed: of the draw, the noise and the attack.
        names: of classifier and generator, for the report.
        out: folder of the results, where ``certification/parts`` keeps what is done: the same call goes on after it was stopped.
        progress: called with (images done, images in all); one that is attacked counts twice.
        remark: called with a sentence where some were done before.

    Raises:
        InputError: as ``certify``, ``check_smoothing`` and ``match_labels``.
    """
    if count < 1 or attacked < 0:
        raise InputError(f"-n {count} and {attacked} attacked: give 1 or more images, and 0 or more of them to attack")
    denoise = None if generator is None else generator.denoise
    if generator is not None:
        check_smoothing(classifier, generator, data, sigma)
    rows = np.random.RandomState(seed % 2**32).permutation(len(data))[:count]  # these numbers never change
    y = match_labels(classifier, data)[torch.from_numpy(rows)]
    x = data.pixels(rows).to(classifier.device)
    few = min(attacked, len(x))
    marks = {**stamp(classifier), "denoiser": None if generator is None else _number_type(generator)}
    chosen = {"sigma": sigma, "mode": mode, "alpha": alpha, "n0": n0, "n": n}

    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(x) + few)

    def certify_part(which: slice) -> Part:
        before, began = classifier.forwards, time.perf_counter()
        found = certify(
            classifier, x[which], **chosen, denoise=denoise, radii=radii, seed=seed, ids=torch.from_numpy(rows[which]),
            batch_size=batch_size, progress=lambda done, _: told(which.start + done),
        )  # fmt: skip
        spent = {"passes": classifier.forwards - before, "seconds": time.perf_counter() - began}
        return Part(_columns(found), {"radii": found[0].radii, **spent})

    def attack_part(which: slice) -> Part:
        began = time.perf_counter()
        fell = attack_smoothed(
            classifier, x[which], y[which], sigma=sigma, radii=found[0].radii, denoise=denoise, steps=STEPS, draws=DRAWS,
            seed=seed, ids=torch.from_numpy(rows[which]), batch_size=batch_size,
            progress=lambda done, _: told(len(x) + which.start + done),
        ).fell.cpu()  # fmt: skip
        return Part({"fell": fell}, {"seconds": time.perf_counter() - began})

    with classifier.ready():
        digest = classifier_hash(classifier, x)
        front = None if generator is None else [checkpoint.digest(generator.denoiser), repr(generator.ladder)]
        identity = {
            "classifier": digest, "generator": front, "data": data.fingerprint(), "count": len(rows), **chosen,
            "radii": None if radii is None else sorted(set(radii)), "seed": seed, "attack": [few, STEPS, DRAWS],
            "stamp": marks, "batch": batch_size,
        }  # fmt: skip
        store = Store(None if out is None else Path(out) / FOLDER, identity)
        certifying = [store.get(f"certify-{s.start}", partial(certify_part, s)) for s in _slices(len(x))]
        found = [each for part in certifying for each in _certificates(part)]
        attacking = [store.get(f"attack-{s.start}", partial(attack_part, s)) for s in _slices(few)]
        store.sweep()
    if store.found and remark is not None:
        remark(f"{store.found} of {len(certifying) + len(attacking)} parts were done before")
    fell = torch.cat([torch.zeros(0), *(part.tensors["fell"] for part in attacking)])
    spent = [each.n + each.selection for each in found]
    labels = y.tolist()
    table = _table(found, labels, fell, x[0].numel(), alpha)
    steps = _steps(found, mode)
    curve = certified_curve(found, labels, steps)
    report = {
        "schema": SCHEMA,
        "verdict": _verdict(names, generator is not None, sigma, alpha, table),
        "seed": seed,
        "classifier": {"name": names[0], "hash": digest, "labels": list(classifier.labels)},
        "generator": None if generator is None else names[1],
        "data": {"name": data.name, "split": data.split, "fingerprint": data.fingerprint(), "images": len(found),
                 "of": len(data), "dimensions": x[0].numel()},
        "smoothing": chosen,
        "table": table,
        "curve": {"radius": steps.tolist(), **_shares(curve)},
        "abstained": sum(each.label == ABSTAIN for each in found),
        "draws": {"median": float(np.median(spent)), "p95": float(np.quantile(spent, 0.95)),
                  "passes": sum(part.numbers["passes"] for part in certifying)},
        "attack": {"images": few, "steps": STEPS, "draws": DRAWS, "contradictions": _contradictions(found, labels, fell)}
        if few
        else None,
        "stamp": marks,
        "seconds": {"certifying": sum(part.numbers["seconds"] for part in certifying),
                    "attacking": sum(part.numbers["seconds"] for part in attacking)},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return Certification(report, found, rows, y, fell)


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + PART, count)) for start in range(0, count, PART)]


def _columns(found: Sequence[Certificate]) -> dict[str, Tensor]:
    """Certificates as tensors: (N,) each, verdicts (N, radii) as 1, -1 and, for undecided, 0."""
    said = {True: 1, False: -1, None: 0}
    columns = {
        name: torch.tensor([getattr(each, name) for each in found], dtype=kind) for name, kind in COLUMNS.items()
    }
    verdicts = torch.tensor([[said[verdict] for verdict in each.verdicts] for each in found], dtype=torch.int8)
    return {**columns, "verdicts": verdicts}


def _certificates(part: Part) -> list[Certificate]:
    """The inverse of ``_columns``."""
    meant = {1: True, -1: False, 0: None}
    columns = {name: part.tensors[name].tolist() for name in (*COLUMNS, "verdicts")}
    verdicts = [tuple(meant[said] for said in row) for row in columns.pop("verdicts")]
    radii = tuple(part.numbers["radii"])
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [Certificate(**row, radii=radii, verdicts=said) for row, said in zip(rows, verdicts, strict=True)]


def _table(
    found: list[Certificate], labels: list[int], fell: Tensor, dimensions: int, alpha: float
) -> list[dict[str, Any]]:
    table = []
    few = len(fell)
    for place, radius in enumerate((0.0, *found[0].radii)):
        here = certified(found, labels, radius)
        empirical = Accuracy(int((fell > radius).sum()), few).to_json() if few else None
        table.append(
            {
                "radius": radius,
                "linf": linf_radius(radius, dimensions),
                "l1": l1_radius(radius),
                "certified": here.to_json(),
                "guaranteed": guaranteed(here, alpha),
                "undecided": sum(each.verdicts[place - 1] is None for each in found) if place else 0,
                "empirical": empirical,
                "certified_attacked": certified(found[:few], labels[:few], radius).to_json() if few else None,
            }
        )
    return table


def _steps(found: list[Certificate], mode: str) -> np.ndarray:
    """The radii at which the curve may fall, rising from 0."""
    reached = np.array([each.radius for each in found])
    asked = found[0].radii
    end = asked[-1] if mode == "sequential" and asked else max([float(reached.max()), *asked])
    return np.unique([0.0, *reached[reached < end], *asked, end])


def _contradictions(found: list[Certificate], labels: list[int], fell: Tensor) -> int:
    """Images that were fooled no farther away than their right class is certified."""
    pairs = zip(found, labels, fell.tolist(), strict=False)
    return sum(each.label == label and at <= each.radius for each, label, at in pairs)


def _shares(curve: list[Accuracy]) -> dict[str, list[float]]:
    rows = [point.to_json() for point in curve]
    return {key: [row[key] for row in rows] for key in ("accuracy", "low", "high")}


def _verdict(
    names: tuple[str, str], denoised: bool, sigma: float, alpha: float, table: Sequence[Mapping[str, Any]]
) -> str:
    where = f" behind the denoiser of {names[1]}" if denoised else ""
    shares = ", ".join(f"{row['certified']['accuracy']:.1%} within {row['radius']:.3g}" for row in table[1:])
    return (
        f"Smoothed with sigma {sigma:g}{where}, {names[0]} is right on {table[0]['certified']['accuracy']:.1%} of "
        f"{table[0]['certified']['count']:,} images, and provably stays so under L2 perturbations on {shares} "
        f"(each certificate wrong with a probability of at most {alpha:g})."
    )


def _number_type(generator: Generator) -> str:
    from sfumato.core.devices import autocast_type

    return str(autocast_type(generator.device, generator.config.precision) or torch.float32).removeprefix("torch.")
