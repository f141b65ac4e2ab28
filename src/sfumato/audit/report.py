"""An audit on disk: ``report.html`` for people, ``report.json``, ``samples.npz`` and ``junit.xml`` for programs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sfumato.audit import figures
from sfumato.audit.compare import REPORT, SAMPLES, compare, read_report, read_samples
from sfumato.audit.flags import AMBER, GREEN, RED, check_all
from sfumato.audit.purification import section
from sfumato.audit.results import Audit
from sfumato.audit.summary import distance_text, samples, size, summarise
from sfumato.core.files import atomic_write, finite, make_folder
from sfumato.defences import Purification

PAGE, JUNIT = "report.html", "junit.xml"
MATRIX = 20  # classes up to which "attacked into" is a matrix; above, a list
LISTED = 20  # of its pairs
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_report(
    audit: Audit,
    folder: str | Path,
    *,
    min_robust_accuracy: float | None = None,
    baseline: str | Path | None = None,
    purification: Purification | None = None,
) -> dict[str, Any]:
    """Write the four files, each whole or not at all.

    Args:
        audit: what was found.
        folder: made where it is missing.
        min_robust_accuracy: a gate, which fails only where the upper bound of the robust accuracy's interval is below.
        baseline: the ``report.json`` (or its folder) of another audit to compare with.
        purification: what a purifier in front of the same classifier is worth, from ``audit_purification``.

    Returns:
        The object in ``report.json``, see summary.py.

    Raises:
        InputError: a baseline that is none, a folder that cannot be written to.
    """
    old = None if baseline is None else read_report(baseline)
    checks = check_all(audit)
    report = summarise(audit, checks, min_robust_accuracy)
    arrays = samples(audit)
    report["purification"] = None if purification is None else purification.report
    report["baseline"] = old and compare(report, arrays, old, read_samples(baseline or ""))
    if purification is not None:
        arrays |= {f"purification.{name}": array for name, array in purification.arrays.items()}
    report["seconds"] = {
        "attacks": {name: outcome.seconds for name, outcome in audit.outcomes.items()},
        "members": {n: member.seconds for outcome in audit.outcomes.values() for n, member in outcome.members.items()},
        "parts": audit.seconds,
        "total": sum(audit.seconds.values()),
    }
    report["written"] = datetime.now(UTC).isoformat(timespec="seconds")
    report = finite(report)
    folder = Path(folder)
    make_folder(folder)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / SAMPLES, packed.getvalue())
    atomic_write(folder / JUNIT, junit(report))
    shown = page(audit, report, purification)
    atomic_write(folder / PAGE, shown.encode("utf-8", "replace"))  # names of files may hold half characters
    # Last: it says that all is there.
    atomic_write(folder / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def page(audit: Audit, report: Mapping[str, Any], purification: Purification | None = None) -> str:
    """The HTML, with everything it shows inside it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "size": size, "distance": distance_text, "seconds": seconds}
    template = environment.from_string((files("sfumato.audit") / "templates" / "report.html").read_text("utf-8"))
    outcome = audit.outcomes.get((report["minimal_norm"] or {"attack": ""})["attack"])
    distance = audit.outcomes[audit.main].distance[:0] if outcome is None else outcome.distance[audit.right]
    lights = [check["light"] for check in report["checks"]]
    return template.render(
        report=report,
        curve=Markup(figures.security_curve(report, report["baseline"])),  # built with every text escaped
        histogram=Markup(figures.histogram(distance.numpy(), audit.norm, audit.eps)),
        pictures=_pictures(audit),
        matrix=_matrix(report) if len(audit.labels) <= MATRIX else None,
        listed=LISTED,
        light=RED if RED in lights else AMBER if AMBER in lights else GREEN,
        robust_before={row["name"]: row["robust"] for row in (report["baseline"] or {"attacks": []})["attacks"]},
        noise_scale=figures.NOISE_SCALE,
        purification=Markup("" if purification is None else section(purification, audit.labels, percent)),
    )


def junit(report: Mapping[str, Any]) -> str:
    """JUnit XML: every check a test case that fails where it is red, and one for the gate."""
    suite = ElementTree.Element("testsuite", name="sfumato audit")
    failures = 0
    for check in report["checks"]:
        case = ElementTree.SubElement(suite, "testcase", classname="sfumato.audit.checks", name=_text(check["name"]))
        if check["light"] == RED:
            failures += 1
            problem = ElementTree.SubElement(case, "failure", message=_text(check["found"]))
            problem.text = _text(f"{check['meaning']} {check['advice']}")
        elif check["light"] != GREEN:
            note = ElementTree.SubElement(case, "skipped" if check["light"] == "grey" else "system-out")
            note.text = _text(check["found"])
    gate = report["gate"]
    if gate is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="sfumato.audit.gate", name="robust accuracy")
        if not gate["passed"]:
            failures += 1
            robust = report["robust"]
            most = f"at most {robust['high']:.4f} with 95 % confidence"
            message = f"robust accuracy {robust['accuracy']:.4f}, {most}, is below {gate['min_robust_accuracy']:g}"
            ElementTree.SubElement(case, "failure", message=message).text = _text(report["verdict"])
    properties = ElementTree.Element("properties")
    for name, value in (("classifier", report["classifier"]["name"]), ("data", report["data"]["name"])):
        ElementTree.SubElement(properties, "property", name=name, value=_text(str(value)))
    suite.insert(0, properties)
    suite.set("tests", str(len(suite) - 1))
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def seconds(value: float) -> str:
    """``0.42 s``, ``12 s`` or ``3:05 min``."""
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{int(value) // 60}:{int(value) % 60:02} min"


def _pictures(audit: Audit) -> list[dict[str, Any]]:
    outcome = audit.outcomes[audit.main]
    return [
        {
            "row": int(audit.rows[place]),
            "label": audit.labels[int(audit.y[place])],
            "clean": figures.data_uri(clean),
            "noise": figures.data_uri(figures.noise(clean, adversarial)),
            "adversarial": figures.data_uri(adversarial),
            "before": audit.labels[int(audit.clean[place])],
            "before_confidence": float(audit.clean_confidence[place]),
            "after": audit.labels[int(outcome.predicted[place])],
            "after_confidence": float(outcome.confidence[place]),
            "fooled": bool(outcome.fooled[place]),
            "fooled_8bit": bool(outcome.fooled_8bit[place]),
        }
        for place, clean, adversarial in audit.pictured
    ]


def _matrix(report: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs of ``attacked_into`` as rows of counts, with how strongly each is to be coloured."""
    labels = report["classifier"]["labels"]
    counts = {(pair["from"], pair["into"]): pair["count"] for pair in report["attacked_into"]}
    most = max(counts.values(), default=1)
    shown = [label for label in labels if any(label in pair for pair in counts)]

    def cell(label: str, other: str) -> dict[str, Any]:
        count = counts.get((label, other), 0)
        return {"count": count, "share": count / most, "self": label == other}

    rows = [{"label": label, "cells": [cell(label, other) for other in shown]} for label in shown]
    return {"labels": shown, "rows": rows}


def _text(text: str) -> str:
    """Without the characters that XML cannot hold even when escaped."""
    return _NOT_XML.sub("\ufffd", text)
