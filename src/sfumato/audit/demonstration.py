"""One attack on a few images, to look at: clean, noise, adversarial, and what the classifier says of them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import ATTACKS, Attack, Verification, verified
from sfumato.attacks.norms import NORMS, check_norm
from sfumato.audit.plan import Meter
from sfumato.audit.summary import distance_text, size
from sfumato.classifiers import Classifier, match_labels
from sfumato.core import pictures
from sfumato.core.errors import InputError, nearest
from sfumato.core.files import atomic_write, finite, make_folder
from sfumato.data import ImageSet

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = "sfumato.attack/1"
PICTURES, RESULTS, IMAGES = "pictures.png", "results.json", "adversarial"
# Not an attack's own options.
_COMMON = ("classifier", "x", "y", "norm", "eps", "targeted", "seed", "ids", "batch_size")
_DRAWN_UP_TO = 24  # images in the picture


@dataclass(frozen=True)
class Demonstration:
    """What one attack did to N images.

    Args:
        attack: its name.
        norm: that its perturbations are measured in.
        eps: None for attacks of minimal norm.
        target: the class that was wanted, None for any but the true one.
        labels: class names.
        rows: (N,) numbers of the images in the data.
        x, x_adv: (N, C, H, W) in [0, 1].
        y: (N,) true labels.
        clean, after: (N, K) probabilities before and after.
        checked: a fresh look at ``x_adv``.
        passes: forward and backward, of the attack on all N.
        seconds: it took.
    """

    attack: str
    norm: str
    eps: float | None
    target: int | None
    labels: tuple[str, ...]
    rows: np.ndarray
    x: Tensor
    x_adv: Tensor
    y: Tensor
    clean: Tensor
    after: Tensor
    checked: Verification
    passes: dict[str, int]
    seconds: float

    @property
    def attacked(self) -> Tensor:
        """(N,) bool: images on which there was something to do: not what was wanted already."""
        predicted = self.clean.argmax(1)
        return predicted == self.y if self.target is None else predicted != self.target

    @property
    def fooled(self) -> Tensor:
        """(N,) bool."""
        return self.checked.success & self.attacked

    @property
    def unfooled(self) -> Tensor:
        """(N,) bool: fooled, but no longer after rounding to 8 bits."""
        return self.fooled & ~self.checked.fooled_8bit

    def line(self) -> str:
        """The result in one line."""
        sized = f" eps {size(self.eps, self.norm)}" if self.eps is not None else ""
        named = f" {self.norm}" if "norm" in inspect.signature(ATTACKS.find(self.attack)).parameters else ""
        aim = "" if self.target is None else f" toward {self.labels[self.target]!r}"
        count, fooled = int(self.attacked.sum()), int(self.fooled.sum())
        lost = f", {int(self.unfooled.sum())} of them no longer in 8 bits" if self.unfooled.any() else ""
        distance = self.checked.distance[self.fooled]
        far = ""
        if self.eps is None and fooled:
            far = f", median {self.norm} {distance_text(float(distance.median()), self.norm)}"
        each = {key: value / len(self.y) for key, value in self.passes.items()}
        right = "classified rightly" if self.target is None else "not of that class already"
        return (
            f"{self.attack}{named}{sized}{aim}: fooled {fooled} of {count} images {right}{lost}{far}; "
            f"{each['forward']:.4g} + {each['backward']:.4g} passes an image, {self.seconds:.2f} s"
        )

    def to_json(self, files: Mapping[int, str]) -> dict[str, Any]:
        """Schema ``sfumato.attack/1``; ``files`` names the picture of each image by its place."""
        images = [
            {
                "row": int(self.rows[i]),
                "label": self.labels[int(self.y[i])],
                "clean": self._predicted(self.clean[i]),
                "adversarial": self._predicted(self.after[i]),
                "fooled": bool(self.fooled[i]),
                "fooled_8bit": bool(self.fooled[i] & self.checked.fooled_8bit[i]),
                "distance": float(self.checked.distance[i]),
                "distance_8bit": float(self.checked.distance_8bit[i]),
                "file": files.get(i),
            }
            for i in range(len(self.y))
        ]
        target = None if self.target is None else self.labels[self.target]
        made = {"schema": SCHEMA, "attack": self.attack, "norm": self.norm, "eps": self.eps, "target": target}
        stored = self.fooled & self.checked.fooled_8bit
        counts = {"attacked": self.attacked, "fooled": self.fooled, "fooled_8bit": stored}
        made |= {name: int(which.sum()) for name, which in counts.items()}
        return finite({**made, "passes": self.passes, "seconds": self.seconds, "images": images})

    def picture(self) -> Image.Image:
        """The images in columns: clean, noise and adversarial, with what the classifier says under each."""
        from sfumato.audit.sheet import Column, draw

        columns = []
        for i in range(min(len(self.y), _DRAWN_UP_TO)):
            before, after = self._predicted(self.clean[i]), self._predicted(self.after[i])
            first = before["label"], before["probability"], bool(self.clean[i].argmax() == self.y[i])
            last = after["label"], after["probability"], not bool(self.checked.success[i])
            lost = "lost in 8 bits" if self.unfooled[i] else ""
            columns.append(Column(self.x[i], self.x_adv[i], first, last, lost))
        return draw(columns)

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write ``pictures.png``, the adversarial images as 8-bit PNG files, and ``results.json``, whose object is returned."""
        folder = Path(folder)
        make_folder(folder / IMAGES)
        files = {}
        for i, row in enumerate(self.rows.tolist()):
            predicted = self.labels[int(self.after[i].argmax())]
            name = f"{row:05}-{_plain(self.labels[int(self.y[i])])}-as-{_plain(predicted)}.png"
            pictures.save(pictures.grid(self.x_adv[i : i + 1], scale=1, gap=0), folder / IMAGES / name)
            files[i] = f"{IMAGES}/{name}"
        pictures.save(self.picture(), folder / PICTURES)
        result = self.to_json(files)
        atomic_write(folder / RESULTS, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result

    def _predicted(self, probabilities: Tensor) -> dict[str, Any]:
        sure, label = probabilities.max(0)
        return {"label": self.labels[int(label)], "probability": float(sure)}


def demonstrate(
    classifier: Classifier,
    data: ImageSet,
    attack: str,
    *,
    norm: str | None = None,
    eps: float | None = None,
    target: str | None = None,
    count: int = 8,
    seed: int = 0,
    options: Mapping[str, str] | None = None,
) -> Demonstration:
    """Attack a few images and keep everything there is to see.

    Args:
        classifier: any, its labels matched with the data's as ``match_labels`` does.
        data: labelled images of a size that it takes.
        attack: a name in ``ATTACKS``.
        norm, eps: None for the attack's own defaults; eps is for attacks of a fixed size only.
        target: a class name to be reached; then images of that class are left out.
        count: images, drawn at random from all without repetition.
        seed: of the draw and of the attack.
        options: the attack's own settings by name, as text.

    Raises:
        InputError: an unknown attack, norm, class or setting, or one that the attack does not have.
    """
    function = ATTACKS.find(attack)
    settings = read_options(attack, function, norm, eps, options or {})
    if count < 1:
        raise InputError(f"-n {count} leaves nothing to attack: give 1 or more")
    y = match_labels(classifier, data)
    aim = None
    allowed = np.arange(len(data))
    if target is not None:
        if target not in classifier.labels:
            raise InputError(f"unknown class {target!r} to aim at: {nearest(target, classifier.labels)}")
        aim = classifier.labels.index(target)
        allowed = allowed[y.numpy() != aim]
        if not len(allowed):
            raise InputError(f"all images are of the class {target!r} that is aimed at: give others, or another class")
    rows = np.random.RandomState(seed % 2**32).permutation(allowed)[:count]
    x, y = data.pixels(rows).to(classifier.device), y[torch.from_numpy(rows)].to(classifier.device)
    wanted = y if aim is None else torch.full_like(y, aim)
    with classifier.ready():
        clean = classifier.logits(x).softmax(1)
        meter, targeted = Meter(classifier), aim is not None
        x_adv = function(classifier, x, wanted, targeted=targeted, seed=seed, ids=torch.from_numpy(rows), **settings)
        passes = meter.read()
        took = passes.pop("seconds")
        measured = settings.get("norm", norm or "L2")
        radius = settings.get("eps")
        checked = verified(classifier, x, x_adv, wanted, norm=measured, eps=radius, targeted=targeted)
        after = classifier.logits(x_adv).softmax(1)
    plain = Verification(**{key: value.cpu() for key, value in vars(checked).items()})
    x, x_adv, y, clean, after = (tensor.cpu() for tensor in (x, x_adv, y, clean, after))
    about = (attack, measured, radius, aim, classifier.labels)
    return Demonstration(*about, rows, x, x_adv, y, clean, after, plain, passes, took)


def read_options(
    attack: str, function: Attack, norm: str | None, eps: float | None, options: Mapping[str, str]
) -> dict[str, Any]:
    """``norm``, ``eps`` and an attack's own settings as its keyword arguments, in the types of their defaults."""
    known = inspect.signature(function).parameters
    settings: dict[str, Any] = {}
    if "norm" in known:
        settings["norm"] = check_norm(norm or known["norm"].default, NORMS, attack)
    elif norm is not None:
        raise InputError(f"{attack} knows no norm: leave --norm out")
    if "eps" in known:
        usual = known["eps"].default
        if eps is None and usual is not None and norm not in (None, known["norm"].default):
            raise InputError(f"{attack} in {norm} has no usual size: give --eps")
        if eps is not None or usual is not None:
            settings["eps"] = usual if eps is None else eps
    elif eps is not None:
        raise InputError(f"{attack} looks for the nearest adversarial image itself: leave --eps out")
    simple = int | float | str | None
    own = [name for name, each in known.items() if name not in _COMMON and isinstance(each.default, simple)]
    for name, text in options.items():
        if name not in own:
            has = nearest(name, own) if own else "it has none"
            raise InputError(f"{attack} has no setting {name!r}: {has}")
        settings[name] = _read(attack, name, text, known[name].default)
    return settings


def _read(attack: str, name: str, text: str, usual: Any) -> Any:
    """A setting in the type of its default; of those without one, a number or else the text."""
    if isinstance(usual, str):
        return text
    kinds = tuple(kind for kind in (int, float) if usual is None or isinstance(usual, kind))
    for kind in kinds:
        with suppress(ValueError):
            return kind(text)
    wanted = "a whole number" if kinds == (int,) else "a number"
    example = f"{name}={1 if usual is None else usual}"
    raise InputError(f"{attack}: {name}={text} is not {wanted}: give for example {example}")


def _plain(name: str) -> str:
    """A class name as a part of a file name."""
    return re.sub(r"[^\w]+", "-", name).strip("-_")[:32] or "class"
