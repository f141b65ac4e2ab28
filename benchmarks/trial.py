"""One training of one arm in a process of its own, so that no run finds the memory or caches of another.

Measures the training itself: steps, images, seconds and peak memory, in ``stats.json`` of the run's folder.

    .venv/bin/python -m benchmarks.trial --arm ladder --seconds 60 --seed 0 --threads 2 --out /tmp/trial
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import arms, machine

STATS = "stats.json"
FASHION = "fashion-mnist"


def runs_folder(chosen: str | None) -> Path:
    """Where trained models are kept: what was asked for, else $SFUMATO_CACHE, else the system's temporary folder."""
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("SFUMATO_CACHE") or tempfile.gettempdir()) / "sfumato-benchmarks"


def used_up(steps: Iterator[Any]) -> None:
    """A training to its end."""
    for _ in steps:
        pass


def train_apart(
    arm: str,
    seconds: float,
    seed: int,
    threads: int,
    out: Path,
    *,
    data: str = FASHION,
    again: bool = False,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The stats of a training in a fresh process; those of an earlier one where ``out`` holds it, unless ``again``."""
    if out.exists() and (again or not (out / STATS).exists()):
        shutil.rmtree(out)
    if not out.exists():
        data = str(Path(data).absolute()) if Path(data).exists() else data
        command = [sys.executable, "-m", "benchmarks.trial", "--arm", arm, "--seconds", str(seconds), "--seed", str(seed),
                   "--threads", str(threads), "--out", str(out), "--data", data]  # fmt: skip
        for key, value in (settings or {}).items():
            command += ["--set", f"{key}={value}"]
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
    return json.loads((out / STATS).read_text())


def train_here(
    arm: str, seconds: float, seed: int, out: Path, settings: Mapping[str, str], name: str = FASHION
) -> dict[str, Any]:
    """Train in this process and write the stats, last of all: a folder with stats holds a whole run."""
    from benchmarks.features import training_data

    extra = {"settings": settings} if settings else {}
    data, began = training_data(name), time.process_time()
    stats = arms.find(arm).train(data, seconds, seed, out, **extra)
    stats = {
        **stats,
        "arm": arm,
        "seed": seed,
        "settings": dict(settings),
        "memory_mib": round(machine.peak_memory(), 1),
        "cpu_seconds": round(time.process_time() - began, 1),  # of all threads: less than threads * seconds was lost
    }
    beside = out / (STATS + ".part")
    beside.write_text(json.dumps(stats) + "\n")
    beside.replace(out / STATS)
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=arms.ARMS, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", default=FASHION, help="32x32, or padded to it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for arm ladder")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    if chosen.threads == 1:
        machine.count_processor_seconds()
    settings = dict(pair.split("=", 1) for pair in chosen.set)
    print(json.dumps(train_here(chosen.arm, chosen.seconds, chosen.seed, chosen.out, settings, chosen.data)))


if __name__ == "__main__":
    main()
