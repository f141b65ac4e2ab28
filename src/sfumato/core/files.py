"""Writing files so that nobody ever sees half of one: to a hidden file beside, then one rename."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sfumato.core.errors import InputError

_DAY = 86_400  # seconds

_REASONS = {
    errno.EEXIST: "that is a file, not a folder: give another path",
    errno.ENOSPC: "no space is left on the disk: free some, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "the file is larger than this disk allows: write elsewhere",
    errno.EACCES: "permission denied: choose a place that you may write to",
    errno.EPERM: "permission denied: choose a place that you may write to",
    errno.EROFS: "the disk is read-only: choose a place that you may write to",
    errno.EISDIR: "that is a folder: give the name of a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder: give another path",
    errno.ENOENT: "its folder does not exist: make the folder first, or give another path",
    errno.ENAMETOOLONG: "the name is too long: give a shorter one",
    errno.EIO: "the disk reported an error: check it, or write elsewhere",
}


@contextmanager
def atomic(path: str | Path) -> Generator[Path]:
    """Yield a hidden temporary path beside ``path`` (same suffix); rename it to ``path`` when the block ends well.

    When the block raises, ``path`` is as it was and the temporary file is removed. A symbolic link is written
    through. A full disk, a missing folder, missing permission, a read-only disk or a path that is a folder raise
    InputError naming ``path``. Errors that are not about this file pass through unchanged.

    >>> with atomic("notes.txt") as temporary:          # doctest: +SKIP
    ...     temporary.write_text("all or nothing")
    """
    target = Path(os.path.realpath(path))
    _refuse_special(path, target)
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}{target.suffix[:16]}")
    try:
        with _explained(path, temporary):
            # Made here, not by the block: a place that cannot be written to is known before any work is done,
            # and the file gets the rights that the user's umask asks for, whatever library fills it.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            _sweep(target)
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, whole or not at all; the errors are those of :func:`atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def why_not_written(path: str | Path, error: BaseException) -> InputError | None:
    """The sentence for ``error``, raised while ``path`` was written; None when it is not a matter of the disk.

    Libraries written in Rust (safetensors) raise their own types that end in ``(os error 28)``: those count too.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    reason = _REASONS.get(number) if number is not None else None
    return InputError(f"cannot write {str(path)!r}: {reason}") if reason else None


@contextmanager
def _explained(path: str | Path, temporary: Path) -> Generator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told: list[str | None] = [getattr(error, "filename", None), getattr(error, "filename2", None)]
        named = [f for f in told if f is not None]
        ours = not named or any(os.fspath(f) == str(temporary) for f in named)
        sentence = why_not_written(path, error) if ours else None
        if sentence is None:
            raise
        raise sentence from error


def _refuse_special(path: str | Path, target: Path) -> None:
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return  # not there yet, or not reachable: making the temporary file will say so
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot write {str(path)!r}: {_REASONS[errno.EISDIR]}")
    if not stat.S_ISREG(mode):  # a rename would put a file in the place of the device or pipe
        raise InputError(f"cannot write {str(path)!r}: it is not an ordinary file; give the name of one")


def _prefix(target: Path) -> str:
    """How the temporary files of ``target`` made on this machine begin; short, for a name may already be long."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    return f".sfumato-{name}-{host}-"


def _sweep(target: Path) -> None:
    """Remove what killed writers of ``target`` left: their process is gone, or a day has passed."""
    mine = _prefix(target)
    any_host = mine.rsplit("-", 2)[0] + "-"
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            if not entry.name.startswith(any_host):
                continue
            process = entry.name.removeprefix(mine).split("-")[0] if entry.name.startswith(mine) else ""
            gone = os.name == "posix" and process.isdigit() and not _alive(int(process))
            if gone or time.time() - entry.stat().st_mtime > _DAY:
                with suppress(OSError):
                    os.unlink(entry.path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # someone else's process, or no number of a process at all: leave the file alone
        return True
    return True


def _flush(temporary: Path) -> None:
    """Bytes before name: after a power cut the new name must not stand over an empty file."""
    handle = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; the errors are those of :func:`atomic`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise why_not_written(path, error) or InputError(f"cannot make the folder {str(path)!r}: {error}") from error


def finite(value: Any) -> Any:
    """JSON has no nan: null stands for it."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, tuple | list):
        return [finite(v) for v in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
