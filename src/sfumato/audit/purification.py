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
    threat: dict[str, Any] = {"norm": audited.norm, "eps": audited.eps, "seed": audited.seed}
    made = [digest(purifier.network), repr(purifier.ladder), purifier.sigma, purifier.steps, purifier.sampler]
    about = {"classifier": audited.classifier_hash, "data": data.fingerprint(), "count": len(rows), **threat}
    identity = {**about, "effort": asdict(effort), "stamp": stamp(classifier), "purifier": made}
    store = Store(None if out is None else Path(out) / FOLDER, identity)

    def keep(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def stored() -> StepResult:
            return StepResult({key: value.detach().cpu().contiguous() for key, value in compute().items()}, {})

        return store.get(name, stored).tensors

    x, y = (tensor.to(classifier.device) for tensor in (data.pixels(rows), audited.y[: len(rows)]))
    how: dict[str, Any] = {"effort": effort, "ids": rows.tolist(), "keep": keep, "progress": progress}
    found = purification_protocol(classifier, purifier, x, y, **threat, **how)
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
    pictures = []
    for label, images, predicted in zip(found.arrays["label"].tolist(), found.pictures, found.pictured, strict=False):
        drawn = dict(zip(("clean", "attacked", "purified"), map(figures.data_uri, images), strict=True))
        names = {"label": labels[label], "predicted": labels[int(predicted)], "right": label == int(predicted)}
        pictures.append({**drawn, **names})
    return template.render(it=found.report, rows=table(found.report), pictures=pictures)


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``title``, ``kind``, and the three numbers: no attack, weak attacks, exact ones, the best of all."""
    rows = [{"title": "no attack", "kind": "none", **report["clean"]}]
    for kind in ("weak", "exact"):
        rows += [{**each, "kind": kind} for each in report["attacks"] if each["gradients"] == kind]
    return [*rows, {"title": "worst over all attacks", "kind": "all", **report["robust"]}]


def lines(report: Mapping[str, Any]) -> list[str]:
    """The same for a terminal."""
    rows, made, fixed, bare = table(report), report["purifier"], report["fixed"], report["undefended"]
    width = max(len(row["title"]) for row in rows)
    how = f"sigma {made['sigma']:g}, {made['steps']} steps of {made['sampler']}"
    times = f"all of {report['effort']['submissions']}"
    found = [
        f"Behind the purifier {report['model']} ({how}), {report['images']} images:",
        "",
        f"  {'':<{width}}  {'average':>8}  {times:>9}  {'majority':>8}",
    ]
    for row in rows:
        average, worst, majority = (row[kind]["accuracy"] for kind in ("average", "worst", "majority"))
        found.append(f"  {row['title']:<{width}}  {average:>8.1%}  {worst:>9.1%}  {majority:>8.1%}")
    for title, each in (("noise known to the attacker", fixed), ("no purifier", bare)):
        robust, clean = each["robust"]["accuracy"], each["clean"]["accuracy"]
        found.append(f"  {title:<{width}}  {robust:>8.1%}  (without an attack {clean:.1%})")
    return [*found, "", *report["says"]]
