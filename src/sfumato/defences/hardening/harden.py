"""Hardening: a trained classifier trained on, so that small perturbations do not change its answer.

>>> from sfumato.defences import harden                                                         # doctest: +SKIP
>>> hardened = harden(classifier, "fashion-mnist", "clf2", method="trades", eps=0.1)            # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.attacks.losses import cross_entropy, reached
from sfumato.classifiers.accuracy import match_labels
from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import Divided, training_and_test
from sfumato.classifiers.networks import NETWORKS
from sfumato.classifiers.objective import ClassifierObjective, Network
from sfumato.classifiers.saved import load_classifier
from sfumato.classifiers.training import ClassifierRequest, described
from sfumato.core.checkpoint import digest
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.defences.compatibility import check_smoothing
from sfumato.defences.hardening import generated
from sfumato.defences.hardening.adversarial_training import FAST_STEP, METHODS, NOISY, Threat, maximise, noise_of
from sfumato.defences.smoothing.certify import PixelDenoiser
from sfumato.engine import Average, Budget, Moment, Progress, train_steps
from sfumato.engine.resume import check_run
from sfumato.generator import Generator

GUARD_EVERY = 50  # steps between two looks at the held-out images
GUARD_IMAGES = 128
GUARD_STEPS = 5  # of the PGD that one step is compared with
DROP = 0.1  # of the accuracy under PGD: three standard errors with so many images, the same each time
REFRESHED = 20  # batches from which the averaged weights' batch statistics are taken


@dataclass(frozen=True, kw_only=True)
class HardeningRequest(ClassifierRequest):
    """One adversarial training of a classifier from its own weights.

    Its ``data``, ``out``, budget, ``shift``, ``flip``, ``fit``, ``seed`` and ``test`` are those of
    :class:`ClassifierRequest`; the network and the size follow from the classifier.

    Attributes:
        classifier: around one of ``classifiers.NETWORKS``; it is left as it is.
        method: pgd, fast, trades, noise or denoised: a name in ``adversarial_training.METHODS``.
        norm: Linf or L2.
        eps: radius of the ball to be robust in, of pixels in [0, 1]; methods noise and denoised: see ``noise_of``.
        generator: of images of the same classes; they make up ``share`` of each batch. Method denoised wants one, whose
            denoiser will stand in front of the classifier, and no images are sampled from it. Sampling takes at most a
            fifth of the minutes; there are no more generated than training images.
        share: of generated images in each batch, over 0 and below 1; less where they are few (``generated.affordable``).
        steps: gradients for each adversarial example (pgd, trades).
        beta: of TRADES.
        sampling: called with (images sampled, images in all) while the generator samples.
    """

    classifier: Classifier
    method: str = "trades"
    norm: str = "Linf"
    eps: float = 8 / 255
    generator: Generator | None = None
    share: float = generated.SHARE
    steps: int = Threat.steps
    beta: float = Threat.beta
    sampling: Callable[[int, int], None] | None = None

    @property
    def threat(self) -> Threat:
        """What to be robust against."""
        return Threat(self.norm, self.eps, self.steps, self.beta)

    def settings(self, train: ImageSet) -> dict[str, Any]:
        """What distinguishes this training from others, as JSON values."""
        hardening: dict[str, Any] = {"method": self.method, "norm": self.norm, "eps": self.eps}
        found = {**self.augmentation(train), **described(train, self.seed), "labels": list(self.classifier.labels)}
        found |= {"from": digest(self.classifier.module), "hardening": hardening}
        if self.method in NOISY:
            found["noise"] = noise_of(self.threat)
        elif self.method != "fast":
            hardening["steps"] = self.steps
        if self.method == "trades":
            hardening["beta"] = self.beta
        if self.generator is not None and self.method == "denoised":
            hardening["denoiser"] = digest(self.generator.denoiser)
        elif self.generator is not None:
            found["generated"] = {"generator": digest(self.generator.denoiser), "share": self.share}
        return found


def harden(
    classifier: Classifier,
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Classifier:
    """Harden to the end of the budget; ``options`` are the other fields of :class:`HardeningRequest`."""
    for step in hardening_steps(HardeningRequest(classifier=classifier, data=data, out=out, **options)):
        if progress is not None:
            progress(step)
    return load_classifier(out, classifier.device)


def hardening_steps(request: HardeningRequest) -> Iterator[Progress]:
    """Train a classifier on adversarial examples, step by step; the result is in the folder ``out``.

    Budget, augmentation, checkpoints and resuming are those of ``classifiers.classifier_steps``; the weights written at
    the end are averages (``HardeningObjective``).

    Yields:
        Progress after each step, with the accuracy on the training batch as the network sees it, perturbations included.

    Raises:
        InputError: settings, data or a generator that do not fit, or a folder that holds something else; before the
            first step is asked for.
    """
    budget, classifier = request.budget, request.classifier
    METHODS.find(request.method)
    threat, generator = request.threat, request.generator
    if not 0 < request.share < 1:
        raise InputError(f"share {request.share:g} of generated images leaves no mix: give a number over 0 and below 1")
    check_trainable(classifier)
    data = training_and_test(request.data, request.test, classifier.size, request.fit)
    labels = _check_classes(classifier, data)
    settings = request.settings(data.train)
    denoise = None
    if request.method == "denoised":
        if generator is None:
            raise InputError("method denoised trains on what a denoiser makes of noisy images: give a --generator")
        check_smoothing(classifier, generator, data.train, noise_of(threat))
        denoise = generator.denoise
    objective = HardeningObjective(data, labels, trainable_copy(classifier), settings, threat, denoise)
    check_run(Path(request.out), settings)  # before images are sampled for it
    if generator is not None and denoise is None:
        generated.check_generator(generator, classifier, data.train)
        pool = _sampled(request, generator, settings, len(data.train))
        objective.mix(pool, request.share)
        budget = _what_is_left(budget, pool)
    return train_steps(objective, budget, seed=request.seed, out=Path(request.out), identity=settings)


def _check_classes(classifier: Classifier, data: Divided) -> Tensor:
    """(N,) labels of the training images, as the classifier numbers them; InputError where data and classifier do not fit."""
    labels = match_labels(classifier, data.train)
    unseen = [name for name in classifier.labels if name not in data.train.classes] if classifier.named else []
    if unseen:
        problem = f"the classifier knows a class {unseen[0]!r}, data {data.train.name!r} does not"
        raise InputError(f"{problem}, and it would be forgotten: give data of all of its classes")
    classifier.logits(data.train.pixels(0))  # tells of channels that do not fit
    match_labels(classifier, data.test)
    return labels


def _sampled(
    request: HardeningRequest, generator: Generator, settings: Mapping[str, Any], count: int
) -> generated.Pool:
    """The generated images to mix with ``count`` of the data; those that the folder holds already are not sampled again."""
    budget = request.budget
    passes = 1.0 if budget.epochs is None else min(1.0, budget.epochs * request.share / (1 - request.share))
    identity = {"from": settings["from"], "generator": settings["generated"]["generator"], "seed": request.seed}
    file, most = Path(request.out) / generated.FILE, max(1, round(passes * count))
    seconds = None if budget.minutes is None else generated.TIME_SHARE * 60 * budget.minutes
    return generated.draw_pool(generator, request.classifier, file, identity, most, seconds, request.sampling)


def _what_is_left(budget: Budget, pool: generated.Pool) -> Budget:
    """The budget less the time that sampling took."""
    if budget.minutes is None:
        return budget
    left = budget.minutes - pool.seconds / 60
    if left <= 0:
        problem = f"--minutes {budget.minutes:g} leave no time to train after the {pool.seconds:.0f} s that"
        raise InputError(f"{problem} {pool.drawn} generated images took, which are kept: give more minutes")
    return replace(budget, minutes=left)


def check_trainable(classifier: Classifier) -> None:
    """InputError unless the classifier's weights can be trained here, and saved."""
    if type(classifier.module) not in NETWORKS.values():
        problem = f"a classifier around {type(classifier.model).__name__} cannot be hardened, only sfumato's networks"
        raise InputError(f"{problem} ({', '.join(NETWORKS)}): give a folder that 'sfumato classifier train' wrote")
    if classifier.mean is None or classifier.size is None or classifier.channels is None:
        problem = "a classifier is hardened and saved with its mean, std, size and channels"
        raise InputError(f"{problem}: give all four to Classifier(...)")


