"""What ``sample``, ``film``, ``edit`` and ``vary`` share: from their options to the library's, and from images to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.options import Common, Conditions, Guided, check_count, check_file, check_folder
from sfumato.cli.pictures import PICTURES, save_array

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MOST_COLUMNS = 16  # of a grid with a column for each label


@dataclass(frozen=True)
class Request:
    """A loaded model and what is asked of it.

    Args:
        generator: a Generator, or the model of a recipe.
        count: of images.
        condition: ``n``, ``label`` and ``prompt``, one for each image.
        how: ``sampler``, ``steps``, ``guidance``, ``seed``, and ``weak`` where one was given.
        result: the same as JSON.
        turns: the labels and prompts that were asked for, as they were.
    """

    generator: Any
    count: int
    condition: dict[str, Any]
    how: dict[str, Any]
    result: dict[str, Any]
    turns: Conditions

    def write(self, out: str, pixels: Tensor, classes: Sequence[str]) -> None:
        """The (N, C, H, W) images and what they show; ``classes`` is () where that is of no class."""
        prompts, turns = self.condition["prompt"] or (), self.turns
        rows = turns.prompt if turns.prompt and len(turns.prompt) > 1 else ()
        labels = self.generator.labels(self.count, self.condition["label"]).tolist() if classes else ()
        columns = self.count // len(rows) if rows else columns_of(self.count, len(turns.label or classes))
        Sampled(pixels, classes, labels, prompts, columns, rows).write(out)


def request(model: str | None, count: int, turns: Conditions, sampling: Guided, common: Common) -> Request:
    """Load a model, None being the packaged one, and resolve the options for it."""
    check_count(count)
    from sfumato.generator import Generator, packaged
    from sfumato.recipes import load

    generator = load(model or packaged(), common.device)
    how: dict[str, Any] = {**sampling.of(), "guidance": sampling.guided(generator), "seed": common.seed}
    result = {**how, "guidance": vars(how["guidance"])}
    if weak := getattr(sampling, "weak", None):
        how["weak"] = Generator.from_pretrained(weak, common.device)
    condition = turns.of(count)
    result |= {"count": condition["n"], "labels": turns.label, "prompts": turns.prompt, "weak": weak}
    return Request(generator, condition["n"], condition, how, result, turns)


def images(count: int) -> str:
    return f"{count} image{'s' if count > 1 else ''}"


# -- files ------------------------------------------------------------------------------------------------------------


def check_images(out: str) -> None:
    """Refuse an output of ``write_images`` that cannot be."""
    if _is_folder(out):
        check_folder(Path(out))
    else:
        check_file(Path(out), (*PICTURES, ".npz"))


@dataclass(frozen=True)
class Sampled:
    """Images and what they were conditioned on.

    Args:
        pixels: (N, C, H, W) in [0, 1].
        classes: names of the labels; () where there are none to tell.
        labels: the number of each image's class.
        prompts: the text of each image.
        columns: of the grid; None is nearly square.
        rows: the text beside each row of the grid.
    """

    pixels: Tensor
    classes: Sequence[str] = ()
    labels: Sequence[int] = ()
    prompts: Sequence[str] = ()
    columns: int | None = None
    rows: Sequence[str] = ()

    def write(self, out: str) -> None:
        """Into a folder, one file an image; an .npz, which ``--data`` reads; or one picture, a grid."""
        from sfumato.core import pictures

        if _is_folder(out):
            names = self.prompts or [self.classes[i] for i in self.labels if self.classes]
            _write_folder(Path(out), pictures.to_bytes(self.pixels), names)
        elif out.lower().endswith(".npz"):
            self._write_npz(Path(out))
        else:
            grid = pictures.grid(self.pixels, self.columns)
            pictures.save(pictures.named_rows(grid, self.rows) if self.rows else grid, Path(out))

    def _write_npz(self, path: Path) -> None:
        """``images`` (N, H, W, C) uint8 with ``labels`` (N,) int64 and ``classes``, or ``captions``."""
        import numpy as np

        from sfumato.core.files import atomic
        from sfumato.core.pictures import to_bytes

        arrays: dict[str, Any] = {"images": to_bytes(self.pixels)}
        if self.classes:
            arrays |= {"labels": np.array(self.labels, np.int64), "classes": np.array(self.classes)}
        if self.prompts:
            arrays["captions"] = np.array(self.prompts)
        with atomic(path) as beside:
            np.savez_compressed(beside, **arrays)


def columns_of(count: int, turns: int) -> int | None:
    """Columns of a nearly square grid, such that each holds one of the ``turns`` labels; None where that cannot be."""
    if not 1 < turns <= min(count, MOST_COLUMNS):
        return None
    return turns * max(1, round(count**0.5 / turns))


def _is_folder(out: str) -> bool:
    return out.endswith("/") or Path(out).is_dir()


def _write_folder(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """One file an image, ``00007-sneaker.png``; images (N, H, W, C) uint8, their labels or prompts if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        name = "-" + "".join(c if c.isalnum() else "-" for c in names[i])[:60] if names else ""
        save_array(image, folder / f"{i:05d}{name}.png")
