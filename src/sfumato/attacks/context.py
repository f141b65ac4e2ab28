"""What an attack works on, as one record: the samples, the classifier, the balls and the random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from sfumato.attacks.batching import answers, checked, gradients, random_start
from sfumato.attacks.losses import margin, reached
from sfumato.attacks.norms import check_norm, per_sample
from sfumato.core.streams import Streams, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

BALLS = ("Linf", "L2", "L1")  # norms of the attacks that follow a gradient in a ball


class Rows:
    """A dataclass with one row a sample in each of its tensors: ``some[rows]`` is that of some samples."""

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """By the samples' numbers, a mask or a slice; what is no tensor stays."""
        own: Any = self
        values = {field.name: getattr(self, field.name) for field in fields(own)}
        return replace(own, **{name: value[rows] for name, value in values.items() if isinstance(value, Tensor | Rows)})


class Shared(TypedDict, total=False):
    """Keyword arguments of every attack."""

    targeted: bool
    seed: int
    ids: Tensor | Sequence[int] | None
    batch_size: int | None


@dataclass(frozen=True)
class AttackContext(Rows):
    """Samples under attack, one row each; registry.py says what the fields mean."""

    classifier: Classifier
    x: Tensor
    y: Tensor
    norm: str
    eps: Tensor  # (B,) infinite for an attack of minimal norm
    ids: Tensor
    targeted: bool = False
    seed: int = 0
    batch_size: int | None = None

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        x: Tensor,
        y: Tensor,
        *,
        norm: str,
        eps: float | Tensor | None = None,
        norms: Sequence[str] = BALLS,
        attack: str = "",
        **shared: Unpack[Shared],
    ) -> AttackContext:
        """From the arguments of an attack; InputError where ``attack`` cannot use them."""
        check_norm(norm, norms, attack)
        x, y, ids = checked(x, y, shared.get("ids"), eps)
        radius = per_sample(torch.inf if eps is None else eps, x).reshape(-1)
        targeted, seed = shared.get("targeted", False), shared.get("seed", 0)
        return cls(classifier, x, y, norm, radius, ids, targeted, seed, shared.get("batch_size"))

    def __len__(self) -> int:
        return len(self.x)

    def keywords(self) -> dict[str, Any]:
        """As the keyword arguments that all attacks share."""
        names = ("norm", "eps", "targeted", "seed", "ids", "batch_size")
        return {name: getattr(self, name) for name in names}

    def answers(self, x: Tensor) -> Tensor:
        """Logits (n, K) of any number of points, without gradients."""
        return answers(self.classifier, x, self.batch_size)

    def gradients(
        self, x: Tensor, loss: Callable[..., Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K), losses (B,) of ``loss(logits, *labels)``, and their gradient (B, ...)."""
        return gradients(self.classifier, x, loss, labels, self.batch_size)

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: logits that say what the attack wants."""
        return reached(logits, self.y, self.targeted)

    def margin(self, logits: Tensor) -> Tensor:
        """(B,) the margin that the attack raises: above 0 where it has what it wants."""
        return -margin(logits, self.y) if self.targeted else margin(logits, self.y)

    def streams(self, salt: int) -> Streams:
        """The samples' random numbers; ``salt`` keeps several uses apart."""
        return streams_for(self.x, self.seed, self.ids, salt)

    def random_start(self, salt: int, reach: float = 1.0) -> Tensor:
        """(B, ...) a random point of each ball (``reach`` times as large) and the box."""
        return random_start(self.x, self.norm, self.eps * reach, self.streams(salt))


@dataclass(frozen=True)
class Goal(Rows):
    """What a run toward some class raises: ``loss(logits (n, K), source (n,), target (n,))`` gives (n,)."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    source: Tensor
    target: Tensor

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Of the loss, besides the logits."""
        return self.source, self.target
