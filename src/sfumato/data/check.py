"""What is in a data source, before anything is trained on it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sfumato.data.decode import Decoded, Notify
from sfumato.data.fit import Size, check_fit, check_size
from sfumato.data.imageset import ImageSet
from sfumato.data.sources import SPLITS, DataSource, decode, load

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WITHOUT = 5  # images without a caption that are named to people


@dataclass(frozen=True)
class CaptionReport:
    """The captions of a set. Lengths are in characters; words are counted by the captions that they occur in."""

    images: int  # with a caption
    distinct: int  # different captions
    texts: int  # different texts in all, with those for variation in training
    shortest: str
    longest: str
    words: int  # different ones, upper and lower case taken together
    words_once: int  # in one caption only
    words_often: int  # in three or more
    without: list[tuple[str, str]]  # (name, why) of images left out for want of a caption, all of them

    def lines(self) -> list[str]:
        """The report for people, a fact a line."""
        text = [f"captions: {self.images}, {self.distinct} different"]
        if self.texts > self.distinct:
            text[0] += f"; with variants to train with {self.texts} different texts"
        text.append(
            f"caption length: {len(self.shortest)} ({self.shortest[:40]!r}) to {len(self.longest)} characters "
            f"({self.longest[:40] + '...' * (len(self.longest) > 40)!r})"
        )
        once = f"{self.words_once} in one caption only, {self.words_often} in three or more"
        text.append(f"caption words: {self.words} different, {once}")
        if self.without:
            text.append(f"left out without a caption: {len(self.without)}")
            text += [f"  {name}: {why}" for name, why in self.without[:_WITHOUT]]
            text += [f"  and {len(self.without) - _WITHOUT} more"] * (len(self.without) > _WITHOUT)
        return text


@dataclass(frozen=True)
class Report:
    """What ``check`` found. Sizes are (width, height) as stored in the files; ``suggested_size`` is (H, W)."""

    name: str
    count: int  # readable images
    classes: dict[str, int]  # images by class, over both splits; empty when unlabelled
    splits: dict[str, int]  # images by split
    shared: bool  # True: too few images for a test split, the same ones serve as both
    smallest: tuple[int, int]  # by the shorter side
    median: tuple[float, float]  # of the widths and of the heights
    largest: tuple[int, int]
    common_sizes: list[tuple[tuple[int, int], int]]  # the five most common, with their counts
    modes: dict[str, int]  # Pillow's names: L grey, RGB, P palette, ...
    channels: int  # after decoding
    unreadable: list[tuple[str, str]]  # (name, why), all of them
    duplicates: int  # images whose pixels are those of another one
    suggested_size: tuple[int, int]  # (H, W) that is used when none is given
    remarks: list[str]  # what else is not used, and why
    captions: CaptionReport | None = None  # None when uncaptioned

    def lines(self) -> list[str]:
        """The report for people, a fact a line."""
        kind = f"{len(self.classes)} classes" if self.classes else "captioned" if self.captions else "no labels"
        text = [f"{self.name}: {self.count} images, {kind}"]
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        text.append("splits: " + ("the same images for training and test" if self.shared else parts))
        if len(self.common_sizes) == 1:
            text.append(f"sizes: all {_by(self.smallest)}")
        else:
            common = ", ".join(f"{_by(size)} ({count})" for size, count in self.common_sizes)
            span = f"{_by(self.smallest)} to {_by(self.largest)}, median {_by(self.median)}"
            text.append(f"sizes: {span}; most common {common}")
        text.append("modes: " + ", ".join(f"{mode} ({count})" for mode, count in self.modes.items()))
        text.append(f"default: {self.suggested_size[1]}x{self.suggested_size[0]}, {self.channels} channel(s)")
        text += [f"class {name}: {count}" for name, count in self.classes.items()]
        text += self.captions.lines() if self.captions else []
        if self.duplicates:
            text.append(f"duplicates: {self.duplicates} images repeat another one pixel by pixel")
        if self.unreadable:
            text.append(f"unreadable: {len(self.unreadable)}")
            text += [f"  {name}: {why}" for name, why in self.unreadable]
        return text + [f"note: {remark}" for remark in self.remarks]

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, numbers and strings."""
        return asdict(self)


