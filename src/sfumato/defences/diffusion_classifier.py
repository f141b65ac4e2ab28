"""A generator as a classifier: an image belongs to the class whose condition denoises it best.

By Bayes' rule, with all classes equally likely, ``p(c | x)`` is proportional to ``p(x | c)``, and the ladder's likelihood
bound on ``-log p(x | c)`` is a sum of denoising errors: so the class is that of the smallest error (Li et al. 2023, arXiv
2303.16203; Clark & Jaini 2023, arXiv 2303.15233; as a defence: Chen et al. 2024, arXiv 2305.15241). Every class sees
the same noise at the same levels, which takes most of the noise out of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError, nearest
from sfumato.core.slices import slices
from sfumato.generator import Generator, check_shape
from sfumato.ladder import Ladder
from sfumato.likelihood.bound import errors
from sfumato.samplers import Noise

DenoiseAs = Callable[[Tensor, Tensor, int, Tensor], Tensor]  # (z (N, C, h, w), sigma (N,), stage, class (N,)) -> x^

DRAWS = 32
LOW, HIGH = 0.1, 10.0  # noise levels that tell classes apart; see benchmarks/results/likelihood.md
ALPHA = 0.05  # about how often, at most, elimination may drop the class that all draws would choose
FIRST_LOOK = 8  # draws before classes are first dropped; then at each doubling
_GOLDEN = (math.sqrt(5) - 1) / 2


class Draw(NamedTuple):
    """One evaluation: where, and what it counts."""

    stage: int
    sigma: float
    scale: float  # of the weighted error, so that the mean over draws estimates the integral


@dataclass(frozen=True)
class Decision:
    """What was decided for N images.

    Args:
        label: (N,) int64.
        losses: (N, K), the mean over the draws that each class has had: in nats, up to a constant, for weights "elbo".
        alive: (N, K) bool, the classes that had all draws, or one alone where all others were dropped before.
        passes: (N,) evaluations of the network for each image.
    """

    label: Tensor
    losses: Tensor
    alive: Tensor
    passes: Tensor

    @property
    def shares(self) -> Tensor:
        """(N, K) of the classes in the posterior: 0 for those that were dropped."""
        return (-self.losses).masked_fill(~self.alive, -math.inf).softmax(1)


@dataclass(frozen=True)
class DiffusionClassifierSettings:
    """The settings of a ``DiffusionClassifier``.

    Args:
        draws: evaluations of the network for each class.
        weights: a name in ``ladder.WEIGHTS``; with "elbo" errors are nats of the likelihood bound, up to a constant.
        seed: of noise and levels.
        rows: images times classes at once.
    """

    draws: int = DRAWS
    weights: str = "elbo"
    seed: int = 0
    rows: int = 256

    def __post_init__(self) -> None:
        if self.draws < 1 or self.rows < 1:
            raise InputError(f"draws={self.draws} and rows={self.rows}: both must be 1 or more")


class DiffusionClassifier(nn.Module):
    """Pixels (B, C, H, W) in [0, 1] to logits (B, K): minus the weighted denoising error of each class.

    The errors differ by hundreds of nats, where cross-entropy has no gradient left in float32 and an attack by it would
    fail for that alone. So the logits are divided by the square root of the dimension, with which the errors' own spread
    grows; ``decide`` gives nats.

    A fixed function: its noise and levels are drawn once, from the seed, and serve all images and all classes alike. Its
    gradient is exact; each draw is computed again on the way back, so that memory does not grow with the draws.

    Args:
        denoise: the expected clean image under a class, one an image.
        ladder: the chain.
        classes: K.
        network: what ``denoise`` runs, so that it is moved and frozen with this module.
        settings: the fields of ``DiffusionClassifierSettings``.
    """

    def __init__(
        self, denoise: DenoiseAs, ladder: Ladder, classes: int, *, network: nn.Module | None = None, **settings: Any
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"{classes} class: to classify needs two or more")
        self.denoise, self.ladder, self.classes, self.network = denoise, ladder, classes, network
        self.settings = DiffusionClassifierSettings(**settings)
        ladder.weights(self.settings.weights, 0, torch.ones(1))  # an unknown name is refused now
        self.plan = _plan(ladder, self.settings.draws)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) logits, differentiable in x."""
        everything = torch.ones(len(x), self.classes, dtype=torch.bool, device=x.device)
        total = sum((self.losses(x, i, everything) for i in range(len(self.plan))), x.new_zeros(()))
        return -total / (len(self.plan) * math.sqrt(x[0].numel()))

    def losses(self, x: Tensor, index: int, alive: Tensor) -> Tensor:
        """(B, K) weighted errors of one draw, 0 where a class is not ``alive`` (B, K)."""
        check_shape(x, self.ladder)
        if torch.is_grad_enabled() and x.requires_grad:
            found = checkpoint(self._losses, x, index, alive, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(found, Tensor)
            return found
        return self._losses(x, index, alive)

    def _losses(self, x: Tensor, index: int, alive: Tensor) -> Tensor:
        stage, sigma, scale = self.plan[index]
        noise = Noise(self.settings.seed, [index], x.device)(self.ladder.shape(stage)).to(x.dtype)
        clean = self.ladder.shrink(2 * x - 1, stage)
        level = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
        z = self.ladder.marginal(2 * x - 1, stage, level, noise)
        image, label = alive.nonzero(as_tuple=True)
        parts = []
        rows, weights = self.settings.rows, self.ladder.weights(self.settings.weights, stage, level[:1])
        for i, k in zip(image.split(rows), label.split(rows), strict=True):
            d = self.denoise(z[i], level[i], stage, k) - clean[i]
            on_p, on_q = errors(self.ladder, stage, d)
            parts.append(scale * (weights[0] * on_p + weights[1] * on_q))
        empty = torch.zeros(alive.shape, dtype=parts[0].dtype, device=x.device)
        return empty.index_put((image, label), torch.cat(parts)).to(x.dtype)

    @torch.no_grad()
    def decide(self, x: Tensor, alpha: float = ALPHA) -> Decision:
        """The classes of images, dropping those early that are clearly worse than the best.

        After ``FIRST_LOOK`` draws and at each doubling of them a class is dropped where a paired t test on its
        differences from the best class says that it is worse, at ``alpha`` shared over all classes and looks. Its
        standard error is that of draws spread evenly over the levels: from differences between neighbouring levels
        (von Neumann et al. 1941). ``alpha`` 0 drops none.
        """
        from scipy.stats import t as student

        count = len(self.plan)
        looks = [n for n in (FIRST_LOOK * 2**i for i in range(32)) if n < count]
        alive = torch.ones(len(x), self.classes, dtype=torch.bool, device=x.device)
        total = torch.zeros(len(x), self.classes, dtype=torch.float64, device=x.device)
        had = torch.zeros_like(total)
        history = torch.zeros(count, len(x), self.classes, dtype=torch.float64, device=x.device)
        for index in range(count):
            undecided = alive.sum(1) > 1
            if not bool(undecided.any()):
                break
            now = alive[undecided]
            found = self.losses(x[undecided], index, now).double()
            history[index, undecided] = found
            total[undecided] += found
            had[undecided] += now
            done = index + 1
            if alpha and done in looks:
                tail = float(student.isf(alpha / (self.classes * len(looks)), done - 1))
                by_level = sorted(range(done), key=lambda i: self.plan[i][:2])
                alive &= ~self._worse(history[by_level], total, alive, tail)
        label = (total / had.clamp_min(1)).masked_fill(~alive, math.inf).argmin(1)
        return Decision(label, total / had.clamp_min(1), alive, had.sum(1))

    @staticmethod
    def _worse(history: Tensor, total: Tensor, alive: Tensor, tail: float) -> Tensor:
        """(B, K): whether the mean difference from the best class is over ``tail`` standard errors; history (n, B, K)
        in the order of levels."""
        best = total.masked_fill(~alive, math.inf).argmin(1)
        differences = history - history.gather(2, best[None, :, None].expand(len(history), -1, 1))
        error = (differences.diff(dim=0).square().mean(0) / (2 * len(history))).sqrt()
        worse = differences.mean(0) > tail * error
        return worse.scatter(1, best[:, None], False)


def _plan(ladder: Ladder, draws: int) -> list[Draw]:
    """Levels uniform in log s over all stages, in an order of which each beginning is spread evenly."""
    spans = [
        (stage, max(end, LOW), math.log(min(jump, HIGH) / max(end, LOW)))
        for stage, (end, jump) in enumerate(zip(ladder.ends, ladder.jumps, strict=True))
        if max(end, LOW) < min(jump, HIGH)
    ]
    if not spans:
        problem = f"the ladder's jumps {ladder.jumps} leave no noise level from {LOW} to {HIGH}"
        raise InputError(f"{problem}: classes are told apart there")
    whole = sum(length for _, _, length in spans)
    plan = []
    for i in range(draws):
        place = (0.5 + i * _GOLDEN) % 1 * whole
        index = 0
        while index < len(spans) - 1 and place > spans[index][2]:
            place -= spans[index][2]
            index += 1
        stage, low, length = spans[index]
        sigma = low * math.exp(min(place, length))
        # Weights are for levels drawn uniformly in flow time: dn = s / (1 + s)^2 d log s.
        plan.append(Draw(stage, sigma, whole * sigma / (1 + sigma) ** 2))
    return plan


def diffusion_classifier(generator: Generator, names: Sequence[str] = (), **settings: Any) -> Classifier:
    """A generator as a ``Classifier``, which attacks can attack like any other.

    >>> classifier = diffusion_classifier(Generator.from_pretrained("runs/fashion"))       # doctest: +SKIP
    >>> classifier.predict(images)                                                         # doctest: +SKIP

    Args:
        generator: trained with labels or texts.
        names: the classes to choose from. Default: all labels of the model; of a model of texts they must be given, and
            each is a prompt.
        settings: as of ``DiffusionClassifier``, which is the result's ``module``.

    Raises:
        InputError: a model without labels and texts, an unknown label, fewer than two classes.
    """
    generator.config.need_all_levels("a classifier")
    names = tuple(names)
    if generator.kinds.tokens:
        if not names:
            raise InputError("this model was trained with texts, not with classes: name them, each as a prompt")
        conditions = generator.condition(len(names), prompt=list(names))
    elif generator.classes:
        names = names or generator.classes
        if unknown := [name for name in names if name not in generator.classes]:
            raise InputError(f"the model knows no class {unknown[0]!r}: {nearest(unknown[0], generator.classes)}")
        conditions = generator.condition(len(names), list(names))
    else:
        problem = "this model was trained without labels and texts, so it cannot tell classes"
        raise InputError(f"{problem}: train one with images in a sub-folder a class")

    def denoise(z: Tensor, sigma: Tensor, stage: int, label: Tensor) -> Tensor:
        with generator.autocast():
            return generator.denoiser(z, sigma, stage, conditions[label.to("cpu")].to(z.device)).float()

    ladder = generator.ladder
    module = DiffusionClassifier(denoise, ladder, len(names), network=generator.denoiser, **settings)
    channels = ladder.channels if ladder.channels < 4 else None
    at_once = max(1, module.settings.rows // len(names))
    return Classifier(module, labels=names, size=ladder.size, channels=channels, batch_size=at_once)


def classify(
    classifier: Classifier, x: Tensor, *, alpha: float = ALPHA, progress: Callable[[int, int], None] | None = None
) -> Decision:
    """The classes of images with early elimination; ``classifier.predict`` without it, at many times the cost.

    Args:
        classifier: from ``diffusion_classifier``.
        x: (N, C, H, W) pixels in [0, 1].
        alpha: as in ``DiffusionClassifier.decide``; 0 eliminates nothing.
        progress: called with (images done, N).

    Raises:
        InputError: another classifier, images that do not fit the model, pixels outside [0, 1], an impossible alpha.
    """
    module = classifier.module
    if not isinstance(module, DiffusionClassifier):
        raise InputError("only a diffusion classifier can drop classes early: make one with diffusion_classifier()")
    if not 0 <= alpha < 1:
        raise InputError(f"alpha={alpha} is impossible: give 0, for no elimination, or a number under 1")
    if not len(x) or not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError("give one image or more, with pixels from 0 to 1")
    with classifier.ready():
        batches = slices(len(x), classifier.batch_size, progress)
        parts = [module.decide(x[some].to(classifier.device, torch.float32), alpha) for some in batches]
    fields = ("label", "losses", "alive", "passes")
    return Decision(*(torch.cat([getattr(part, name) for part in parts]).cpu() for name in fields))
