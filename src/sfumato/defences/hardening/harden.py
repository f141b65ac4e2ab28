"""Hardening: a trained classifier trained on, so that small perturbations do not change its answer.

>>> from sfumato.defences import harden                                                         # doctest: +SKIP
>>> hardened = harden(classifier, "fashion-mnist", "clf2", method="trades", eps=0.1)            # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.attacks.losses import cross_entropy, reached
from sfumato.classifiers.accuracy import match_labels
from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import training_and_test
from sfumato.classifiers.networks import NETWORKS
from sfumato.classifiers.run import Moment, Network, Run, part
from sfumato.classifiers.saved import load_classifier
from sfumato.classifiers.training import Budget, Progress, described, open_folder, steps_of
from sfumato.core.checkpoint import digest
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.defences.compatibility import check_smoothing
from sfumato.defences.hardening import generated
from sfumato.defences.hardening.adversarial_training import FAST_STEP, METHODS, NOISY, Threat, maximise, noise_of
from sfumato.defences.smoothing.certify import PixelDenoiser
from sfumato.generator import Generator

GUARD_EVERY = 50  # steps between two looks at the held-out images
GUARD_IMAGES = 128
GUARD_STEPS = 5  # of the PGD that one step is compared with
DROP = 0.1  # of the accuracy under PGD: three standard errors with so many images, the same each time
REFRESHED = 20  # batches from which the averaged weights' batch statistics are taken


def harden(
    classifier: Classifier,
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    **how: Any,
) -> Classifier:
    """Harden to the end of the budget; see ``hardening_steps``, of which this uses up every step."""
    for step in hardening_steps(classifier, data, out, **how):
        if progress is not None:
            progress(step)
    return load_classifier(out, classifier.device)


def hardening_steps(
    classifier: Classifier,
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    method: str = "trades",
    norm: str = "Linf",
    eps: float = 8 / 255,
    generator: Generator | None = None,
    share: float = generated.SHARE,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int = Threat.steps,
    beta: float = Threat.beta,
    shift: int | None = None,
    flip: bool | None = None,
    fit: str = "crop",
    seed: int = 0,
    test: ImageSet | None = None,
    drawing: generated.Progress | None = None,
) -> Iterator[Progress]:
    """Train a classifier on, step by step, from its own weights; it is left as it is, the result is in ``out``.

    The loop is that of ``classifiers.training_steps``: the same budget, augmentation and checkpoints, and going on after
    a stop, to the bit for a budget in epochs. What is written at the end are averaged weights (``HardeningRun``).

    Args:
        classifier: around one of ``classifiers.NETWORKS``.
        data: labelled images of its classes, as for ``training_steps``.
        out: the folder.
        method: pgd, fast, trades, noise or denoised: a name in ``adversarial_training.METHODS``.
        norm: Linf or L2.
        eps: radius of the ball to be robust in, of pixels in [0, 1]; methods noise and denoised: see ``noise_of``.
        generator: of images of the same classes; they make up ``share`` of each batch. Method denoised wants one, whose
            denoiser will stand in front of the classifier, and draws nothing.
        share: of generated images in each batch, over 0 and below 1; less where they are few (``generated.affordable``).
        minutes, epochs: the budget, or what comes first of both; 3 minutes or 60 epochs when neither is given. Drawing
            images takes at most a fifth of the minutes; they are no more than the training images.
        steps: gradients for each worst image (pgd, trades).
        beta: of TRADES.
        shift, flip, fit, seed, test: as for ``training_steps``.
        drawing: called with (images drawn, images in all) while the generator draws.

    Yields:
        Progress after each step; its accuracy is that on the images trained on, perturbed where they are.

    Raises:
        InputError: settings, data or a generator that do not fit, or a folder that holds something else; before the
            first step is asked for.
    """
    budget = Budget.of(minutes, epochs)
    threat = Threat(norm, eps, steps, beta)
    METHODS.find(method)
    if not 0 < share < 1:
        raise InputError(f"share {share:g} of generated images leaves no mix: give a number over 0 and below 1")
    check_trainable(classifier)
    train, tested, held_out = training_and_test(data, test, classifier.size, fit)
    labels = match_labels(classifier, train)
    unseen = [name for name in classifier.labels if name not in train.classes] if classifier.named else []
    if unseen:
        raise InputError(f"the classifier knows a class {unseen[0]!r}, data {train.name!r} does not, and it would be "
                         "forgotten: give data of all of its classes")  # fmt: skip
    classifier.logits(train.pixels(0))  # tells of channels that do not fit
    match_labels(classifier, tested)
    settings = {
        **described(train, seed),
        **({} if shift is None else {"shift": shift}),
        **({} if flip is None else {"flip": flip}),
        "labels": list(classifier.labels),
        "from": digest(classifier.module),
        "hardening": {"method": method, "norm": norm, "eps": eps},
    }
    denoise = None
    if method in NOISY:
        settings["noise"] = noise_of(threat)
        denoise = None if method == "noise" else _denoiser(generator, classifier, train, noise_of(threat))
    elif method != "fast":
        settings["hardening"]["steps"] = steps
    if method == "trades":
        settings["hardening"]["beta"] = beta
    if denoise is not None and generator is not None:
        settings["hardening"]["denoiser"] = digest(generator.denoiser)
        generator = None
    if generator is not None:
        generated.check_generator(generator, classifier, train)
        settings["generated"] = {"generator": digest(generator.denoiser), "share": share}
    if not 0 <= settings["shift"] < min(train.size):
        raise InputError(f"shift {shift} pixels does not fit images of {min(train.size)}: give 0 or a few")
    run = HardeningRun(train, labels, _copy(classifier), settings, threat, denoise)
    open_folder(run, Path(out))
    if generator is not None:
        time = None if budget.minutes is None else generated.TIME_SHARE * 60 * budget.minutes
        passes = 1.0 if budget.epochs is None else min(1.0, budget.epochs * share / (1 - share))
        pool = generated.draw_pool(
            generator, classifier, Path(out) / generated.FILE, most=max(1, round(passes * len(train))), seconds=time,
            seed=seed, progress=drawing,
            identity={"from": settings["from"], "generator": settings["generated"]["generator"], "seed": seed},
        )  # fmt: skip
        run.mix(pool, share)
        if budget.minutes is not None:
            left = budget.minutes - pool.seconds / 60
            if left <= 0:
                raise InputError(f"--minutes {budget.minutes:g} leave no time to train after the {pool.seconds:.0f} s that "
                                 f"{pool.drawn} generated images took, which are kept: give more minutes")  # fmt: skip
            budget = replace(budget, minutes=left)
    return steps_of(run, budget, Path(out), tested, held_out)


def _denoiser(generator: Generator | None, classifier: Classifier, data: ImageSet, sigma: float) -> PixelDenoiser:
    """The generator's, for images of this data in front of this classifier."""
    if generator is None:
        raise InputError("method denoised trains on what a denoiser makes of noisy images: give a --generator")
    check_smoothing(classifier, generator, data, sigma)
    return generator.denoise


