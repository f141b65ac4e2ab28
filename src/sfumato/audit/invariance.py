"""What a person would not notice must not matter: accuracy under small shifts, turns, light, blur and JPEG.

No norm ball holds these changes (a shift by one pixel changes almost every pixel), so a model may be robust within one and
still fail here: norms ignore what is known about pictures. Beside each change at random stands the worst of a grid for
every image (Engstrom et al. 2019, arXiv 1712.02779), and at the end the worst of all of them, alone and together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.attacks.batching import checked
from sfumato.attacks.corruptions import corrupt
from sfumato.attacks.losses import margin
from sfumato.attacks.spatial import rigid
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.errors import InputError
from sfumato.core.parts import StepResult
from sfumato.core.streams import Streams, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

# The bounds: shown both pictures one after the other, a person would call them the same.
SHIFT = 0.07  # of the shorter side (2 pixels of 28): cropping by hand is no more exact
DEGREES = 10.0  # a hand-held camera is hardly straighter
LIGHT = 1.25  # at most so many times brighter or darker: half an exposure step is 1.41, and eyes adapt to far more
CONTRAST = 1.33  # at most so many times stronger or weaker: screens differ by more
BLUR = 2  # severity of CIFAR-10-C: a Gaussian of 0.6 pixels, as enlarging a picture slightly gives
JPEG = 3  # severity of CIFAR-10-C: quality 58, as messengers send pictures
TRIALS = 50  # random combinations of all of them for each image

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Change:
    """One change: each field a number, or (B,) numbers, one an image. The defaults leave the image as it is.

    Applied in the order of a camera: where it stands, the light, the lens, the file.

    Args:
        right, down: shift in pixels; the edge pixels repeat where nothing was.
        degrees: turn counter-clockwise.
        light: factor of all pixels.
        contrast: factor of the distance from the image's mean.
        blur, jpeg: severity as in ``attacks.corruptions``; 0 is none.
    """

    right: float | Tensor = 0.0
    down: float | Tensor = 0.0
    degrees: float | Tensor = 0.0
    light: float | Tensor = 1.0
    contrast: float | Tensor = 1.0
    blur: int | Tensor = 0
    jpeg: int | Tensor = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], as is the result."""
        right, down, degrees = (_each(value, x) for value in (self.right, self.down, self.degrees))
        rows = (right != 0) | (down != 0) | (degrees != 0)  # the others stay exactly as they are
        moved = x.clone()
        if bool(rows.any()):
            moved[rows] = rigid(x[rows], degrees[rows], right[rows], down[rows], outside="border")
        contrast, light = (_each(value, x).reshape(-1, 1, 1, 1) for value in (self.contrast, self.light))
        mean = moved.mean((1, 2, 3), keepdim=True)
        # The difference is added, not the whole computed anew: at factor 1 not even the rounding changes.
        moved = ((moved + (contrast - 1) * (moved - mean)) * light).clamp(0, 1)
        for name, severity in (("gaussian-blur", self.blur), ("jpeg", self.jpeg)):
            severities = _each(severity, x)
            for level in severities.unique().tolist():
                rows = severities == level
                if level:
                    moved[rows] = corrupt(moved[rows], name, int(level))
        return moved

    def of(self, image: int) -> dict[str, float]:
        """What is done to one image, by name; what is not done is left out."""
        values = {key: float(v[image] if isinstance(v, Tensor) else v) for key, v in vars(self).items()}
        done = {key: round(value, 4) for key, value in values.items() if value != _NOTHING[key]}
        return {key: int(value) if value.is_integer() else value for key, value in done.items()}


_NOTHING = asdict(Change())


@dataclass
class _Worst:
    """For each image the change so far at which the classifier errs most, and whether it erred at any."""

    wrong: Tensor  # (B,) bool
    margin: Tensor  # (B,) above 0 where it errs
    change: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def start(like: Tensor) -> _Worst:
        wrong, lowest = like.new_zeros(len(like), dtype=torch.bool), like.new_full((len(like),), -torch.inf)
        return _Worst(wrong, lowest, [{} for _ in like])

    def offer(self, wrong: Tensor, value: Tensor, change: Callable[[int], dict[str, float]]) -> None:
        better = (wrong & ~self.wrong) | ((wrong == self.wrong) & (value > self.margin))
        self.wrong, self.margin = self.wrong | wrong, torch.where(better, value, self.margin)
        for i in better.nonzero().flatten().tolist():
            self.change[i] = change(i)


