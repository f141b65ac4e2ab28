"""Our attacks against the peers': the same classifier, the same samples, equal budgets.

* fixed: robust accuracy under attacks of a fixed size, at equal numbers of steps or queries.
* minimal: the norms that minimal-norm attacks find, and AttackBench's optimality over all of them.
* speed: PGD with 40 gradients and the standard ensemble, in seconds, with the verdict on every sample.
* table: writes what the records say into RESULTS.md.

A measurement adds a line to ``results/attacks.jsonl``; what is there already is not measured again (``--again`` does).
Peers that are not installed are left out (torchattacks and adv-lib are installed with --no-deps: torchvision is not needed).
Everything is checked by ``sfumato.attacks.verified``.

    .venv/bin/python -m pip install pyautoattack foolbox scikit-image six
    .venv/bin/python -m pip install --no-deps torchattacks adv-lib adversarial-robustness-toolbox
    .venv/bin/python -m benchmarks.attacks fixed --samples 64
    .venv/bin/python -m benchmarks.attacks minimal --samples 40
    .venv/bin/python -m benchmarks.attacks fixed minimal --targets effnet-lite0 --samples 8
    .venv/bin/python -m benchmarks.attacks speed --targets robust --samples 200
    .venv/bin/python -m benchmarks.attacks table
"""

from __future__ import annotations

import argparse

from benchmarks import machine
from benchmarks.attacks import speed, strength, tables
from benchmarks.attacks.targets import NAMES, find_target

PARTS = ("fixed", "minimal", "speed", "table")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--targets", nargs="+", default=["standard", "robust"], choices=NAMES)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="of the test images to take samples from")
    parser.add_argument("--attacks", nargs="+", help="only these of ours and their counterparts")
    parser.add_argument("--packages", nargs="+", help="only these, sfumato among them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--threads", type=int, default=1, help="0: torch's choice")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    for name in chosen.targets if set(chosen.parts) - {"table"} else ():
        for part in chosen.parts:
            if part in strength.PARTS:
                target = find_target(name, chosen.samples, chosen.first)
                strength.measure(part, target, chosen.seed, chosen.attacks, chosen.packages, chosen.again)
            elif part == "speed":
                target = find_target(name, chosen.samples, chosen.first, right_only=False)
                speed.measure(target, chosen.seed, chosen.attacks, chosen.again)
    if "table" in chosen.parts:
        tables.write()


if __name__ == "__main__":
    main()