class HardeningObjective(ClassifierObjective):
    """The loss of a hardening method, averaged weights, and a guard against catastrophic overfitting.

    Averaging: ``average <- average + (w - average) 9 / (10 + t)`` after step t, which is the mean over
    about the last ninth of the steps, however many there are. The running statistics of batch normalisation are not
    averaged: at the end they are measured anew for the averaged weights.

    The guard, for method fast: every 50 steps the robust accuracy on held-out images is measured, under the one step of
    training and under PGD. Where only the latter falls, the network is robust to single steps alone (catastrophic
    overfitting, Wong et al. 2020, section 5). Training then goes back to the last weights whose accuracy under PGD was
    within half of the alarming drop from the best, and continues with the several steps of method pgd.

    Args:
        data, labels, classifier, settings: as of ``ClassifierObjective``; ``settings`` of ``HardeningRequest``.
        threat: what to be robust against.
        denoise: applied to the noisy images of method denoised.
    """

    def __init__(
        self,
        data: Divided,
        labels: Tensor,
        classifier: Classifier,
        settings: Mapping[str, Any],
        threat: Threat,
        denoise: PixelDenoiser | None = None,
    ) -> None:
        method = settings["hardening"]["method"]
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
        held = min(GUARD_IMAGES, len(data.train) // 10) if method == "fast" else 0
        super().__init__(data, labels, classifier, settings, METHODS.find(method)(threat), order[held:])
        self.threat, self.denoise = threat, denoise
        self.pool: generated.Pool | None = None
        self.guarded = order[:held]  # rows
        self.average: Average[nn.Module] = Average(self.network, lambda number: 9 / (10 + number))
        self.good: dict[str, Tensor] = {}  # what the guard goes back to
        self.highest, self.collapsed_at = 0.0, 0

    def mix(self, pool: generated.Pool, share: float) -> None:
        """Make ``share`` of each batch generated images, or less where they are few (``generated.affordable``)."""
        self.pool = pool
        share = generated.affordable(share, len(pool.images), len(self.rows))
        self.use_data(max(1, self.images_per_step - round(share * self.images_per_step)))

    def mixed(self, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add generated images for the rest of the batch."""
        if self.pool is None:
            return x, y
        more, labels = self.pool.take(self.images_per_step - self.real, stream)
        return torch.cat([x, more]), torch.cat([y, labels])

    def batch_of(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """As of ``ClassifierObjective``, denoised where there is a denoiser."""
        x, y = super().batch_of(rows, stream)
        with torch.no_grad():
            return (x if self.denoise is None else self.denoise(x, self.settings["noise"])), y

    def after_step(self, moment: Moment) -> str:
        """The guard's measurement; a remark where it goes back to earlier weights."""
        if not len(self.guarded) or self.collapsed_at or moment.step % GUARD_EVERY:
            return ""
        x, y = self.data.pixels(self.guarded).to(self.device), self.labels[self.guarded].to(self.device)
        single, several = accuracies(self.logits, x, y, self.threat)
        if not (self.good and several < self.highest - DROP and single > several + DROP):
            self.highest = max(self.highest, several)
            if not self.good or several >= self.highest - DROP / 2:  # below, it may be sliding: nothing to go back to
                kept = _renamed(self.network.state_dict(), to="weight.") | self.average.tensors()
                self.good = {name: tensor.clone() for name, tensor in kept.items()}
            return ""
        self.network.load_state_dict(_renamed(self.good, "weight."))
        self.average.restore(self.good)
        for optimizer in self.optimizers:
            optimizer.state.clear()  # the momentum leads to where this went wrong
        self.good = {}
        self._continue_with_pgd(moment.step)
        found = f"{single:.0%} of held-out images are robust to one step, {several:.0%} to {GUARD_STEPS}"
        cure = f"back to earlier weights, and on with PGD of {self.threat.steps} steps"
        return f"catastrophic overfitting after step {moment.step:,}: {found} ({self.highest:.0%} were); {cure}"

    def _continue_with_pgd(self, step: int) -> None:
        self.collapsed_at = step
        self.batch_loss = METHODS.find("pgd")(self.threat)

    def finished(self) -> Classifier:
        """The classifier with averaged weights."""
        averaged = trainable_copy(self.classifier)
        network = Network(averaged)
        with torch.no_grad():
            for name, weight in network.module.named_parameters():
                weight.copy_(self.average.averages[name])
        norms = [layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for index in range(REFRESHED if norms else 0):
            for layer in norms:
                layer.momentum = 1 / (index + 1)  # the mean over all batches; the first replaces what was there
            network.module.train()
            moment = Moment(index, 1.0, mix_seed(self.seed, index))
            stream = moment.generator()
            rows = self.rows[torch.randint(len(self.rows), (self.real,), generator=stream)]
            self.batch_loss(network, *self.batch_of(rows, stream), moment)  # for the running statistics alone
        network.module.eval()
        return averaged

    def notes(self) -> dict[str, Any]:
        found = {**super().notes(), **{key: self.settings[key] for key in ("hardening", "from")}}
        if self.pool is not None:
            share = 1 - self.real / self.images_per_step
            found["generated"] = {**self.settings["generated"], "share": round(share, 4), **self.pool.counts()}
        return found | ({"collapsed_at": self.collapsed_at} if len(self.guarded) else {})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _renamed(self.good, to="good."), {"highest": self.highest, "collapsed_at": self.collapsed_at}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        self.good = {name: tensor.to(self.device, copy=True) for name, tensor in _renamed(tensors, "good.").items()}
        self.highest = float(numbers["highest"])
        if numbers["collapsed_at"]:
            self._continue_with_pgd(int(numbers["collapsed_at"]))


def _renamed(tensors: Mapping[str, Tensor], prefix: str = "", to: str = "") -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, which is replaced."""
    return {to + name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def accuracies(network: Network, x: Tensor, y: Tensor, threat: Threat) -> tuple[float, float]:
    """The shares of images that are robust to the one step of method fast, and to PGD of a few steps."""
    found, moment = [], Moment(0, 1.0, seed=0)
    for steps, share in ((1, FAST_STEP), (GUARD_STEPS, None)):
        tried = replace(threat, steps=steps)
        worst = maximise(network, x, lambda logits: cross_entropy(logits, y), tried, moment, share)
        with network.classifier.ready(), torch.no_grad():
            found.append(float(reached(network(worst), y, targeted=True).float().mean()))
    return found[0], found[1]


def trainable_copy(classifier: Classifier) -> Classifier:
    """The same with weights of its own."""
    assert classifier.module is not None
    kept = {name: getattr(classifier, name) for name in ("mean", "std", "size", "channels", "device")}
    return Classifier(copy.deepcopy(classifier.module), labels=classifier.labels if classifier.named else (), **kept)
