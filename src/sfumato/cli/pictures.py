"""Picture files that are named on the command line, as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sfumato.ladder import Ladder

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and in the place of a folder the picture files right in it, by name.

    Raises:
        InputError: a folder without any, or one that cannot be read.
    """
    from sfumato.data.listing import listed

    found: list[Path] = []
    for path in paths:
        try:
            inside = listed(path)[1] if path.is_dir() else [path]
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read ({error.strerror}): give picture files") from None
        if not inside:
            raise InputError(
                f"{str(path)!r} is a folder without picture files: give some, or the folder that holds them"
            )
        found += inside
    return found


def read_picture(path: Path, ladder: Ladder, fit: str | None = None) -> Tensor:
    """(C, H, W) in [0, 1], of just the model's size and colours; a colour model takes grey images.

    Args:
        path: of the file.
        ladder: of the model.
        fit: how an image of another size is brought to the model's, "crop" or "pad"; None: it is refused.

    Raises:
        InputError: no picture, one of another size where ``fit`` is None, or in colour for a model of grey images.
    """
    import numpy as np
    import torch

    from sfumato.data.decode import Unreadable, open_image
    from sfumato.data.fit import fit_image

    if not path.is_file():
        raise InputError(f"{str(path)!r} is no file, or none that can be seen: give picture files")
    try:
        image = open_image(path, alpha=ladder.channels == 4)
    except Unreadable as error:
        raise InputError(f"{str(path)!r} cannot be used: {error}; give an image that opens") from None
    height, width = ladder.size
    if fit is None and image.size != (width, height):
        raise InputError(
            f"{str(path)!r} is {image.width}x{image.height}, the model makes {width}x{height}: bring it to that size, "
            "or give a model of its own"
        )
    if ladder.channels == 1 and image.mode == "RGB" and np.ptp(np.asarray(image), axis=2).any():
        raise InputError(
            f"{str(path)!r} is a colour image, the model makes grey ones: give a model that was trained on images in colour"
        )
    array = fit_image(image.convert(_MODES[ladder.channels]), ladder.size, fit or "crop")  # (H, W, C)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


def save_array(image: np.ndarray, path: Path) -> None:
    """One (H, W, C) uint8 image as a picture file."""
    from PIL import Image

    from sfumato.core.pictures import save

    save(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), path)
