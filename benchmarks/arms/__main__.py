"""Train one arm in this process and write what it cost; ``base.trial.train_apart`` starts it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.arms import ARMS, find
from benchmarks.base.trial import FASHION, STATS, begin, peak_memory
from sfumato.data import load


def main(arguments: list[str] | None = None) -> None:
    """The stats are written last of all: a folder with stats holds a whole run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms", description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", default=FASHION)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--fit", default="pad")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for sfumato's arms")
    chosen = parser.parse_args(arguments)
    begin(chosen.threads)
    settings = dict(pair.split("=", 1) for pair in chosen.set)
    data, began = load(chosen.data, size=chosen.size, fit=chosen.fit), time.process_time()
    extra = {"settings": settings} if settings else {}
    stats = find(chosen.arm).train(data, chosen.seconds, chosen.seed, chosen.out, **extra)
    # The seconds are those of all threads: fewer than threads * seconds, and other work was in the way.
    stats |= {"memory_mib": round(peak_memory(), 1), "cpu_seconds": round(time.process_time() - began, 1)}
    beside = chosen.out / (STATS + ".part")
    beside.write_text(json.dumps({**stats, "arm": chosen.arm, "seed": chosen.seed, "settings": settings}) + "\n")
    beside.replace(chosen.out / STATS)


if __name__ == "__main__":
    main()
