"""The audit of a classifier behind a purifier: the four-number protocol on some of the audited images, and its section.

Its parts lie in the folder ``purification`` of the report, so that the audit of the bare classifier, which it is shown beside,
is not done again for another purifier. ``report["purification"]`` is the report of ``purification_protocol`` with the
``model``'s name; its arrays are in ``samples.npz`` as ``purification.NAME``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.audit import figures
from sfumato.audit.results import Audit
from sfumato.classifiers import Classifier
from sfumato.classifiers.stamp import stamp
from sfumato.core.checkpoint import digest
from sfumato.core.parts import StepResult, Store
from sfumato.data import ImageSet
from sfumato.defences import Effort, Purification, Purifier, purification_protocol

FOLDER = "purification"
Progress = Callable[[int, int], None]


def audit_purification(
    classifier: Classifier,
    purifier: Purifier,
    data: ImageSet,
    audited: Audit,
    *,
    count: int = 32,
    effort: Effort | None = None,
    out: str | Path | None = None,
    model: str = "generator",
    progress: Progress | None = None,
    remark: Callable[[str], None] | None = None,
) -> Purification:
    """Put a purifier in front of an audited classifier, and attack the two.

    Args:
        classifier, data: as audited.
        purifier: in front of it.
        audited: the audit of the bare classifier, whose norm, eps, seed and first ``count`` images are taken.
        effort: how hard to attack.
        out: folder of the report; the same call goes on after it was stopped.
        model: the purifier's name, for the report.
        progress: called with (work done, work in all).
        remark: called with a sentence where parts were done before.

    Raises:
        InputError: as ``purification_protocol``.
    """
    effort = effort or Effort()
    rows = audited.rows[:count]
    identity = {
        "classifier": audited.classifier_hash, "data": data.fingerprint(), "count": len(rows), "norm": audited.norm,
        "eps": audited.eps, "seed": audited.seed, "effort": asdict(effort), "stamp": stamp(classifier),
        "purifier": [digest(purifier.network), repr(purifier.ladder), purifier.sigma, purifier.steps, purifier.sampler],
    }  # fmt: skip
    store = Store(None if out is None else Path(out) / FOLDER, identity)

    def keep(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return store.get(
            name, lambda: StepResult({key: value.detach().cpu().contiguous() for key, value in compute().items()}, {})
        ).tensors

    found = purification_protocol(
        classifier, purifier, data.pixels(rows).to(classifier.device), audited.y[: len(rows)].to(classifier.device),
        norm=audited.norm, eps=audited.eps, effort=effort, seed=audited.seed, ids=rows.tolist(), keep=keep, progress=progress,
    )  # fmt: skip
    store.sweep()
    if store.found and remark is not None:
        remark(f"{store.found} parts of the purification were done before")
    found.report["model"] = model
    return found


def section(found: Purification, labels: tuple[str, ...], percent: Callable[[float], str]) -> str:
    """The report's section as HTML, with every text escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = environment.from_string((files("sfumato.audit") / "templates" / "purification.html").read_text("utf-8"))
    truth = found.arrays["label"].tolist()
    pictures = [
        {
            "clean": figures.data_uri(clean), "attacked": figures.data_uri(attacked), "purified": figures.data_uri(purified),
            "label": labels[label], "predicted": labels[int(predicted)], "right": label == int(predicted),
        }
        for label, (clean, attacked, purified), predicted in zip(truth, found.pictures, found.pictured, strict=False)
    ]  # fmt: skip
    return template.render(it=found.report, rows=table(found.report), pictures=pictures)


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``title``, ``kind``, and the three numbers: no attack, weak attacks, exact ones, the best of all."""
    rows = [{"title": "no attack", "kind": "none", **report["clean"]}]
    for kind in ("weak", "exact"):
        rows += [{**each, "kind": kind} for each in report["attacks"] if each["gradients"] == kind]
    return [*rows, {"title": "worst over all attacks", "kind": "all", **report["robust"]}]


def lines(report: Mapping[str, Any]) -> list[str]:
    """The same for a terminal."""
    rows = table(report)
    made = report["purifier"]
    width = max(len(row["title"]) for row in rows)
    times = report["effort"]["submissions"]
    found = [
        f"Behind the purifier {report['model']} (sigma {made['sigma']:g}, {made['steps']} steps of {made['sampler']}), "
        f"{report['images']} images:",
        "",
        f"  {'':<{width}}  {'average':>8}  {f'all of {times}':>9}  {'majority':>8}",
    ]
    found += [
        f"  {row['title']:<{width}}  {row['average']['accuracy']:>8.1%}  {row['worst']['accuracy']:>9.1%}  {row['majority']['accuracy']:>8.1%}"
        for row in rows
    ]
    fixed, bare = report["fixed"], report["undefended"]
    found += [
        f"  {'noise known to the attacker':<{width}}  {fixed['robust']['accuracy']:>8.1%}  (without an attack {fixed['clean']['accuracy']:.1%})",
        f"  {'no purifier':<{width}}  {bare['robust']['accuracy']:>8.1%}  (without an attack {bare['clean']['accuracy']:.1%})",
        "",
    ]
    return [*found, *report["says"]]
