"""Certified accuracy on a data set, beside the accuracy under an attack, as numbers, files and a picture.

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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from sfumato.classifiers import Accuracy, match_labels
from sfumato.classifiers.stamp import classifier_hash, stamp
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write, finite, make_folder
from sfumato.core.parts import StepResult, Store
from sfumato.core.slices import slices
from sfumato.defences.compatibility import check_smoothing
from sfumato.defences.smoothing.certify import ABSTAIN, Certificate, SmoothedClassifier, certify
from sfumato.defences.smoothing.radii import l1_radius, linf_radius
from sfumato.defences.smoothing.settings import SmoothingSettings
from sfumato.defences.smoothing.smooth_adv import smooth_adv

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator

SCHEMA = "sfumato.certificates/1"
RESULT, ARRAYS, PICTURE = "certificates.json", "certificates.npz", "certificates.png"
STEPS, DRAWS = 20, 16  # of the attack
FOLDER = "certification"  # of the parts, in that of the results
PART = 25  # images in a part: what a kill can lose
RISK = 0.001  # probability that ``guaranteed_accuracy`` is too high
COLUMNS = ("label", "selected", "radius", "p_lower", "hits", "n", "selection")  # of a Certificate, as tensors


def certified_accuracy(certificates: Sequence[Certificate], y: Sequence[int], radius: float) -> Accuracy:
    """The share of images that are classified rightly and certified at this L2 radius (0: rightly, not abstaining).

    Its interval is that of the images as a sample of all; see ``guaranteed_accuracy`` for these images.
    """
    found = [each.label == label and each.radius >= radius for each, label in zip(certificates, y, strict=True)]
    return Accuracy(sum(found), len(found))


def guaranteed_accuracy(accuracy: Accuracy, alpha: float, risk: float = RISK) -> float:
    """A lower bound of the share of *these* images that is truly robust, wrong with a probability of ``risk``.

    Each certificate is wrong with a probability of at most alpha, so that no more of N are wrong than a binomial
    quantile says (the exact form of the correction in Cohen et al. 2019, appendix).
    """
    wrong = int(binom.ppf(1 - risk, accuracy.count, alpha))
    return max(0, accuracy.correct - wrong) / accuracy.count


@dataclass(frozen=True)
class CertificationRequest:
    """What ``certify_data`` is asked.

    Args:
        settings: of the smoothing; its seed is also that of the choice of images and of the attack.
        count: images, drawn at random without replacement; all of them where there are fewer.
        attacked: how many of them are attacked too, 0 for none.
        names: of classifier and generator, for the report.
    """

    settings: SmoothingSettings
    count: int = 500
    attacked: int = 50
    names: tuple[str, str] = ("classifier", "generator")

    def __post_init__(self) -> None:
        if self.count < 1 or self.attacked < 0:
            problem = f"-n {self.count} and {self.attacked} attacked"
            raise InputError(f"{problem}: give 1 or more images, and 0 or more of them to attack")


@dataclass(frozen=True)
class CertifiedData:
    """What ``certify_data`` found; ``save`` writes it."""

    report: dict[str, Any]
    certificates: list[Certificate]
    rows: np.ndarray  # (N,) in the data
    labels: Tensor  # (N,)
    fooled_at: Tensor  # (M,) of the first M images: the radius at which the attack fooled them, inf for none

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
        known = {"row": self.rows.astype(np.int64), "label": self.labels.numpy(), "predicted": found.pop("label")}
        return known | found | {"radii": np.array(self.certificates[0].radii), "fell": self.fooled_at.numpy()}


def certify_data(
    classifier: Classifier,
    data: ImageSet,
    request: CertificationRequest,
    *,
    generator: Generator | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    remark: Callable[[str], None] | None = None,
) -> CertifiedData:
    """Certify images of ``data``, and attack the first of them.

    >>> certify_data(clf, data, CertificationRequest(SmoothingSettings(sigma=0.25), count=100))     # doctest: +SKIP

    Args:
        classifier: its labels are matched with the data's as ``match_labels`` does.
        data: labelled images of a size that it takes.
        request: see there.
        generator: whose denoiser goes in front; None: the classifier sees the noise.
        out: folder of the results. ``certification/parts`` in it keeps what is done: the same call resumes.
        progress: called with (images done, images in all); one that is attacked counts twice.
        remark: called with a sentence where some were done before.

    Raises:
        InputError: as ``certify``, ``check_smoothing`` and ``match_labels``.
    """
    settings, seed = request.settings, request.settings.seed
    if generator is not None:
        check_smoothing(classifier, generator, data, settings.sigma)
    smoothed = SmoothedClassifier(classifier, settings.sigma, None if generator is None else generator.denoise)
    rows = np.random.RandomState(seed % 2**32).permutation(len(data))[: request.count]  # these numbers never change
    y = match_labels(classifier, data)[torch.from_numpy(rows)]
    x = data.pixels(rows).to(classifier.device)
    few = min(request.attacked, len(x))

    def done(count: int, _: int, before: int) -> None:
        if progress is not None:
            progress(before + count, len(x) + few)

    def certify_part(some: slice) -> StepResult:
        passes, began = classifier.forwards, time.perf_counter()
        ids, report_done = torch.from_numpy(rows[some]), partial(done, before=some.start)
        how = {"denoise": smoothed.denoise, "ids": ids, "progress": report_done, **asdict(settings)}
        found = certify(classifier, x[some], **how)
        spent = {"passes": classifier.forwards - passes, "seconds": time.perf_counter() - began}
        return StepResult(_columns(found), {"radii": found[0].radii, **spent})

    def attack_part(some: slice) -> StepResult:
        began = time.perf_counter()
        ids, report_done = torch.from_numpy(rows[some]), partial(done, before=len(x) + some.start)
        effort = {"steps": STEPS, "draws": DRAWS, "seed": seed, "batch_size": settings.batch_size}
        found = smooth_adv(smoothed, x[some], y[some], certificates[0].radii, ids=ids, progress=report_done, **effort)
        return StepResult({"fell": found.fooled_at.cpu()}, {"seconds": time.perf_counter() - began})

    with classifier.ready():
        digest = classifier_hash(classifier, x)
        marks = {**stamp(classifier), "denoiser": None if generator is None else _number_type(generator)}
        chosen = {name: getattr(settings, name) for name in ("sigma", "mode", "alpha", "n0", "n")}
        front = None if generator is None else [checkpoint.digest(generator.denoiser), repr(generator.ladder)]
        radii = None if settings.radii is None else sorted(set(settings.radii))
        identity = {"classifier": digest, "generator": front, "data": data.fingerprint(), "count": len(rows), **chosen}
        identity |= {"radii": radii, "attack": [few, STEPS, DRAWS], "batch": settings.batch_size}
        identity |= {"seed": seed, "stamp": marks}
        store = Store(None if out is None else Path(out) / FOLDER, identity)
        certified = [store.get(f"certify-{s.start}", partial(certify_part, s)) for s in slices(len(x), PART)]
        certificates = [each for part in certified for each in _certificates(part)]
        attacked = [store.get(f"attack-{s.start}", partial(attack_part, s)) for s in slices(few, PART)]
        store.sweep()
    if store.found and remark is not None:
        remark(f"{store.found} of {len(certified) + len(attacked)} parts were done before")
    fooled_at = torch.cat([torch.zeros(0), *(part.tensors["fell"] for part in attacked)])
    draws = [each.n + each.selection for each in certificates]
    labels, dimensions = y.tolist(), x[0].numel()
    wrong = _contradictions(certificates, labels, fooled_at)
    table = accuracy_table(certificates, labels, fooled_at, dimensions, settings.alpha)
    report = {
        "schema": SCHEMA,
        "verdict": _verdict(request, generator is not None, table),
        "seed": seed,
        "classifier": {"name": request.names[0], "hash": digest, "labels": list(classifier.labels)},
        "generator": None if generator is None else request.names[1],
        "data": {
            **{"name": data.name, "split": data.split, "fingerprint": data.fingerprint()},
            **{"images": len(rows), "of": len(data), "dimensions": dimensions},
        },
        "smoothing": chosen,
        "table": table,
        "curve": _curve(certificates, labels, settings.mode),
        "abstained": sum(each.label == ABSTAIN for each in certificates),
        "draws": {
            "median": float(np.median(draws)),
            "p95": float(np.quantile(draws, 0.95)),
            "passes": sum(part.numbers["passes"] for part in certified),
        },
        "attack": {"images": few, "steps": STEPS, "draws": DRAWS, "contradictions": wrong} if few else None,
        "stamp": marks,
        "seconds": {
            "certifying": sum(part.numbers["seconds"] for part in certified),
            "attacking": sum(part.numbers["seconds"] for part in attacked),
        },
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return CertifiedData(report, certificates, rows, y, fooled_at)


def accuracy_table(
    certificates: list[Certificate], labels: list[int], fooled_at: Tensor, dimensions: int, alpha: float
) -> list[dict[str, Any]]:
    """A row for radius 0 and each that was asked for, as the module's schema says."""
    table, few = [], len(fooled_at)
    for place, radius in enumerate((0.0, *certificates[0].radii)):
        accuracy = certified_accuracy(certificates, labels, radius)
        row = {
            "radius": radius,
            "linf": linf_radius(radius, dimensions),
            "l1": l1_radius(radius),
            "certified": accuracy.to_json(),
            "guaranteed": guaranteed_accuracy(accuracy, alpha),
            "undecided": sum(each.verdicts[place - 1] is None for each in certificates) if place else 0,
            "empirical": None,
            "certified_attacked": None,
        }
        if few:
            row["empirical"] = Accuracy(int((fooled_at > radius).sum()), few).to_json()
            row["certified_attacked"] = certified_accuracy(certificates[:few], labels[:few], radius).to_json()
        table.append(row)
    return table


