"""An extension of Griffe, which reads the docstrings: doctests become code blocks, and every name stands at its home alone."""

import re
from typing import Any

from griffe import Extension, Module, Object

DOCTEST = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r" +# doctest: \+SKIP$", re.MULTILINE)


class Docstrings(Extension):
    """Called for every object that is loaded."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Put doctests between fences."""
        if obj.docstring:
            text = SKIP.sub("", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)

    def on_module_members(self, *, mod: Module, **_: Any) -> None:
        """Leave out what a module only imports: a package that exports a function would show it twice."""
        for name in [name for name, member in mod.members.items() if member.is_alias]:
            del mod.members[name]
