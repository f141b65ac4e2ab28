"""Two audits side by side: what a change of the classifier has changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.audit.results import Audit
from sfumato.audit.summary import SCHEMA
from sfumato.core.errors import InputError

REPORT, SAMPLES = "report.json", "samples.npz"
DATA = ("fingerprint", "split")  # what makes data the same
GIVE = "give the report.json of an audit"
PURIFIED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "average over draws of the noise": lambda it: it["robust"]["average"],
    "right every time": lambda it: it["robust"]["worst"],
    "majority of the votes": lambda it: it["robust"]["majority"],
    "noise known to the attacker": lambda it: it["fixed"]["robust"],
}
"""The four numbers of a defence that is random, under all attacks; see ``defences/purification/protocol.py``."""


def read_report(path: str | Path) -> dict[str, Any]:
    """The ``report.json`` of an audit, or of its folder.

    Raises:
        InputError: nothing there, or another file.
    """
    file, named = Path(path), f"baseline {str(path)!r}"
    file = file / REPORT if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{named} cannot be read ({error.strerror}): {GIVE}") from None
    except ValueError:
        raise InputError(f"{named} is not JSON: {GIVE}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{named} has the schema {schema!r}, this version reads {SCHEMA}: {GIVE}")
    if wrong := _wrong(found):
        raise InputError(f"{named} lacks a proper {wrong!r}: make it anew with 'sfumato audit'")
    return found


def find_baseline(out: str | Path, weights: str, audited: Audit) -> Path | None:
    """The newest report beside the folder ``out`` that is of a classifier with these weights, under the same threat.

    One by the same protocol comes before any other.

    Args:
        out: folder of the audit's own report.
        weights: of the classifier that the audited one was hardened from, as ``weights.digest`` gives them.
        audited: whose data and threat the report must share.
    """
    found = []
    for file in Path(out).absolute().parent.glob(f"*/{REPORT}"):
        with suppress(InputError, OSError):
            report = read_report(file)
            known = (report["classifier"].get("weights"), report["threat"], *(report["data"].get(key) for key in DATA))
            if known == (weights, {"norm": audited.norm, "eps": audited.eps}, *(audited.data[key] for key in DATA)):
                found.append((report["protocol"] == audited.protocol, file.stat().st_mtime_ns, file))
    return max(found)[-1] if found else None


def read_samples(path: str | Path) -> dict[str, np.ndarray] | None:
    """The ``samples.npz`` beside a report; None where it is missing or damaged."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        with np.load(folder / SAMPLES, allow_pickle=False) as file:
            return {name: file[name] for name in ("row", "robust")}
    except (OSError, ValueError, KeyError, EOFError):
        return None