def check_trainable(classifier: Classifier) -> None:
    """InputError unless the classifier's weights can be trained here, and saved."""
    if type(classifier.module) not in NETWORKS.values():
        raise InputError(f"a classifier around {type(classifier.model).__name__} cannot be hardened, only sfumato's networks "
                         f"({', '.join(NETWORKS)}): give a folder that 'sfumato classifier train' wrote")  # fmt: skip
    if classifier.mean is None or classifier.size is None or classifier.channels is None:
        raise InputError("a classifier is hardened and saved with its mean, std, size and channels: give all four to "
                         "Classifier(...)")  # fmt: skip


class HardeningRun(Run):
    """A run whose images are perturbed, or noised and denoised, and mixed with generated ones, whose weights are averaged, and which is guarded.

    Averaging: ``average <- average + (w - average) 9 / (10 + t)`` after step t, which is the mean over about the last
    ninth of the steps, however many there are. Only weights are averaged: the running statistics of batch normalisation
    are measured anew for them at the end, for those of other weights do not fit.

    The guard, for method fast: every 50 steps the accuracy of images that are not trained on is taken, under the one
    step of training and under PGD. Where the latter falls while the former does not, training has found weights that
    defeat this one step only (Wong et al. 2020, section 5): it goes back to the last weights that stood PGD as well
    as the best, within half of the drop that alarms, and from there on takes the several steps of method pgd.
    """

    def __init__(
        self,
        data: ImageSet,
        labels: Tensor,
        classifier: Classifier,
        settings: Mapping[str, Any],
        threat: Threat,
        denoise: PixelDenoiser | None = None,
    ) -> None:
        method = settings["hardening"]["method"]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        held = min(GUARD_IMAGES, len(data) // 10) if method == "fast" else 0
        super().__init__(data, labels, classifier, settings, METHODS.find(method)(threat), order[held:])
        self.threat, self.denoise = threat, denoise
        self.pool: generated.Pool | None = None
        self.guarded = order[:held]  # rows
        self.average = {name: weight.detach().clone() for name, weight in self.module.named_parameters()}
        self.good: dict[str, Tensor] = {}  # what the guard goes back to
        self.highest, self.collapsed_at = 0.0, 0

    def mix(self, pool: generated.Pool, share: float) -> None:
        """From now on so much of each batch is generated, or less: no image is seen much more often than one of the data."""
        self.pool = pool
        self.real = max(
            1, self.batch - round(generated.affordable(share, len(pool.images), len(self.rows)) * self.batch)
        )

    def mixed(self, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """With the generated images that the batch has places for."""
        if self.pool is None:
            return x, y
        more, labels = self.pool.take(self.batch - self.real, stream)
        return torch.cat([x, more]), torch.cat([y, labels])

    def batch_of(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noisy images pass the denoiser, where there is one."""
        x, y = super().batch_of(rows, stream)
        if self.denoise is None:
            return x, y
        with torch.no_grad():
            return self.denoise(x, self.settings["noise"]), y

    def advance(self, fraction: float) -> None:
        """One step, and what follows it."""
        super().advance(fraction)
        for name, weight in self.module.named_parameters():
            self.average[name].lerp_(weight.detach(), 9 / (10 + self.step))
        if len(self.guarded) and not self.collapsed_at and self.step % GUARD_EVERY == 0:
            self._look()

    def _look(self) -> None:
        single, several = accuracies(
            self.network, self.data.pixels(self.guarded).to(self.device), self.labels[self.guarded].to(self.device),
            self.threat,
        )  # fmt: skip
        if not (self.good and several < self.highest - DROP and single > several + DROP):
            self.highest = max(self.highest, several)
            if self.good and several < self.highest - DROP / 2:
                return  # it may be sliding: nothing to go back to
            kept = {**self._weights(), **{f"average.{name}": tensor for name, tensor in self.average.items()}}
            self.good = {name: tensor.detach().clone() for name, tensor in kept.items()}
            return
        self.module.load_state_dict(part(self.good, "weight."))
        self.average = part(self.good, "average.")
        self.optimizer.state.clear()  # the momentum leads to where this went wrong
        self.good = {}
        self._cure(self.step)
        self.remark = (
            f"catastrophic overfitting after step {self.step:,}: {single:.0%} of held-out images stand one step, {several:.0%} "
            f"stand {GUARD_STEPS} ({self.highest:.0%} did); back to weights from before, and on with PGD of {self.threat.steps} steps"
        )

    def _cure(self, step: int) -> None:
        self.collapsed_at = step
        self.objective = METHODS.find("pgd")(self.threat)

    def finished(self) -> Classifier:
        """The classifier with averaged weights."""
        averaged = _copy(self.classifier)
        network = Network(averaged)
        with torch.no_grad():
            for name, weight in network.module.named_parameters():
                weight.copy_(self.average[name])
        norms = [layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for index in range(REFRESHED if norms else 0):
            for layer in norms:
                layer.momentum = 1 / (index + 1)  # the mean over all batches; the first replaces what was there
            network.module.train()
            stream = torch.Generator().manual_seed(mix_seed(self.seed, index))
            rows = self.rows[torch.randint(len(self.rows), (self.real,), generator=stream)]
            x, y = self.batch_of(rows, stream)
            self.objective(network, x, y, Moment(mix_seed(self.seed, index), 1.0))  # in passing, statistics are taken
        network.module.eval()
        return averaged

    def notes(self) -> dict[str, Any]:
        found = {**super().notes(), **{key: self.settings[key] for key in ("hardening", "from")}}
        if self.pool is not None:
            share = 1 - self.real / self.batch
            found["generated"] = {**self.settings["generated"], "share": round(share, 4), **self.pool.counts()}
        return found | ({"collapsed_at": self.collapsed_at} if len(self.guarded) else {})

    def tensors(self) -> dict[str, Tensor]:
        found = {**super().tensors(), **{f"average.{name}": tensor for name, tensor in self.average.items()}}
        return found | {f"good.{name}": tensor for name, tensor in self.good.items()}

    def numbers(self) -> dict[str, Any]:
        return {**super().numbers(), "highest": self.highest, "collapsed_at": self.collapsed_at}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().restore(tensors, numbers)
        self.average = {name: tensors[f"average.{name}"].to(self.device, copy=True) for name in self.average}
        self.good = {name: tensor.to(self.device, copy=True) for name, tensor in part(tensors, "good.").items()}
        self.highest = float(numbers["highest"])
        if numbers["collapsed_at"]:
            self._cure(int(numbers["collapsed_at"]))

    def _weights(self) -> dict[str, Tensor]:
        return {f"weight.{name}": tensor for name, tensor in self.module.state_dict().items()}


def accuracies(network: Network, x: Tensor, y: Tensor, threat: Threat) -> tuple[float, float]:
    """The share of images that stand the one step of method fast, and the share that stand PGD of a few steps."""
    found = []
    for steps, share in ((1, FAST_STEP), (GUARD_STEPS, None)):
        worst = maximise(
            network, x, lambda logits: cross_entropy(logits, y), threat.norm, threat.eps, steps=steps, share=share
        )
        with network.classifier.ready(), torch.no_grad():
            found.append(float(reached(network(worst), y, targeted=True).float().mean()))
    return found[0], found[1]


def _copy(classifier: Classifier) -> Classifier:
    """The same with weights of its own."""
    assert classifier.module is not None
    return Classifier(
        copy.deepcopy(classifier.module), mean=classifier.mean, std=classifier.std,
        labels=classifier.labels if classifier.named else (), size=classifier.size, channels=classifier.channels,
        device=classifier.device,
    )  # fmt: skip
