"""A hook of MkDocs: ``$...$`` becomes MathML while the site is built, so that a page needs no script and no network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return FORMULA.sub(_formula, html)


def _formula(found: re.Match[str]) -> str:
    tag, inline, block = found.groups()
    latex = unescape(inline or block).strip()
    return f'<{tag} class="formula">{convert(latex, display="inline" if inline else "block")}</{tag}>'
