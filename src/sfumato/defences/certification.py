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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.classifiers import Accuracy, match_labels
from sfumato.defences.certificates import (
    ABSTAIN,
    Certificate,
    certified,
    certified_curve,
    guaranteed,
    l1_radius,
    linf_radius,
)
from sfumato.defences.fit import check_fit
from sfumato.defences.smoothed_attack import attack_smoothed
from sfumato.defences.smoothing import certify
from sfumato.errors import InputError
from sfumato.files import atomic_write, finite, make_folder

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator

SCHEMA = "sfumato.certificates/1"
RESULT, ARRAYS, PICTURE = "certificates.json", "certificates.npz", "certificates.png"
STEPS, DRAWS = 20, 16  # of the attack
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
        from sfumato.defences.certificate_figure import draw

        folder = Path(folder)
        make_folder(folder)
        packed = io.BytesIO()
        np.savez_compressed(packed, **self.arrays())  # type: ignore[arg-type]
        atomic_write(folder / ARRAYS, packed.getvalue())
        atomic_write(folder / PICTURE, draw(self.report))
        atomic_write(folder / RESULT, json.dumps(finite(self.report), indent=2, allow_nan=False) + "\n")

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``certificates.npz`` holds."""
        each = self.certificates
        named = ("selected", "radius", "p_lower", "hits", "n", "selection")
        said = {True: 1, False: -1, None: 0}
        return {
            "row": self.rows.astype(np.int64),
            "label": self.labels.numpy(),
            "predicted": np.array([c.label for c in each]),
            **{name: np.array([getattr(c, name) for c in each]) for name in named},
            "radii": np.array(each[0].radii),
            "verdicts": np.array([[said[v] for v in c.verdicts] for c in each], np.int8),
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
    progress: Progress | None = None,
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
        progress: called with (images done, images in all); one that is attacked counts twice.

    Raises:
        InputError: as ``certify``, ``check_fit`` and ``match_labels``.
    """
    from sfumato.audit.stamp import classifier_hash, stamp

    if count < 1 or attacked < 0:
        raise InputError(f"-n {count} and {attacked} attacked: give 1 or more images, and 0 or more of them to attack")
    denoise = None if generator is None else generator.denoise
    if generator is not None:
        check_fit(classifier, generator)
        _check_data(data, generator)
    rows = np.random.RandomState(seed % 2**32).permutation(len(data))[:count]  # these numbers never change
    y = match_labels(classifier, data)[torch.from_numpy(rows)]
    x = data.pixels(rows).to(classifier.device)
    before, began, few = classifier.forwards, time.perf_counter(), min(attacked, len(x))

    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(x) + few)

    with classifier.ready():
        found = certify(
            classifier, x, sigma=sigma, denoise=denoise, radii=radii, n0=n0, n=n, alpha=alpha, mode=mode, seed=seed,
            ids=torch.from_numpy(rows), batch_size=batch_size, progress=lambda done, _: told(done),
        )  # fmt: skip
        passes, between = classifier.forwards - before, time.perf_counter()
        fell = torch.zeros(0)
        if few:
            fell = attack_smoothed(
                classifier, x[:few], y[:few], sigma=sigma, radii=found[0].radii, denoise=denoise, steps=STEPS,
                draws=DRAWS, seed=seed, ids=torch.from_numpy(rows[:few]), batch_size=batch_size,
                progress=lambda done, _: told(len(x) + done),
            ).fell.cpu()  # fmt: skip
        seconds = {"certifying": between - began, "attacking": time.perf_counter() - between}
        marks = {**stamp(classifier), "denoiser": None if generator is None else _number_type(generator)}
        digest = classifier_hash(classifier, x)
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
        "smoothing": {"sigma": sigma, "mode": mode, "alpha": alpha, "n0": n0, "n": n},
        "table": table,
        "curve": {"radius": steps.tolist(), **_columns(curve)},
        "abstained": sum(each.label == ABSTAIN for each in found),
        "draws": {"median": float(np.median(spent)), "p95": float(np.quantile(spent, 0.95)), "passes": passes},
        "attack": {"images": few, "steps": STEPS, "draws": DRAWS, "contradictions": _contradictions(found, labels, fell)}
        if few
        else None,
        "stamp": marks,
        "seconds": seconds,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return Certification(report, found, rows, y, fell)


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


def _columns(curve: list[Accuracy]) -> dict[str, list[float]]:
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


def _check_data(data: ImageSet, generator: Generator) -> None:
    channels, height, width = generator.ladder.shape(generator.ladder.stages - 1)
    if (data.channels, *data.size) != (channels, height, width):
        raise InputError(f"data {data.name!r} has images of {data.size[1]}x{data.size[0]} pixels and {data.channels} channels, the "
                         f"generator makes {width}x{height} with {channels}: give the --size, --fit and data that it was "
                         "trained with")  # fmt: skip


def _number_type(generator: Generator) -> str:
    from sfumato.devices import autocast_type

    return str(autocast_type(generator.device, generator.config.precision) or torch.float32).removeprefix("torch.")
