"""An extension of Griffe, which reads the docstrings: doctests become code blocks, and every name stands at its home alone."""

import re
from typing import Any

from griffe import Extension, Function, Module, Object, Parameter, ParameterKind, Parameters

DOCTEST = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r" +# doctest: \+SKIP$", re.MULTILINE)


class Docstrings(Extension):
    """Called for every object that is loaded."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Put doctests between fences."""
        if obj.docstring:
            text = SKIP.sub("", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """An attack is called with samples and keywords, whose context its body takes (attacks/registry.py)."""
        if any(str(decorator.value).startswith(("within_eps(", "minimal(")) for decorator in func.decorators):
            samples = [Parameter(name, kind=ParameterKind.positional_or_keyword) for name in ("classifier", "x", "y")]
            shared = Parameter("shared", kind=ParameterKind.var_keyword)
            func.parameters = Parameters(*samples, *list(func.parameters)[1:], shared)

    def on_module_members(self, *, mod: Module, **_: Any) -> None:
        """Leave out what a module only imports: a package that exports a function would show it twice."""
        for name in [name for name, member in mod.members.items() if member.is_alias]:
            del mod.members[name]
