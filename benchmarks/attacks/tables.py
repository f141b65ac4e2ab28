"""What the records say of the attacks, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from benchmarks.attacks.score import best_known, optimality
from benchmarks.attacks.strength import KEYS, NAME, OURS, PARTS, distances_of
from benchmarks.attacks.targets import NAMES
from benchmarks.base import record
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, grid

ROW = ("attack", "norm", "steps")


def strengths() -> list[Record]:
    """The newest record of every attack, but for a peer's failures."""
    found = [line for line in record.read(NAME) if line["part"] in PARTS]
    return [line for line in record.latest(found, KEYS) if "error" not in line]


def page() -> list[str]:
    found, parts = strengths(), []
    for target in NAMES:
        for first in sorted({line["first"] for line in found if line["target"] == target}):
            here = [line for line in found if line["target"] == target and line["first"] == first]
            title = target if first == 0 else f"{target}, other images"
            parts += fixed(title, [line for line in here if line["part"] == "fixed"])
            parts += minimal(title, [line for line in here if line["part"] == "minimal"])
    parts += scores([line for line in found if line["part"] == "minimal" and line["first"] == 0])
    lines = [line for line in record.read(NAME) if line["part"] == "speed"]
    for line in record.latest(lines, ("target", "attack", "threads")):
        parts += times(line)
    return parts


def fixed(target: str, lines: Sequence[Record]) -> list[str]:
    """Robust accuracy by attack, norm and package; passes (forwards and backwards) a sample in brackets."""
    packages, rows = _packages(lines), []
    for (attack, norm, steps), own in _rows(lines).items():
        robust = {line["package"]: statistics.fmean(line["robust"]) for line in own}
        cells = {line["package"]: f"{robust[line['package']]:.2f} ({_passes(line):.0f})" for line in own}
        ahead = _ahead(robust)
        shown = "" if ahead is None else f"{ahead:+.2f}"
        rows.append(
            [f"{attack} {norm}, eps {own[0]['eps']:.3g}, {steps}", *(cells.get(p, "") for p in packages), shown]
        )
    head = ["attack, norm, size, steps", *packages, "ours - best peer"]
    return [f"## Fixed size: {target}", _size(lines), grid(head, rows)] if rows else []


def minimal(target: str, lines: Sequence[Record]) -> list[str]:
    """Median and mean norm by attack, norm and package; the mean over what all of the row found that have a median."""
    packages, rows = _packages(lines), []
    for (attack, norm, steps), own in _rows(lines).items():
        means, cells = common_means(own), {}
        for line in own:
            found = distances_of(line)
            share = float(found.isfinite().double().mean())
            norms = f"{float(found.median()):.4g} / {means[line['package']]:.4g}" if line["package"] in means else "-"
            cells[line["package"]] = f"{norms} ({_passes(line):,.0f})" + (f", found {share:.0%}" if share < 1 else "")
        ratio = _ratio(means)
        shown = "" if ratio is None else f"{ratio:.3f}"
        rows.append([f"{attack} {norm}, {steps}", *(cells.get(p, "") for p in packages), shown])
    head = ["attack, norm, steps", *packages, "mean, ours / best peer"]
    return [f"## Minimal norm: {target}", _size(lines), grid(head, rows)] if rows else []


def common_means(own: Sequence[Record]) -> dict[str, float]:
    """The mean norm of each package over the samples that all of them found.

    What finds half of the samples or fewer has no median, would leave few to compare on, and is left out.
    """
    found = {line["package"]: distances_of(line) for line in own}
    useful = {name: d for name, d in found.items() if float(d.isfinite().double().mean()) > 0.5}
    common = torch.stack([d.isfinite() for d in useful.values()]).all(0)
    return {name: float(d[common].mean()) for name, d in useful.items()}


def scores(lines: Sequence[Record]) -> list[str]:
    """Optimality by norm, attack and package, a column for each target; the best first."""
    targets = [name for name in NAMES if any(line["target"] == name for line in lines)]
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for (target, norm, _), own in record.groups(lines, "target", "norm", "samples").items():
        best = best_known(torch.stack([distances_of(line) for line in own]))
        for line in own:
            row = found.setdefault(norm, {}).setdefault((line["attack"], line["package"]), {})
            row[target] = optimality(distances_of(line), best)
    rows = []
    for norm in sorted(found):
        ranked = sorted(found[norm].items(), key=lambda item: -statistics.fmean(item[1].values()))
        for row, values in ranked:
            rows.append([norm, *row, *(f"{values[t]:.3f}" if t in values else "" for t in targets)])
    return ["## Optimality", grid(["norm", "attack", "package", *targets], rows)]