def _curve(certificates: list[Certificate], labels: list[int], mode: str) -> dict[str, list[float]]:
    """Certified accuracy at each radius at which it may fall, rising from 0."""
    reached, asked = np.array([each.radius for each in certificates]), certificates[0].radii
    end = asked[-1] if mode == "sequential" and asked else max([float(reached.max()), *asked])
    radii = np.unique([0.0, *reached[reached < end], *asked, end]).tolist()
    rows = [certified_accuracy(certificates, labels, radius).to_json() for radius in radii]
    return {"radius": radii, **{key: [row[key] for row in rows] for key in ("accuracy", "low", "high")}}


def _contradictions(certificates: list[Certificate], labels: list[int], fooled_at: Tensor) -> int:
    """Images that were fooled no farther away than their right class is certified."""
    pairs = zip(certificates, labels, fooled_at.tolist(), strict=False)
    return sum(each.label == label and at <= each.radius for each, label, at in pairs)


def _verdict(request: CertificationRequest, denoised: bool, table: Sequence[Mapping[str, Any]]) -> str:
    front = f" behind the denoiser of {request.names[1]}" if denoised else ""
    shares = ", ".join(f"{row['certified']['accuracy']:.1%} within {row['radius']:.3g}" for row in table[1:])
    clean, asked = table[0]["certified"], request.settings
    return (
        f"Smoothed with sigma {asked.sigma:g}{front}, {request.names[0]} is right on {clean['accuracy']:.1%} of "
        f"{clean['count']:,} images, and provably robust to L2 perturbations on {shares} "
        f"(each certificate wrong with a probability of at most {asked.alpha:g})."
    )