def compare(
    new: Mapping[str, Any],
    new_samples: Mapping[str, np.ndarray],
    old: Mapping[str, Any],
    old_samples: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:
    """What the report shows of a baseline.

    Returns:
        ``name``, ``hash``, ``clean``, ``robust``, ``attacks``, ``curve`` and ``classes`` of the old audit; ``gain`` (new
        minus old robust accuracy); ``paired`` where both audited the same images under the same threat: how many each
        alone stands (``only_new``, ``only_old``), ``both``, ``neither``, and ``p`` of McNemar's exact test that they are
        equally robust; ``purification``, what a purifier in front leaves in either audit under all attacks, as rows of
        ``title``, ``before`` and ``now`` with the ``model`` of the old one, where both had one and were attacked alike;
        ``remarks``, sentences about what cannot be compared; ``sentence``, the result.
    """
    remarks = []
    same_data = all(new["data"][key] == old["data"].get(key) for key in DATA)
    same_threat = new["threat"] == old["threat"]
    if not same_threat:
        threat = f"in {old['threat']['norm']} with eps {old['threat']['eps']:g}"
        remarks.append(f"The baseline was attacked {threat}: its robust accuracy does not compare.")
    if new["protocol"] != old["protocol"]:
        remarks.append(f"The baseline was audited by the protocol {old['protocol']!r}, not {new['protocol']!r}.")
    if not same_data:
        remarks.append("The baseline was audited on other data.")
    comparable = same_data and same_threat
    paired = _paired(new_samples, old_samples) if comparable and old_samples is not None else None
    if paired is None and comparable:
        only = "only the intervals can be compared"
        remarks.append(f"The baseline's samples.npz is missing or holds other images: {only}.")
    washed = None
    if old.get("purification") and new.get("purification"):
        if comparable:
            washed = _purification(new["purification"], old["purification"])
    elif old.get("purification"):
        remarks.append("The baseline was also audited behind a purifier: give --purify to compare that.")
    gain = new["robust"]["accuracy"] - old["robust"]["accuracy"]
    change = f"{abs(100 * gain):.1f} points {'more' if gain > 0 else 'less'}" if gain else "the same"
    sentence = f"Robust accuracy {new['robust']['accuracy']:.1%} against {old['robust']['accuracy']:.1%} of the baseline, {change}"
    if paired:
        sure = "more than chance explains" if paired["p"] < 0.05 else "no more than chance explains"
        sentence += f": {sure} (McNemar's exact test, p = {paired['p']:.2g})"
    return {
        "name": str(old["classifier"]["name"]),
        "hash": str(old["classifier"]["hash"]),
        **{key: old[key] for key in ("clean", "robust", "attacks", "curve", "classes")},
        "gain": gain,
        "paired": paired,
        "purification": washed,
        "remarks": remarks,
        "sentence": f"{sentence}.",
    }


def _paired(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The images that both audited; None where there are none."""
    shared, mine, theirs = np.intersect1d(new["row"], old["row"], return_indices=True)
    if not len(shared):
        return None
    now, before = new["robust"][mine].astype(bool), old["robust"][theirs].astype(bool)
    only_new, only_old = int((now & ~before).sum()), int((before & ~now).sum())
    from scipy.stats import binomtest

    p = float(binomtest(only_new, only_new + only_old).pvalue) if only_new + only_old else 1.0
    both, neither = int((now & before).sum()), int((~now & ~before).sum())
    counts = {"both": both, "only_new": only_new, "only_old": only_old, "neither": neither}
    return {"images": len(shared), **counts, "p": p}


def _purification(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{"title": title, "before": of(old), "now": of(new)} for title, of in PURIFIED.items()]
    return {"model": str(old["model"]), "images": [old["images"], new["images"]], "rows": rows}


def _wrong(report: Mapping[str, Any]) -> str:
    """The first entry that a comparison needs and does not find as it should be; "" when all are there."""
    return next((key for key, fits in _PROPER.items() if not fits(report.get(key))), "")


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _purified(value: Any) -> bool:
    try:
        return all(_accuracy(of(value)) for of in PURIFIED.values()) and {"model", "images"} <= set(value)
    except (KeyError, TypeError):
        return False


def _curve(value: Any) -> bool:
    lists = [value.get(key) for key in ("eps", "accuracy", "low", "high")] if isinstance(value, dict) else [None]
    return all(values and _list_of(values, _number) for values in lists) and len({len(v or ()) for v in lists}) == 1


def _accuracy(value: Any) -> bool:
    return isinstance(value, dict) and all(_number(value.get(key)) for key in ("accuracy", "low", "high"))


def _robust(value: Any) -> bool:
    return isinstance(value, dict) and _accuracy(value.get("robust"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_PROPER: dict[str, Callable[[Any], bool]] = {
    "data": lambda it: isinstance(it, dict),
    "threat": lambda it: isinstance(it, dict) and isinstance(it.get("norm"), str) and _number(it.get("eps")),
    "classifier": lambda it: isinstance(it, dict) and {"name", "hash"} <= set(it),
    "protocol": lambda it: isinstance(it, str),
    "clean": _accuracy,
    "robust": _accuracy,
    "attacks": lambda it: _list_of(it, lambda a: _robust(a) and isinstance(a.get("name"), str)),
    "classes": lambda it: _list_of(it, _robust),
    "purification": lambda it: it is None or _purified(it),
    "curve": lambda it: it is None or _curve(it),
}
