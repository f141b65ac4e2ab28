"""Make ``src/sfumato/packaged/clothes/clothes.npz``, the built-in set ``clothes``, from the files of Fashion-MNIST.

    python tools/make_clothes.py [FOLDER]

FOLDER holds the four .gz files; by default it is where the Debian package ``dataset-fashion-mnist`` puts them. The same
1,000 training and 200 test images of each class are chosen every time, and the file that is written is the same to the
byte: its members have a fixed date and are compressed by bzip2, whose output does not depend on the library's version.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from sfumato.data.builtin import ARTICLES, CLOTHES, DEBIAN, read_idx

EACH = {"train": 1000, "test": 200}  # images of each class
START = {"train": "train", "test": "t10k"}  # of the names of the four files
DATE = (2017, 8, 25, 0, 0, 0)  # of every member: when Fashion-MNIST was published


def chosen(labels: np.ndarray, each: int) -> np.ndarray:
    """The rows, in ascending order, of ``each`` images of every class; (N,) integers."""
    draw = np.random.RandomState(0)  # this generator's numbers never change between versions
    rows = [draw.permutation(np.flatnonzero(labels == k))[:each] for k in range(len(ARTICLES))]
    return np.sort(np.concatenate(rows))


def make(folder: Path) -> bytes:
    """The .npz file, from the four files in ``folder``."""
    arrays = {}
    for split, each in EACH.items():
        x, y = (read_idx(folder / f"{START[split]}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        rows = chosen(y, each)
        arrays |= {f"x_{split}": x[rows], f"y_{split}": y[rows]}  # (N, 28, 28) and (N,) uint8
    arrays["classes"] = np.array(ARTICLES)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            about = zipfile.ZipInfo(f"{name}.npy", DATE)
            about.create_system = 3  # otherwise the system's own number
            archive.writestr(about, member.getvalue(), zipfile.ZIP_BZIP2, 9)
    return packed.getvalue()


if __name__ == "__main__":
    content = make(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN)
    CLOTHES.parent.mkdir(parents=True, exist_ok=True)
    CLOTHES.write_bytes(content)
    print(f"{CLOTHES}: {len(content):,} bytes")
