"""The command ``sfumato``: its verbs, and what becomes of errors."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from sfumato.cli import classifier, data, demo, train
from sfumato.cli.console import Interrupted, TrainVerb, say
from sfumato.cli.options import register
from sfumato.core.errors import InputError

# Each is the function of this name in the module of this name.
VERBS = "sample film edit vary evaluate score classify export attack audit boundary certify purify harden"
DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
MOVED = {
    "--film": "'sfumato film MODEL'",
    "--init": "'sfumato edit MODEL IMAGE'",
    "--output": "-o or --out",
    "--told": "--conditional",
    "--variations": "'sfumato vary MODEL IMAGE'",
    "--whole": "--no-early-stop",
}  # options of former versions, and what does their work now

app = typer.Typer(
    name="sfumato",
    help="Train diffusion models from scratch, by class labels or text, sample and edit; attack, audit, harden and certify image classifiers.",
    epilog="Exit status: 0 done, 1 a check that was asked for failed, 2 bad input or usage, 130 interrupted. Start with: sfumato demo",
    add_completion=False,
    pretty_exceptions_enable=False,
)
register(app, "demo", demo.demo)
register(app, "train", train.train, TrainVerb)
for name in VERBS.split():
    register(app, name, getattr(importlib.import_module(f"sfumato.cli.{name}"), name))
app.add_typer(classifier.app, name="classifier")
app.add_typer(data.app, name="data")


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0 is done, 1 a check that the user asked for failed. 2 is bad input or usage, 130 an interruption: then one sentence
    is on standard error, and no traceback. Anything else that goes wrong is a bug, and is raised.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        from sfumato import __version__

        print(f"sfumato {__version__}")
        return DONE
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            status = app(arguments or ["--help"], prog_name="sfumato", standalone_mode=False)
        except InputError as error:
            return _fail(str(error))
        except Interrupted as error:
            return _fail(str(error), INTERRUPTED)
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", INTERRUPTED)
        except OSError as error:
            return _fail(_disk(error))
        except MemoryError as error:
            return _fail(_memory(error))
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            return _fail(_memory(error))
        except Exception as error:
            if not hasattr(error, "format_message"):  # what all of the parser's own complaints have
                raise
            return _fail(_usage(error))
    if status == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else DONE


def _fail(sentence: str, status: int = BAD_INPUT) -> int:
    say(sentence)
    return status


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Warnings of ours as one sentence; what libraries tell developers is not for users."""
    if issubclass(category, UserWarning):
        say(str(message))


def _usage(error: Any) -> str:
    """The parser's complaint, and where to look."""
    if (now := MOVED.get(getattr(error, "option_name", ""))) is not None:
        return f"there is no option {error.option_name}: use {now}"
    text = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}: see '{context.command_path if context else 'sfumato'} --help'"


def _disk(error: OSError) -> str:
    from sfumato.core.files import why_not_written

    name = error.filename or "the output"
    return str(why_not_written(name, error) or f"{name}: {error.strerror or error}: check the path, or give another")


def _memory(error: BaseException) -> str:
    which = "GPU's" if "CUDA" in str(error) else "machine's"
    return f"the {which} memory is used up: give a smaller --size or -n, or train with a smaller --set batch="
