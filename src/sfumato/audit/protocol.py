"""The evaluation: clean images, attacks one after the other, the worst case of each image, checks of the evaluation itself.

``standard`` is FGSM, PGD, the ensemble of AutoAttack's standard version on all images that are classified rightly, and
FMN for the accuracy at every eps. ``screening`` is cheaper and its number is a weaker upper bound: APGD alone takes the
ensemble's place. For L0 there are sigma-zero and FMN; for a model without gradients there is Square.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import ATTACKS, standard, verified
from sfumato.attacks.ensemble import MEMBERS
from sfumato.attacks.losses import margin
from sfumato.audit.invariance import joined, measured
from sfumato.audit.plan import EASY, HARD, MEMBER_SHARES, OTHERWISE, Meter, check_settings, main_attack, plan
from sfumato.audit.probes import PROBED, Probed, probe
from sfumato.audit.results import Audit, Member, Outcome, Pictured
from sfumato.classifiers import BudgetExceeded, Classifier, match_labels
from sfumato.classifiers.stamp import classifier_hash, stamp
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.parts import StepResult, Store
from sfumato.data import ImageSet

BATCH = 64  # images in a part: what a kill can lose of one attack
PICTURED = 10  # images in the report
SHARED = ("rows", "y", "clean", "clean_confidence", "clean_margin", "pictured", "passes", "seconds")  # run and audit
Progress = Callable[[int, int], None]
Remark = Callable[[str], None]


def audit(
    classifier: Classifier,
    data: ImageSet,
    *,
    norm: str = "Linf",
    eps: float = 8 / 255,
    count: int = 500,
    seed: int = 0,
    protocol: str = "standard",
    out: str | Path | None = None,
    name: str = "classifier",
    progress: Progress | None = None,
    remark: Remark | None = None,
) -> Audit:
    """Attack a classifier by the whole protocol.

    Args:
        classifier: any, its labels matched with the data's as ``match_labels`` does.
        data: labelled images of a size that it takes.
        norm: Linf, L2, L1 or L0.
        eps: radius in that norm, of pixels in [0, 1] (L0: how many values may change).
        count: images, drawn at random from all without repetition; all of them where there are fewer.
        seed: of the draw and of the attacks.
        protocol: "standard" or "screening".
        out: folder of the report, whose ``parts`` keep what is done: the same call goes on after it was stopped.
        name: of the classifier, for the report.
        progress: called with (work done, work in all), in passes that are expected.
        remark: called with a sentence after each attack.

    Raises:
        InputError: images, labels, norm or eps that do not fit; a budget of the classifier that is used up.
    """
    check_settings(norm, eps, count, protocol)
    labels = match_labels(classifier, data)
    rows = np.random.RandomState(seed % 2**32).permutation(len(data))[:count]  # these numbers never change
    run = _Run(classifier, data, rows, labels[torch.from_numpy(rows)], norm, eps, seed, progress)
    with classifier.ready():
        some = run.pixels(slice(0, 4))
        differentiable = _has_gradient(classifier, some[:1])
        names = plan(norm, protocol, differentiable)
        digest = classifier_hash(classifier, some)
        of = {"classifier": digest, "data": data.fingerprint(), "count": len(rows)}
        how = {"norm": norm, "eps": eps, "seed": seed, "attacks": names, "stamp": stamp(classifier)}
        run.store = Store(None if out is None else Path(out), {**of, **how, "batch": run.batch, "layout": 2})
        run.expect(names)
        run.look()
        shown = _one_a_class(run.y, run.clean == run.y)
        outcomes = {each: run.attack(each, shown, each == main_attack(names), remark) for each in names}
        probes = run.part("probes", lambda: run.probe(differentiable))
        invariance, unchanged = run.unnoticed()
        run.store.sweep()
    if run.store.found and remark is not None:
        remark(f"{run.store.found} of {len(run.weights)} parts were done before")
    return Audit(
        name=name,
        classifier_hash=digest,
        weights=checkpoint.digest(classifier.module),
        labels=classifier.labels,
        data={"name": data.name, "split": data.split, "fingerprint": data.fingerprint(), "of": len(data)},
        norm=norm,
        eps=eps,
        seed=seed,
        protocol=protocol if differentiable else "black-box",
        main=main_attack(names),
        outcomes=outcomes,
        probes=probes.numbers["found"],
        invariance=invariance,
        unnoticed=unchanged,
        stamp=stamp(classifier),
        **{name: getattr(run, name) for name in SHARED},
    )


@dataclass
class _Run:
    """One audit on its way: the images, what is stored, what it has cost."""

    classifier: Classifier
    data: ImageSet
    rows: np.ndarray  # (N,) in the data
    y: Tensor  # (N,)
    norm: str
    eps: float
    seed: int
    progress: Progress | None
    store: Store = field(init=False)
    weights: dict[str, float] = field(default_factory=dict)  # expected passes by part
    finished: float = 0.0
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    seconds: dict[str, float] = field(default_factory=dict)  # by part's kind
    pictured: list[Pictured] = field(default_factory=list)
    clean: Tensor = field(init=False)  # (N,) predictions
    clean_confidence: Tensor = field(init=False)  # (N,) their probabilities
    clean_margin: Tensor = field(init=False)  # (N,)

    @property
    def batch(self) -> int:
        return BATCH if self.classifier.device.type == "cpu" else self.classifier.batch_size

    def pixels(self, where: slice | Tensor) -> Tensor:
        rows = self.rows[where if isinstance(where, slice) else where.numpy()]
        return self.data.pixels(rows).to(self.classifier.device)

    def some(self, where: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, labels and numbers, as the functions that measure something take them."""
        rows = self.rows[where if isinstance(where, slice) else where.numpy()]
        return self.pixels(where), self.y[where].to(self.classifier.device), torch.from_numpy(rows.astype(np.int64))

    def parts(self) -> list[slice]:
        return [slice(i, min(i + self.batch, len(self.rows))) for i in range(0, len(self.rows), self.batch)]

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def expect(self, names: list[str]) -> None:
        """Enter what work there is."""
        for index, part in enumerate(self.parts()):
            size = part.stop - part.start
            self.weights[f"clean-{index}"] = size
            if self.data.channels in (1, 3):
                self.weights[f"invariance-{index}"] = 120 * size
            for name in names:
                self.weights[f"{name}-{index}"] = size * (EASY.get(name, 0) or OTHERWISE[name])
        self.weights["probes"] = PROBED * 300

    def part(self, name: str, compute: Callable[[], StepResult]) -> StepResult:
        """A part with what it costs, from the store or computed."""

        def measured() -> StepResult:
            meter = Meter(self.classifier)
            tensors, numbers = compute()
            tensors = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
            cost = meter.read()
            return StepResult(tensors, {**numbers, "seconds": cost.pop("seconds"), "cost": cost})

        part = self.store.get(name, measured)
        for key, value in part.numbers["cost"].items():
            self.passes[key] += value
        kind = name.rsplit("-", 1)[0] if name.rsplit("-", 1)[-1].isdecimal() else name
        self.seconds[kind] = self.seconds.get(kind, 0.0) + part.numbers["seconds"]
        self.finished += self.weights[name]
        self.tell(0.0)
        return part

    def each(self, kind: str, compute: Callable[[slice], StepResult]) -> list[StepResult]:
        return [self.part(f"{kind}-{i}", lambda part=part: compute(part)) for i, part in enumerate(self.parts())]

    def tell(self, share: float) -> None:
        """How far all work has come, with ``share`` passes of the part under way."""
        if self.progress is not None:
            self.progress(round(self.finished + share), round(sum(self.weights.values())))

    # -- parts --------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """What the classifier says of the clean images."""
        found = self.each("clean", self._looked)
        self.clean = torch.cat([part.tensors["predicted"] for part in found])
        self.clean_confidence = torch.cat([part.tensors["confidence"] for part in found])
        self.clean_margin = torch.cat([part.tensors["margin"] for part in found])

    def _looked(self, part: slice) -> StepResult:
        logits = self.classifier.logits(self.pixels(part))
        sure, predicted = logits.softmax(1).max(1)
        height = margin(logits, self.y[part].to(logits.device))
        return StepResult({"predicted": predicted, "confidence": sure, "margin": height}, {})

    def attack(self, name: str, shown: Tensor, pictures: bool, remark: Remark | None) -> Outcome:
        """One attack on all images that are classified rightly."""
        found = []
        for index, part in enumerate(self.parts()):
            key = f"{name}-{index}"
            found.append(self.part(key, lambda key=key, part=part: self._attacked(name, key, part, shown)))
            if name == "pgd":  # those that are robust cost the ensemble most of its time
                robust = int((~found[-1].tensors["fooled"]).sum())
                for heavy in ("standard", "apgd"):
                    if f"{heavy}-{index}" in self.weights:
                        size = part.stop - part.start
                        self.weights[f"{heavy}-{index}"] = size * EASY[heavy] + robust * HARD[heavy]
        outcome = _joined(name, found)
        if pictures:
            for part in found:
                for row, pixels in zip(part.tensors["shown"].tolist(), part.tensors["shown_pixels"], strict=True):
                    clean = self.pixels(torch.tensor([row])).cpu()[0]
                    self.pictured.append(Pictured(row, clean, pixels))
            self.pictured.sort(key=lambda each: shown.tolist().index(each.place))
        if remark is not None:
            seconds = self.seconds.get(name, 0.0)
            remark(f"{outcome.title}: {int((~outcome.fooled).sum())} of {len(self.rows)} robust, {seconds:.1f} s")
        return outcome

    def _attacked(self, name: str, key: str, part: slice, shown: Tensor) -> StepResult:
        x, y, ids = self.some(part)
        right = self.clean[part] == self.y[part]
        rows = right.nonzero().flatten().to(x.device)
        numbers: dict[str, Any] = {"attacked": len(rows), "members": {}}
        found = x.clone()
        fooled_by = torch.zeros(len(x), dtype=torch.int64)  # 1 + the member's number; 0 for none
        meter = Meter(self.classifier)
        if len(rows):
            common: dict[str, Any] = {"norm": self.norm, "seed": self.seed, "ids": ids[rows.cpu()]}
            if "eps" in inspect.signature(ATTACKS.find(name)).parameters:
                common["eps"] = self.eps
            if name == "standard":
                members = _Members(self, key)
                verdict = standard(self.classifier, x[rows], y[rows], **common, progress=members)
                found[rows], numbers["members"] = verdict.x_adv, members.found
                order = ("", *MEMBERS)
                fooled_by[rows.cpu()] = torch.tensor([order.index(n) if n in order else 0 for n in verdict.fooled_by])
            else:
                found[rows] = ATTACKS.find(name)(self.classifier, x[rows], y[rows], **common)
        numbers |= meter.read()
        numbers["attack seconds"] = numbers.pop("seconds")
        checked = verified(self.classifier, x, found, y, norm=self.norm, eps=self.eps)
        logits = self.classifier.logits(found)
        sure = logits.softmax(1).max(1)[0]
        fooled = checked.success.cpu() | ~right
        closest = torch.where(right, checked.distance.cpu(), torch.zeros(len(x)))
        visible = shown[(shown >= part.start) & (shown < part.stop)]
        return StepResult(
            {
                "fooled": fooled,
                "fooled_8bit": checked.fooled_8bit.cpu() & fooled | ~right,
                "predicted": checked.predicted,
                "confidence": sure,
                "distance": torch.where(checked.fooled.cpu() | ~right, closest, torch.full_like(closest, torch.inf)),
                "margin": margin(logits, y).float(),
                "fooled_by": torch.where(fooled, fooled_by, torch.zeros_like(fooled_by)),
                "shown": visible,
                "shown_pixels": found[(visible - part.start).to(x.device)],
            },
            numbers,
        )

    def probe(self, differentiable: bool) -> StepResult:
        """The measurements of probes.py on the first images that are classified rightly."""
        places = (self.clean == self.y).nonzero().flatten()[:PROBED]
        x, y, ids = self.some(places)
        probed = Probed(self.classifier, x, y, ids.to(x.device), self.norm, self.eps, self.seed)
        return StepResult({"places": places}, {"found": probe(probed, differentiable)})

    def unnoticed(self) -> tuple[list[dict[str, Any]] | None, Tensor]:
        """Accuracy under changes that a person would not notice, on all images; None where it takes no such images."""
        if self.data.channels not in (1, 3):
            return None, torch.zeros(0, len(self.y), dtype=torch.bool)

        return joined(self.each("invariance", lambda part: measured(self.classifier, *self.some(part), self.seed)))


