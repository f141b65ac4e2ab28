"""Classifier: pixels in [0, 1] to logits, whatever the model behind it wants to see.

>>> import torch
>>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), mean=0.3, std=0.35)
>>> images = torch.rand(5, 1, 8, 8)
>>> classifier(images).shape, classifier.predict(images).shape, classifier.forwards
(torch.Size([5, 10]), torch.Size([5]), 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.classifiers.preprocessing import check_channels, declared, statistics
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError

TOLERANCE = 1e-6  # how far outside [0, 1] rounding may leave a pixel
_FAR = torch.finfo(torch.float32).max  # what is farther, or NaN, is no pixel with noise on it


class BudgetExceeded(InputError):
    """A pass would go over the classifier's budget; it was not made."""


class TwoLogits(nn.Module):
    """A model that gives one number an image, (B,) or (B, 1), as one that gives the two logits (0, number).

    Their softmax is the sigmoid of the number, and class 1 is where the number is over 0.

    >>> TwoLogits(nn.Linear(3, 1))(torch.zeros(2, 3)).shape
    torch.Size([2, 2])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(logits_of(self.model(x)).reshape(len(x), 1), (1, 0))  # (B, 2)


class Classifier:
    """Pixels in [0, 1] to logits. Owns the preprocessing, evaluation mode and device; counts passes.

    During each call the model is in evaluation mode, on ``device``, and its parameters ask for no gradient; afterwards
    its modes, ``requires_grad``, ``.grad`` and device are as they were found. The images that are given are never
    written to, whatever the model does in place. Results are on the device of the images that were given.

    Args:
        model: a ``torch.nn.Module`` or any callable, from the preprocessed (B, C, H, W) to (B, K) logits: a tensor, or
            an object with ``.logits``, or a mapping with "logits".
        mean, std: what the model wants its pixels normalised with, ``(x - mean) / std`` in [0, 1] units: a number, or
            one a channel. Default: what a timm model's ``pretrained_cfg`` says, else pixels are left in [0, 1].
        labels: class names in the order of the logits. Default: those that a transformers model knows, else numbers.
        size: (H, W) that the model takes; None where any will do.
        channels: that the model takes, 1 or 3 (then grey images are repeated); None where it follows from ``mean``, or
            any will do.
        device: where the model is to run. Default: where it is. A model elsewhere is moved there and back for each
            call; ``ready()`` holds it there over many calls, ``to()`` for good.
        batch_size: images at once in ``predict`` and ``logits``.
        budget: passes (forward and backward, in images) allowed until ``reset_counts``.

    Raises:
        InputError: a mean or std that cannot be meant for pixels in [0, 1], repeated labels.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        labels: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 256,
        budget: int | None = None,
    ) -> None:
        if not callable(model) or isinstance(model, (type, Classifier)):
            raise InputError(f"a classifier needs a model that can be called, not {_kind(model)}: give such an object")
        if batch_size < 1 or (budget is not None and budget < 0):
            raise InputError(f"batch_size {batch_size} and budget {budget}: give 1 or more, and 0 or more or None")
        owner = getattr(model, "__self__", None)  # model.forward: its state is the model's
        self.module = model if isinstance(model, nn.Module) else owner if isinstance(owner, nn.Module) else None
        known = declared(self.module, normalised=mean is not None or std is not None)
        self.model = model
        self.mean, self.std = statistics(known.mean if mean is None else mean, known.std if std is None else std)
        self.size = size or known.size
        self.channels = check_channels(channels or known.channels, self.mean, self.std)
        self.batch_size = batch_size
        self.budget = budget
        self.forwards = 0
        """Forward passes since the last ``reset_counts``, in images."""
        self.backwards = 0
        """Backward passes through the model since the last ``reset_counts``, in images."""
        self._device = None if device is None else find_device(device)
        self._names = tuple(str(label) for label in (labels or known.labels))
        if len(set(self._names)) < len(self._names):
            raise InputError("labels name a class twice: give each class its own name")
        self._classes = len(self._names) or known.classes
        self._held = 0  # how many ready() blocks are open

    def __repr__(self) -> str:
        kind = type(self.module or self.model).__name__
        return f"Classifier({kind}, classes={self._classes}, size={self.size}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the model runs; for a function without parameters and device: "cpu", and it runs where the images are."""
        if self._device is not None:
            return self._device
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the model's numbers; None for one without any, which is given images as they are."""
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), None)

    @property
    def classes(self) -> int:
        """How many; found by one pass over a grey image (not counted) where nothing else says it."""
        if self._classes is None:
            if self.size is None or self.channels is None:
                problem = "how many classes the model has is not known before its first call"
                raise InputError(f"{problem}: give labels, or size and channels, or call it first")
            grey = torch.full((1, self.channels, *self.size), 0.5)
            with self.ready(), torch.no_grad():
                self._checked(self._run(grey), 1)
        assert self._classes is not None
        return self._classes

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits; numbers where none are known, () as long as nothing is."""
        return self._names or tuple(str(i) for i in range(self._classes or 0))

    @property
    def named(self) -> bool:
        """Whether the classes have names of their own, not only numbers."""
        return bool(self._names)

    # -- passes ---------------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, *, bounded: bool = True) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] as (B, K) logits, float32 or float64, differentiable in ``x``.

        ``bounded=False``: pixels with noise on them, which may lie outside. One batch, however large. Models of vectors
        take (B, d). Counts B forward passes, and B backward passes each time a gradient is taken through the logits.

        Raises:
            InputError: pixels that are no floats, NaN or outside [0, 1] by more than 1e-6, or of another shape than the
                model takes; logits that are NaN, infinite, or not of shape (B, K) with K of 2 or more.
            BudgetExceeded: B passes more than the budget allows.
        """
        self._check_pixels(x, bounded)
        if len(x) == 0:
            return x.new_zeros((0, self.classes), dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)
        self._afford(len(x))
        with self.ready():
            logits = self._checked(self._run(x), len(x))
        self.forwards += len(x)
        if logits.requires_grad:
            count = len(x)
            logits.register_hook(lambda _: self._count_backward(count))
        return logits.to(x.device)

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The logits, and the gradient of the summed loss with respect to the pixels.

        Args:
            x: (B, C, H, W) pixels in [0, 1].
            loss: from (B, K) logits to (B,), one number an image.

        Returns:
            Logits (B, K) and d sum(loss) / dx, of the shape and type of ``x``; both detached. Nothing is computed for
            the model's parameters. Counts B forward and B backward passes.

        Raises:
            InputError: as in a call; a loss of another shape; a model whose output does not depend differentiably on
                the pixels.
            BudgetExceeded: 2 B passes more than the budget allows.
        """

        def single(logits: Tensor) -> Tensor:
            values = loss(logits)
            if values.shape != x.shape[:1]:
                problem = f"the loss gives {_shape(values)} for {len(x)} images"
                raise InputError(f"{problem}: it must give one number an image")
            return values[:, None]

        logits, slopes = self.gradients(x, single)
        return logits, slopes[:, 0]

    def gradients(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The logits, and the gradients of several losses of each image: one forward pass, and a backward pass a loss.

        Args:
            x: (B, C, H, W) pixels in [0, 1].
            losses: from (B, K) logits to (B, J), J of 1 or more.

        Returns:
            Logits (B, K) and the gradients (B, J, C, H, W); otherwise as ``gradient``.
        """
        self._afford(2 * len(x))
        # Inference tensors can take no part in a gradient, so neither that mode nor the tensor itself is used here.
        with torch.inference_mode(False), torch.enable_grad(), self.ready():
            leaf = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            logits = self(leaf)
            values = losses(logits)  # (B, J)
            if values.ndim != 2 or len(values) != len(x) or not values.shape[1]:
                raise InputError(f"the losses are {_shape(values)} for {len(x)} images: give (images, losses)")
            if len(x) == 0:
                return logits.detach(), x.new_zeros(0, *values.shape[1:], *x.shape[1:])
            self._afford(values.numel())
            found: list[Tensor] = []
            for number, sums in enumerate(values.sum(0).unbind() if values.requires_grad else ()):
                (slope,) = torch.autograd.grad(sums, leaf, retain_graph=number + 1 < values.shape[1], allow_unused=True)
                if slope is not None:
                    found.append(slope)
        if len(found) < values.shape[1]:
            problem = "the model's output does not depend differentiably on the pixels (no_grad, argmax or NumPy"
            raise InputError(f"{problem} inside?), so no gradient can be taken: use an attack that needs none")
        return logits.detach(), found[0][:, None] if len(found) == 1 else torch.stack(found, 1)

    def logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] as (B, K) float32 logits without gradients, ``batch_size`` images at a time."""
        with torch.no_grad(), self.ready():
            return torch.cat([self(part) for part in x.split(self.batch_size)]).float()  # (B, K)

    def predict(self, x: Tensor) -> Tensor:
        """The class of each image, (B,) int64, ``batch_size`` images at a time."""
        with torch.no_grad(), self.ready():
            return torch.cat([self(part).argmax(1) for part in x.split(self.batch_size)])  # (B,)

    def reset_counts(self) -> None:
        """Start counting anew: the whole budget is there again."""
        self.forwards = self.backwards = 0

    def to(self, device: str | torch.device) -> Classifier:
        """Move the model to ``device`` for good, and run it there; InputError where it does not exist."""
        self._device = find_device(device)
        if self.module is not None:
            self.module.to(self._device)
        return self

    @contextmanager
    def ready(self) -> Iterator[Classifier]:
        """Hold the model in evaluation mode, frozen and on its device; leave it as it was found.

        Every call does this by itself; around many calls it saves the time of doing it each time.
        """
        self._held += 1
        try:
            with _held(self.module, self._device) if self._held == 1 and self.module is not None else nullcontext():
                yield self
        finally:
            self._held -= 1

    def preprocess(self, x: Tensor) -> Tensor:
        """What the model is given for ``x``: on its device, in its type, normalised. Never ``x`` itself; differentiable."""
        kind = self.dtype or x.dtype
        x = x.to(self._place(x), kind, copy=True)  # a copy: the model may write to what it is given
        if self.channels == 3 and x.ndim == 4 and x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)  # (B, 3, H, W)
        if self.mean is None or self.std is None:
            return x
        shape = (-1,) + (1,) * (x.ndim - 2)
        return (x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape)

    def _place(self, x: Tensor) -> torch.device:
        return x.device if self._device is None and next(self._tensors(), None) is None else self.device

    def _tensors(self) -> Iterator[Tensor]:
        if self.module is not None:
            yield from self.module.parameters()
            yield from self.module.buffers()

    def _run(self, x: Tensor) -> Tensor:
        """(B, ...) as whatever tensor the model gives, in float32 or float64."""
        logits = logits_of(self.model(self.preprocess(x)))
        return logits if logits.dtype == torch.float64 else logits.float()

    def _checked(self, logits: Tensor, count: int) -> Tensor:
        if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
            problem = f"the model gives one number an image {_shape(logits)}, and two classes need two logits"
            raise InputError(f"{problem}: wrap it, Classifier(TwoLogits(model))")
        if logits.ndim != 2 or logits.shape[0] != count:
            problem = f"the model gives {_shape(logits)} for {count} images"
            raise InputError(f"{problem}: it must give (images, classes) logits")
        if self._classes is not None and logits.shape[1] != self._classes:
            known = f"{len(self._names)} labels were given" if self._names else f"it gave {self._classes} before"
            raise InputError(f"the model gives {logits.shape[1]} logits, but {known}: give as many labels as classes")
        # The largest of each row tells of NaN and of inf; a lower -inf may mean a class that is ruled out.
        bad = int((~logits.detach().amax(1).isfinite()).sum())
        if bad:
            problem = f"the model gives logits that are not finite for {bad} of {count} images: check its weights"
            raise InputError(f"{problem}, its number type and the mean and std that it was trained with")
        self._classes = logits.shape[1]
        return logits

    def _check_pixels(self, x: Tensor, bounded: bool) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"pixels are {kind}: give a float tensor from 0 to 1 (divide 8-bit images by 255)")
        if x.ndim < 2:
            raise InputError(f"pixels have the shape {_shape(x)}: give a batch, (B, C, H, W)")
        if x.numel():
            low, high = (float(value) for value in x.detach().aminmax())  # NaN if any value is
            least, most = (-TOLERANCE, 1 + TOLERANCE) if bounded else (-_FAR, _FAR)
            if not (low >= least and high <= most):
                problem = f"pixels run from {low:g} to {high:g}: give them between 0 and 1, for the classifier"
                raise InputError(f"{problem} normalises them itself (mean and std)")
        if self.size is not None and (x.ndim != 4 or tuple(x.shape[2:]) != self.size):
            height, width = self.size
            problem = f"images have the shape {_shape(x)}, the model takes {width}x{height} pixels"
            raise InputError(f"{problem}: bring them to that size (--size {width}x{height})")
        allowed = {1, 3} if self.channels == 3 else {self.channels}
        if self.channels is not None and x.shape[1] not in allowed:
            problem = f"images have the shape {_shape(x)}, the model takes (B, {self.channels}, H, W)"
            raise InputError(f"{problem}: give images of {self.channels} channels")

    def _afford(self, passes: int) -> None:
        spent = self.forwards + self.backwards
        if self.budget is not None and spent + passes > self.budget:
            problem = f"the budget of {self.budget:,} passes is used up ({spent:,} made, {passes:,} more asked for)"
            raise BudgetExceeded(f"{problem}: give a larger budget or reset_counts()")

    def _count_backward(self, count: int) -> None:
        self._afford(count)
        self.backwards += count


def logits_of(output: Any) -> Tensor:
    """The tensor in what a model returned: itself, its ``.logits``, or its item "logits"."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        problem = f"the model returns {_kind(output)}, without logits"
        raise InputError(f"{problem}: wrap it so that it returns a tensor (B, K)")
    return found


@contextmanager
def _held(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Evaluation mode, no gradients for parameters, and the device; each part is left as it was found, by itself."""
    training = [part for part in module.modules() if part.training]
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    if device == torch.device("cuda"):  # the current GPU, which tensors call by its number
        device = torch.device("cuda", torch.cuda.current_device())
    moves = device is not None and found is not None and found != device
    try:
        for part in training:
            part.training = False
        for parameter in asking:
            parameter.requires_grad_(False)
        if moves:
            module.to(device)
        yield
    finally:
        if moves:
            module.to(found)
        for parameter in asking:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _shape(x: Tensor) -> str:
    return f"({', '.join(str(n) for n in x.shape)}{',' if x.ndim == 1 else ''})"
