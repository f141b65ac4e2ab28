"""Our attacks against the peers': the same classifier, the same samples, equal numbers of steps or queries, the same run.

Against torchattacks, foolbox, ART, adv-lib and pyautoattack on a standard and on a hardened Fashion-MNIST convnet and on
EfficientNet-Lite0 with photographs:

* fixed: robust accuracy under attacks of a fixed size (less is stronger).
* minimal: the norms that minimal-norm attacks find (less is stronger), and AttackBench's optimality over all of them (1 is the
  best of all, per sample).
* speed: PGD with 40 gradients and the standard ensemble, in seconds, with the verdict on every sample.

Everything is checked by `sfumato.attacks.verified`. Peers that are not installed are left out (torchattacks and adv-lib are
installed with --no-deps: torchvision is not needed):

    .venv/bin/python -m pip install pyautoattack foolbox scikit-image six
    .venv/bin/python -m pip install --no-deps torchattacks adv-lib adversarial-robustness-toolbox
"""

from __future__ import annotations

import argparse

from benchmarks.attacks import speed, strength
from benchmarks.attacks.tables import claims, page
from benchmarks.attacks.targets import NAMES, find_target

__all__ = ["COMMANDS", "NAME", "NOTES", "claims", "options", "page", "run"]

NAME = strength.NAME
COMMANDS = (
    "attacks fixed --samples 64",
    "attacks minimal --samples 24",
    "attacks minimal --samples 40 --first 1000 --attacks fmn sigma-zero hop-skip-jump",
    "attacks fixed --samples 64 --first 1000 --attacks square",
    "attacks fixed minimal --targets effnet-lite0 --samples 14",
    "attacks speed --samples 200 --attacks pgd",
)
NOTES = """\
On one thread of a core with much other work: CPU seconds are the column to go by. Numbers in brackets are passes, forward and
backward, for each sample. Median / mean norm for minimal norms. The samples are few (n stands by each table): a difference of
0.02 is one image. Where an attack finds half of the samples or fewer it has no median, and no norm is shown."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="+", choices=(*strength.PARTS, "speed"))
    parser.add_argument("--targets", nargs="+", default=["standard", "robust"], choices=NAMES)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="of the test images to take samples from")
    parser.add_argument(
        "--attacks", nargs="+", help="only these of ours and their counterparts; pgd, ensemble for speed"
    )
    parser.add_argument("--packages", nargs="+", help="only these, sfumato among them")


def run(chosen: argparse.Namespace) -> None:
    for name, part in [(name, part) for name in chosen.targets for part in chosen.parts]:
        target = find_target(name, chosen.samples, chosen.first, right_only=part != "speed")
        for seed in chosen.seeds:
            (speed.measure if part == "speed" else strength.measure)(part, target, seed, chosen)
