"""A measured run: one thread, seconds of the processor, trainings in a process of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

STATS = "stats.json"
FASHION = "fashion-mnist"
ROOT = Path(__file__).parents[2]


def options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark is asked."""
    parser.add_argument("--threads", type=int, default=1, help="1: times are those of the processor; 0: torch's choice")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=runs_folder(), help="folder for trained models (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure again what is recorded already")


def runs_folder() -> Path:
    """Where trained models are kept: in $SFUMATO_CACHE, else in the system's temporary folder."""
    return Path(os.environ.get("SFUMATO_CACHE") or tempfile.gettempdir()) / "sfumato-benchmarks"


def begin(threads: int) -> None:
    """Use this many threads, here and in processes started from here.

    With one, budgets and times of this process are seconds of the processor, so that other work on the machine does not
    matter; with more, a second of the clock holds several of the processor.
    """
    if threads > 0:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        time.perf_counter = time.process_time


def used_up(steps: Iterator[Any]) -> Any:
    """A training to its end; its last progress, None where nothing was left to do."""
    return next(iter(deque(steps, maxlen=1)), None)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and seconds of the processor."""
    began = time.process_time()
    return work(), time.process_time() - began


def train_apart(
    arm: str,
    seconds: float,
    seed: int,
    out: Path,
    *,
    data: str = FASHION,
    size: int = 32,
    fit: str = "pad",
    again: bool = False,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The stats of a training in a fresh process; those of an earlier one where ``out`` holds it, unless ``again``."""
    if out.exists() and (again or not (out / STATS).exists()):
        shutil.rmtree(out)
    if not out.exists():
        data = str(Path(data).absolute()) if Path(data).exists() else data
        command = [sys.executable, "-m", "benchmarks.arms", arm, "--seconds", str(seconds), "--seed", str(seed)]
        command += ["--threads", str(torch.get_num_threads()), "--out", str(out), "--data", data]
        command += ["--size", str(size), "--fit", fit]
        command += [f"--set={key}={value}" for key, value in (settings or {}).items()]
        subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((out / STATS).read_text())


def machine() -> dict[str, Any]:
    """CPU model, cores, memory in GiB, versions and threads, ready for JSON."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> float:
    """The most resident memory this process has had, in MiB."""
    # getrusage also counts the parent's memory before exec, so the kernel's own mark comes first.
    if mark := _field("/proc/self/status", "VmHWM"):
        return int(mark.split()[0]) / 1024
    import resource

    unit = 2**20 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _field(file: str, name: str) -> str:
    """The first value of ``name`` in a file of "name : value" lines; "" where there is none."""
    if not Path(file).exists():
        return ""
    lines = (line.split(":", 1) for line in Path(file).read_text().splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), "")