def _columns(certificates: Sequence[Certificate]) -> dict[str, Tensor]:
    """Certificates as tensors: (N,) each, verdicts (N, radii) as 1, -1 and, for undecided, 0."""
    columns = {name: torch.from_numpy(np.array([getattr(each, name) for each in certificates])) for name in COLUMNS}
    numbers = {True: 1, False: -1, None: 0}
    verdicts = [[numbers[verdict] for verdict in each.verdicts] for each in certificates]
    return {**columns, "verdicts": torch.tensor(verdicts, dtype=torch.int8)}


def _certificates(part: StepResult) -> list[Certificate]:
    """The inverse of ``_columns``."""
    meanings = {1: True, -1: False, 0: None}
    radii, verdicts = tuple(part.numbers["radii"]), part.tensors["verdicts"].tolist()
    rows = zip(*(part.tensors[name].tolist() for name in COLUMNS), strict=True)
    return [
        Certificate(**dict(zip(COLUMNS, row, strict=True)), radii=radii, verdicts=tuple(meanings[v] for v in signs))
        for row, signs in zip(rows, verdicts, strict=True)
    ]


def _number_type(generator: Generator) -> str:
    from sfumato.core.devices import autocast_type

    return str(autocast_type(generator.device, generator.config.precision) or torch.float32).removeprefix("torch.")
