"""The lecture on one page: each part beside its formula, made from a trained generator and a classifier.

>>> from sfumato import lecture                                                         # doctest: +SKIP
>>> subject = lecture.Subject(generator, classifier, test, run, folder)                 # doctest: +SKIP
>>> lecture.write(subject, [part(subject) for part in lecture.PARTS], "demo", 120)      # doctest: +SKIP
"""

from __future__ import annotations

from sfumato.lecture.page import PAGE, PARTS, page, summary, write
from sfumato.lecture.section import Absent, Part, Picture, Section, Sizes, Subject

__all__ = ["PAGE", "PARTS", "Absent", "Part", "Picture", "Section", "Sizes", "Subject", "page", "summary"]
__all__ += ["write"]