class _Members:
    """Keeps what each member of the ensemble costs and does not fool, as it reports."""

    def __init__(self, run: _Run, key: str) -> None:
        self.run, self.key, self.meter = run, key, Meter(run.classifier)
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, attacked: int, robust: int) -> None:
        here = self.found.setdefault(name, {})
        for kind, spent in {"attacked": attacked, **self.meter.read()}.items():
            here[kind] = here.get(kind, 0) + spent
        self.run.tell(self.run.weights[self.key] * MEMBER_SHARES[name])


def _joined(name: str, parts: list[StepResult]) -> Outcome:
    keys = ("fooled", "fooled_8bit", "predicted", "confidence", "distance", "margin", "fooled_by")
    arrays = {key: torch.cat([part.tensors[key] for part in parts]) for key in keys}
    numbers = [part.numbers for part in parts]
    spent: dict[str, Any] = {key: sum(n[key] for n in numbers) for key in ("attacked", "forward", "backward")}
    members = {}
    for place, member in enumerate(MEMBERS if any(n["members"] for n in numbers) else ()):
        reports = [n["members"][member] for n in numbers if member in n["members"]]
        total = {key: sum(report[key] for report in reports) for key in ("attacked", "forward", "backward", "seconds")}
        members[member] = Member(fooled=int((arrays["fooled_by"] == 1 + place).sum()), **total)
    return Outcome(name=name, **arrays, **spent, seconds=sum(n["attack seconds"] for n in numbers), members=members)


def _one_a_class(y: Tensor, right: Tensor) -> Tensor:
    """Places of images to show: of each class the first that is classified rightly, then each one's second, and so on."""
    turns: dict[int, int] = {}
    order = []
    for place, label in enumerate(y.tolist()):
        if right[place]:
            turns[label] = turns.get(label, -1) + 1
            order.append((turns[label], label, place))
    return torch.tensor([place for _, _, place in sorted(order)[:PICTURED]], dtype=torch.int64)


def _has_gradient(classifier: Classifier, x: Tensor) -> bool:
    classifier.logits(x)  # what is wrong with the images or the model is said here
    try:
        classifier.gradient(x, lambda logits: logits.sum(1))
    except BudgetExceeded:
        raise
    except InputError:
        return False
    return True