def times(line: Record) -> list[str]:
    """Seconds of each package, how many times ours, robust accuracy by seed, and which verdicts differ."""
    packages, rows = line["packages"], []
    ours = packages[OURS]
    for name, row in packages.items():
        robust = ", ".join(dict.fromkeys(f"{statistics.fmean(turn):.3f}" for turn in row["robust"]))
        differ = "" if name == OURS else f"{_differ(ours['robust'][0], row['robust'][0])}"
        seeds = f"{_differ(*row['robust'][:2])}" if len(row["robust"]) > 1 else ""
        spent = [
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['cpu_seconds'] / ours['cpu_seconds']:.2f}",
        ]
        rows.append([name, *spent, robust, differ, seeds])
    head = ["package", "seconds", "CPU seconds", "CPU, times ours", "robust accuracy, by seed"]
    head += ["verdicts unlike ours", "verdicts unlike between its seeds"]
    title = "PGD, 40 gradients" if line["attack"] == "pgd" else "Standard ensemble"
    about = f"{line['samples']} samples, Linf, eps {line['eps']:g}, {line['threads']} thread(s)."
    parts = [f"## {title}: {line['target']}", about, grid(head, rows)]
    if members := ours.get("members"):
        own = {
            name: f"{row['cpu_seconds']:.1f} s ({row['attacked']} to {row['left']})" for name, row in members.items()
        }
        passes = {
            name: f"{row['forwards']:,} + {row['backwards']:,}" for name, row in packages.items() if "forwards" in row
        }
        text = "; ".join(f"{name} {each}" for name, each in own.items())
        parts.append(f"Ours by member, with the samples that were robust before and after: {text}.")
        parts.append(
            "Passes, forward + backward: " + "; ".join(f"{name} {each}" for name, each in passes.items()) + "."
        )
    return parts


def comparisons(lines: Sequence[Record]) -> list[list[Record]]:
    """What was measured of the same attack on the same samples, by ours and by peers."""
    sets = record.groups(lines, "part", "target", "first").values()
    return [own for mine in sets for own in _rows(mine).values()]


def claims() -> list[Claim]:
    found = strengths()
    rows = {part: [own for own in comparisons(found) if own[0]["part"] == part] for part in PARTS}
    ahead = [_ahead({line["package"]: statistics.fmean(line["robust"]) for line in own}) for own in rows["fixed"]]
    gaps = [gap for gap in ahead if gap is not None]
    ratios = [ratio for own in rows["minimal"] if (ratio := _ratio(common_means(own))) is not None]
    even = sum(gap <= 0 for gap in gaps)
    spent = {}
    for line in record.read(NAME):
        if line["part"] == "speed" and line["attack"] == "pgd":
            own = line["packages"][OURS]["cpu_seconds"]
            spent[line["target"]] = [row["cpu_seconds"] / own for name, row in line["packages"].items() if name != OURS]
    times = "; ".join(f"{target} network {min(each):.1f} to {max(each):.1f}" for target, each in sorted(spent.items()))
    peers = "the best of torchattacks, foolbox, ART, adv-lib, pyautoattack"
    return [
        Claim(
            "attacks of a fixed size on three networks, robust accuracy left (lower is stronger)",
            f"as strong as the best peer or stronger in {even} of {len(gaps)} comparisons",
            f"ours - best: {min(gaps):+.2f} to {max(gaps):+.2f}",
            peers,
            "attacks fixed --samples 64",
        ),
        Claim(
            "minimal-norm attacks on three networks, mean norm by that of the best peer (lower is stronger)",
            f"median {statistics.median(ratios):.2f}; not larger in {sum(ratio <= 1.0005 for ratio in ratios)} of {len(ratios)}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            peers,
            "attacks minimal --samples 24",
        ),
        Claim(
            "PGD, 40 gradients, CPU seconds of the peers by ours",
            times,
            "fastest of 3 turns",
            "torchattacks, foolbox, adv-lib, ART",
            "attacks speed --samples 200 --attacks pgd",
        ),
    ]


def _ahead(robust: dict[str, float]) -> float | None:
    """Our robust accuracy less that of the best peer; None where there is no peer."""
    peers = [value for name, value in robust.items() if name != OURS]
    return robust[OURS] - min(peers) if peers else None


def _ratio(means: dict[str, float]) -> float | None:
    """Our mean norm by the best peer's."""
    peers = [value for name, value in means.items() if name != OURS]
    return means[OURS] / min(peers) if peers and OURS in means else None


def _passes(line: Record) -> float:
    return line["forwards"] + line["backwards"]


def _packages(lines: Sequence[Record]) -> list[str]:
    return [OURS, *dict.fromkeys(line["package"] for line in lines if line["package"] != OURS)]


def _rows(lines: Sequence[Record]) -> dict[tuple, list[Record]]:
    groups = record.groups(lines, *ROW)
    return {key: own for key, own in groups.items() if any(line["package"] == OURS for line in own)}


def _size(lines: Sequence[Record]) -> str:
    samples = sorted({line["samples"] for line in lines})
    where = f" of the images from number {lines[0]['first']} on" if lines[0]["first"] else ""
    return f"n = {' or '.join(str(n) for n in samples)}{where}, seed {lines[0]['seed']}."


def _differ(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
