"""What machine this is, and the most that its matrix multiplications give.

Measures the rate of a square matrix product in float32 and bf16, the best over several sizes: the roof under which
training and sampling times are read.

    .venv/bin/python -m benchmarks.machine --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

SIZES = (1024, 2048, 4096)
ENOUGH = 0.6  # seconds of repeats for each size


def set_threads(threads: int) -> None:
    """Use this many threads, here and in processes started from here; 0 leaves torch's choice."""
    if threads > 0:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def count_processor_seconds() -> None:
    """Let budgets and timings of this process be seconds of the processor, so that others on the machine do not matter.

    For one thread alone: with more, a second of the clock holds several of the processor.
    """
    time.perf_counter = time.process_time


def describe() -> dict[str, Any]:
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


def _field(file: str, name: str) -> str:
    """The first value of ``name`` in a file of "name : value" lines; "" where there is none."""
    if not Path(file).exists():
        return ""
    lines = (line.split(":", 1) for line in Path(file).read_text().splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), "")


def peak_memory() -> float:
    """The most resident memory this process has had, in MiB."""
    # getrusage also counts the parent's memory before exec, so the kernel's own mark comes first.
    if mark := _field("/proc/self/status", "VmHWM"):
        return int(mark.split()[0]) / 1024
    import resource

    unit = 2**20 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matmul_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest square matrix product over ``SIZES`` (a multiply and an add are two operations)."""
    best = 0.0
    for size in SIZES:
        a, b = torch.randn(2, size, size).to(dtype)
        torch.mm(a, b)  # the first call chooses and prepares a kernel
        spent = 0.0
        while spent < ENOUGH:
            began = time.perf_counter()
            torch.mm(a, b)
            once = time.perf_counter() - began
            best = max(best, 2 * size**3 / once / 1e9)
            spent += once
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    set_threads(parser.parse_args().threads)
    rates = {
        f"{name}_gflops": round(matmul_rate(kind), 1)
        for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16))
    }
    print(json.dumps({**describe(), **rates}, indent=2))


if __name__ == "__main__":
    main()