def measure(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    trials: int = TRIALS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Accuracy under changes that a person would not notice.

    Args:
        classifier: any.
        x: (B, C, H, W) pixels in [0, 1], C of 1 or 3.
        y: (B,) true labels.
        seed: of the random changes; each image has its own stream by its number in ``ids`` (default 0 ... B - 1).
        trials: random combinations of all changes for each image, in the last two rows.
        progress: called with (changes done, changes in all).

    Returns:
        One dictionary a row: "name"; "bounds" in words; "accuracy" with its exact 95 % interval "low" and "high"; "right"
        (B,) bool for each image; "worst", for each image the change at which the classifier errs most (by name, {}: the
        image itself), or None in rows without a search; "grid", each change of the grid with its own accuracy, or None.

        The rows: the images unchanged; each kind of change with one of its grid at random for each image, and with the
        worst of its grid for each image; all kinds together at random, and the worst of everything tried in any row.

    Raises:
        InputError: no images, images of another shape or range, labels that do not fit, fewer than 1 trial.
    """
    x, y, numbers = checked(x, y, ids)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise InputError(f"invariance is measured on images (B, 1 or 3, H, W), 1 or more, not shape {tuple(x.shape)}")
    if trials < 1:
        raise InputError(f"trials is {trials}: give 1 or more random combinations for each image")
    kinds = grids(min(x.shape[2:]))
    total = sum(len(changes) for _, changes in kinds.values()) + trials
    done = itertools.count(1)
    everything = _Worst.start(x)

    def tried(change: Change) -> tuple[Tensor, Tensor]:
        """(B,) whether the classifier is wrong, and (B,) the margin."""
        logits = classifier.logits(change(x)).to(x.device)
        if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
            problem = f"labels run from {int(y.min())} to {int(y.max())}, the classifier has {logits.shape[1]} classes"
            raise InputError(f"{problem}: give labels of its own")
        wrong, value = logits.argmax(1) != y, margin(logits, y).to(x.dtype)
        everything.offer(wrong, value, change.of)
        if progress is not None:
            progress(next(done), total)
        return wrong, value

    with classifier.ready():
        rows: list[dict[str, Any]] = []
        for salt, (name, (bounds, changes)) in enumerate(kinds.items(), start=1):
            worst, wrongs = _Worst.start(x), []
            for change in changes:
                wrong, value = tried(change)
                worst.offer(wrong, value, change.of)
                wrongs.append(wrong)
            if not rows:  # each grid begins with the image itself
                rows.append(_row("unchanged", "the images as they are", wrongs[0]))
            table = torch.stack(wrongs)  # (changes, B)
            drawn = streams_for(x, seed, numbers, salt=salt).integers(len(changes))  # (B,)
            rows.append(_row(f"{name}, random", bounds, table.gather(0, drawn[None])[0]))
            alone = [{"change": each.of(0), **_accuracy(wrong)} for each, wrong in zip(changes, wrongs, strict=True)]
            found = _row(f"{name}, worst of {len(changes)}", bounds, worst.wrong)
            rows.append({**found, "worst": worst.change, "grid": alone})
        streams = streams_for(x, seed, numbers)
        combined = [tried(change)[0] for change in _combinations(streams, min(x.shape[2:]), trials, x)]
    rows.append(_row("everything, random", "all of the above together", combined[0]))
    bounds = f"all of the above, alone and in {trials} random combinations for each image"
    rows.append({**_row("everything, worst found", bounds, everything.wrong), "worst": everything.change})
    return rows


def measured(classifier: Classifier, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> StepResult:
    """What ``measure`` finds on some images: ``right`` (rows, B), and for each row its name and counts."""
    rows = measure(classifier, x, y, seed=seed, ids=ids)
    right = torch.tensor([row["right"] for row in rows])
    plain = []
    for row in rows:
        counts = [{"change": it["change"], "correct": round(it["accuracy"] * len(x))} for it in row["grid"] or ()]
        plain.append({"name": row["name"], "bounds": row["bounds"], "grid": counts})
    return StepResult({"right": right}, {"rows": plain})


def joined(parts: list[StepResult]) -> tuple[list[dict[str, Any]], Tensor]:
    """The rows of the report, each with accuracy and interval, and ``right`` (rows, N).

    Of a row with a search, ``worst`` is the single change at which fewest images are right: ``{change, accuracy}``.
    """
    right = torch.cat([part.tensors["right"] for part in parts], 1)
    count = right.shape[1]
    rows = []
    for index, row in enumerate(parts[0].numbers["rows"]):
        grids = [part.numbers["rows"][index]["grid"] for part in parts]
        correct = [sum(each["correct"] for each in same) for same in zip(*grids, strict=True)]
        worst = None
        if correct:
            place = correct.index(min(correct))
            worst = {"change": grids[0][place]["change"], "accuracy": correct[place] / count}
        found = Accuracy(int(right[index].sum()), count).to_json()
        rows.append({"name": row["name"], "bounds": row["bounds"], **found, "worst": worst})
    return rows, right


def grids(side: int) -> dict[str, tuple[str, list[Change]]]:
    """For images of so many pixels a side: by kind, the bounds in words and the changes, of which the first is none."""
    far = shift_of(side)
    steps = sorted({round(far * i / 2) for i in range(-2, 3)}, key=abs)
    angles = sorted((DEGREES * i / 4 for i in range(-4, 5)), key=abs)
    places = sorted(itertools.product(steps, steps), key=lambda place: abs(place[0]) + abs(place[1]))
    shifts = [Change(right=right, down=down) for right, down in places]
    contrasts = f"distance from the mean times {1 / CONTRAST:.2f} to {CONTRAST:.2f}"
    return {
        "shift": (f"up to {far} pixel{'s' * (far > 1)} along each axis", shifts),
        "rotation": (f"up to {DEGREES:g} degrees either way", [Change(degrees=angle) for angle in angles]),
        "brightness": (f"pixels times {1 / LIGHT:.2f} to {LIGHT:.2f}", [Change(light=f) for f in _factors(LIGHT)]),
        "contrast": (contrasts, [Change(contrast=f) for f in _factors(CONTRAST)]),
        "blur": ("Gaussian of up to 0.6 pixels", [Change(blur=severity) for severity in range(BLUR + 1)]),
        "jpeg": ("JPEG of quality 58 or more", [Change(jpeg=severity) for severity in range(JPEG + 1)]),
    }


def shift_of(side: int) -> int:
    """The largest shift, in whole pixels, for images of so many pixels a side."""
    return max(1, round(SHIFT * side))


def _factors(bound: float) -> list[float]:
    """1 first, then two steps either way, even in the logarithm."""
    return [1.0, bound**0.5, bound**-0.5, bound, 1 / bound]


def _combinations(streams: Streams, side: int, trials: int, like: Tensor) -> Iterator[Change]:
    """Changes of all kinds at once, each drawn anew for each image from its own stream."""
    far = shift_of(side)
    for _ in range(trials):
        yield Change(
            right=(streams.integers(2 * far + 1) - far).to(like),
            down=(streams.integers(2 * far + 1) - far).to(like),
            degrees=streams.uniform((), -DEGREES, DEGREES).to(like),
            light=LIGHT ** streams.uniform((), -1, 1).to(like),
            contrast=CONTRAST ** streams.uniform((), -1, 1).to(like),
            blur=streams.integers(BLUR + 1),
            jpeg=streams.integers(JPEG + 1),
        )


def _row(name: str, bounds: str, wrong: Tensor) -> dict[str, Any]:
    right = (~wrong).tolist()
    return {"name": name, "bounds": bounds, **_accuracy(wrong), "right": right, "worst": None, "grid": None}


def _accuracy(wrong: Tensor) -> dict[str, float]:
    found = Accuracy(int((~wrong).sum()), len(wrong))
    low, high = found.interval
    return {"accuracy": found.value, "low": low, "high": high}


def _each(value: float | Tensor, x: Tensor) -> Tensor:
    """One number an image: (B,)."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))
