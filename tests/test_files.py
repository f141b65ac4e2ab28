"""Atomic writing, and pictures: the file is whole or as it was, and nothing else stays in the folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.disk import no_file_over
from sfumato.core import files
from sfumato.core.errors import InputError
from sfumato.core.files import atomic, atomic_write
from sfumato.core.pictures import grid, named_rows, save, to_bytes


@settings(max_examples=40, deadline=None)
@given(old=st.none() | st.binary(max_size=50), new=st.binary(max_size=5000), fails=st.booleans())
def test_atomic_write_is_all_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, fails: bool
) -> None:
    folder = tmp_path_factory.mktemp("w")
    path = folder / "x.bin"
    if old is not None:
        path.write_bytes(old)
    if fails:
        with pytest.raises(KeyError), atomic(path) as temporary:
            temporary.write_bytes(new)
            assert (path.read_bytes() if path.exists() else None) == old  # untouched while the new one is written
            raise KeyError
        assert (path.read_bytes() if path.exists() else None) == old
    else:
        atomic_write(path, new)
        assert path.read_bytes() == new
    assert [f.name for f in folder.iterdir()] == (["x.bin"] if path.exists() else [])


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with no_file_over(1000), pytest.raises(InputError, match=r"x\.bin.*larger than this disk allows"):
        atomic_write(path, bytes(5000))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left"),
        (OSError(errno.EACCES, "Permission denied"), "permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (RuntimeError("I/O error (os error 28)"), "no space is left"),  # as Rust's libraries say it
    ],
)
def test_what_the_disk_refuses_is_one_sentence_with_the_path(tmp_path: Path, error: Exception, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught, atomic(tmp_path / "x.bin"):
        raise error
    assert "x.bin" in str(caught.value) and not list(tmp_path.iterdir())


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x.bin"):
        (tmp_path / "other.txt").read_text()
    with pytest.raises(ValueError, match="mine"), atomic(tmp_path / "x.bin"):
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("name", "match"),
    [(".", "that is a folder"), ("no/x", "does not exist"), ("file/x", "not a folder"), ("x" * 300, "too long")],
)
def test_impossible_paths(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=match):
        atomic_write(tmp_path / name, b"x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        atomic_write(tmp_path / "pipe", b"x")


@pytest.mark.skipif(os.name != "posix", reason="rights and links as POSIX has them")
def test_links_are_written_through_and_the_umask_holds(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "x.txt")
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "link.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "x.txt").read_text() == "text"
    assert (tmp_path / "real" / "x.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        atomic_write(tmp_path / "x.bin", b"x")


@pytest.mark.skipif(os.name != "posix", reason="kill as POSIX has it")
def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from sfumato.core.files import atomic\n"
        "with atomic(sys.argv[1]) as t:\n    t.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False).returncode == -9
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_grid_places_every_pixel() -> None:
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    picture = np.asarray(grid(images, columns=2, scale=3, gap=1))
    assert picture.shape == (3 * (12 + 1) + 1, 2 * (18 + 1) + 1, 3)
    for i in range(5):
        y, x = 1 + i // 2 * 13, 1 + i % 2 * 19
        tile = picture[y : y + 12, x : x + 18]
        expected = np.kron(np.rint(images[i].permute(1, 2, 0).numpy() * 255), np.ones((3, 3, 1)))
        assert np.array_equal(tile, expected)
    assert (picture[-12:, -18:] == 255).all() and (picture[:, 0] == 255).all()  # the sixth place, and the gap: white


def test_grid_of_small_images_can_be_seen_and_transparency_is_white() -> None:
    for side in (8, 28, 32, 64):
        width = grid(np.zeros((1, side, side, 1), np.uint8), gap=0).width
        assert 64 <= width <= 96 and width % side == 0
    assert grid(np.zeros((1, 200, 200, 3), np.uint8), gap=0).size == (200, 200)
    clear = np.zeros((1, 8, 8, 4), np.uint8)
    assert np.unique(np.asarray(grid(clear))).tolist() == [255]


@pytest.mark.parametrize("side", [14, 90])
def test_names_stand_beside_their_rows(side: int) -> None:
    names = ["cat", "a blue cat with a very long tail in the rain", "x" * 60]
    picture = Image.new("RGB", (40, side * len(names)), "red")
    named = np.asarray(named_rows(picture, names))
    margin = named.shape[1] - 40
    assert (named[:, margin:] == (255, 0, 0)).all()
    inked = [(row < 128).any((1, 2)) for row in np.split(named[:, :margin], len(names))]
    heights = [int(np.ptp(np.flatnonzero(rows))) for rows in inked]
    assert all(0 < height < side for height in heights)  # each in its own row
    assert (heights[1] > 1.5 * heights[0]) == (side == 90)  # in several lines where there is room


def test_to_bytes_clips_and_refuses() -> None:
    values = torch.tensor([-1.0, 0.5, 2.0, float("nan")]).reshape(1, 1, 2, 2)
    assert to_bytes(values).reshape(-1).tolist() == [0, 128, 255, 0]
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(0, 3, 8, 8), np.zeros((1, 8, 8, 3))):
        with pytest.raises(InputError):
            to_bytes(wrong)
    with pytest.raises(InputError, match="columns"):
        grid(torch.zeros(1, 1, 8, 8), columns=0)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_save_by_suffix(tmp_path: Path, suffix: str, mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (40, 80, 120, 255)).convert(mode)
    save(image, tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as back:
        assert back.format == {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix.lower(), suffix[1:].upper())
        difference = np.abs(np.asarray(back.convert("RGB")).astype(int) - np.asarray(image.convert("RGB")))
    assert difference.max() <= 4 and len(list(tmp_path.iterdir())) == 1


def test_save_refuses_what_cannot_work(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    refused = {"x.txt": "is no picture's", "x": "is no picture's", "no/x.png": "does not exist", ".": "folder"}
    for name, match in refused.items():
        with pytest.raises(InputError, match=match):
            save(image, tmp_path / name)
    with pytest.raises(InputError, match="WEBP cannot hold"):
        save(Image.new("L", (20_000, 2)), tmp_path / "x.webp")
    (tmp_path / "x.png").write_bytes(b"old")
    with no_file_over(1000), pytest.raises(InputError, match="larger than this disk"):
        save(image, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
