"""Audits: how often a classifier stays right under attack, what the evaluation is worth, and a page that shows both.

>>> from sfumato.audit import audit, write_report                               # doctest: +SKIP
>>> found = audit(classifier, images, norm="Linf", eps=8 / 255)                 # doctest: +SKIP
>>> print(found.robust_accuracy)                                                         # doctest: +SKIP
>>> write_report(found, "report")                                               # doctest: +SKIP
"""

from __future__ import annotations

from sfumato.audit.compare import compare, find_baseline, read_report
from sfumato.audit.demonstration import Demonstration, demonstrate
from sfumato.audit.flags import FLAGS, Check, check_all
from sfumato.audit.plan import PROTOCOLS
from sfumato.audit.protocol import audit
from sfumato.audit.purification import audit_purification
from sfumato.audit.report import write_report
from sfumato.audit.results import Audit, Outcome
from sfumato.audit.summary import SCHEMA, summarise

__all__ = ["FLAGS", "PROTOCOLS", "SCHEMA", "Audit", "Check", "Demonstration", "Outcome"]
__all__ += ["audit", "audit_purification", "check_all", "compare", "demonstrate", "find_baseline", "read_report"]
__all__ += ["summarise", "write_report"]