def check(
    source: DataSource, *, size: int | tuple[int, int] | None = None, fit: str = "crop", progress: Notify | None = None
) -> Report:
    """Decode all of ``source`` and report on it; ``size``, ``fit``, ``progress`` and errors as in :func:`load`.

    What is decoded stays in the cache: training with the same size and fit starts at once.
    """
    wanted = None if size is None else check_size(size)
    decoded = decode(source, wanted, check_fit(fit), progress)
    if decoded is not None:
        return _of_files(decoded)
    # At native size: what is in the data is asked, not what a resizing makes of it.
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        sets = [source] if isinstance(source, ImageSet) else [load(source, split=split) for split in SPLITS]
    remarks = dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
    return _of_arrays(sets, wanted, list(remarks))


def _of_files(decoded: Decoded) -> Report:
    notes = decoded.notes
    sizes = [(int(w), int(h)) for w, h in notes["sizes"]]
    counts = Counter(decoded.labels.tolist())
    train = len(sizes) if notes["shared"] else notes["train"]
    splits = {split: n for split, n in (("train", train), ("test", len(sizes) - train)) if n}
    return Report(
        name=decoded.name,
        count=len(sizes),
        classes={label: counts[i] for i, label in enumerate(decoded.classes)},
        splits=splits,
        shared=notes["shared"],
        smallest=min(sizes, key=lambda s: (min(s), s)),
        median=(median(w for w, _ in sizes), median(h for _, h in sizes)),
        largest=max(sizes, key=lambda s: (min(s), s)),
        common_sizes=Counter(sizes).most_common(5),
        modes=notes["modes"],
        channels=decoded.images.shape[-1],
        unreadable=[(entry, why) for entry, why in notes["unreadable"]],
        duplicates=notes["duplicates"],
        suggested_size=tuple(notes["suggested"]),
        remarks=decoded.remarks,
        captions=_of_captions(decoded.captions or (), decoded.uncaptioned),
    )


def _of_arrays(sets: Sequence[ImageSet], size: Size | None, remarks: list[str]) -> Report:
    first = sets[0]
    shared = len(sets) == 2 and first.fingerprint() == sets[1].fingerprint()
    sets = sets[:1] if shared else sets
    height, width = first.size
    counts = sum((Counter(s.labels.tolist()) for s in sets if s.labels is not None), Counter[int]())
    seen = {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for s in sets for image in s.images}
    count = sum(len(s) for s in sets)
    return Report(
        name=first.name,
        count=count,
        classes={name: counts[i] for i, name in enumerate(first.classes)},
        splits={s.split: len(s) for s in sets},
        shared=shared,
        smallest=(width, height),
        median=(width, height),
        largest=(width, height),
        common_sizes=[((width, height), count)],
        modes={_MODES[first.channels]: count},
        channels=first.channels,
        unreadable=[],
        duplicates=count - len(seen),
        suggested_size=size or first.size,
        remarks=remarks,
        captions=_of_captions([texts for s in sets for texts in s.captions or ()], []),
    )


def _of_captions(captions: Sequence[Sequence[str]], without: list[tuple[str, str]]) -> CaptionReport | None:
    if not captions:
        return None
    first = [texts[0] for texts in captions]
    words = Counter(word for text in first for word in set(re.findall(r"\w+", text.lower())))
    return CaptionReport(
        images=len(captions),
        distinct=len(set(first)),
        texts=len({text for texts in captions for text in texts}),
        shortest=min(first, key=len),
        longest=max(first, key=len),
        words=len(words),
        words_once=sum(n == 1 for n in words.values()),
        words_often=sum(n >= 3 for n in words.values()),
        without=without,
    )


def _by(size: tuple[float, float]) -> str:
    return f"{size[0]:g}x{size[1]:g}"
