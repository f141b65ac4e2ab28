"""What the verbs share: options, the records that group them, what is read from their texts, and checks before any work.

A parameter of a verb that is annotated with a record (``Common``, ``Fitting``, ``Conditions``, ``Sampling``) stands for
the options that are the record's fields: ``register`` spreads them out for the parser and gathers them again. Help texts
are what the docstring says of a name under ``Args:`` or ``Attributes:``; where they begin with a word in capitals and a
colon, it is the name of the value. Without an annotation of its own an option has the parameter's name.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from sfumato.cli.console import Verb, counting
from sfumato.core.docstrings import described
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.data import ImageSet
    from sfumato.generator import Generator
    from sfumato.guidance import Guidance
    from sfumato.ladder import Ladder


def option(*names: str, help: str = "", metavar: str | None = None) -> Any:
    """An option; its default is printed unless the help says what it is."""
    return typer.Option(*names, help=help, metavar=metavar, show_default="Default" not in help)


def argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, show_default=False)


_SOURCES = "one of {sources}; a folder (class sub-folders, or captions), an .npz file, or hf:owner/name."
_MODEL = "a run folder, a model.safetensors, or hf:owner/name."
_CLASSIFIER = "a trained folder, effnet-lite0, timm:NAME, hf:NAME or py:package.module:factory."

ModelArgument = Annotated[str, argument("MODEL", f"Trained diffusion model: {_MODEL}")]
_PACKAGED = f"Trained diffusion model: {_MODEL} Default: the packaged one, which draws emoji."
PackagedModelArgument = Annotated[str | None, argument("MODEL", _PACKAGED)]
ClassifierArgument = Annotated[str, argument("CLF", f"Image classifier: {_CLASSIFIER}")]
SomeClassifierArgument = Annotated[str | None, argument("CLF", f"Image classifier: {_CLASSIFIER}")]
DataOption = Annotated[str, option("--data", metavar="SRC", help=f"Data set: {_SOURCES}")]
SomeDataOption = Annotated[str | None, option("--data", metavar="SRC", help=f"Labelled data set: {_SOURCES}")]
DeviceOption = Annotated[str, option("--device", help="Where to compute: auto, cpu, cuda or cuda:1.")]
SeedOption = Annotated[int, option("--seed", help="Random seed: same seed, same device, same result.")]
_JSON = "Print one JSON object on standard output, all else on standard error."
JsonOption = Annotated[bool, option("--json", help=_JSON)]
SizeOption = Annotated[
    str | None,
    option("--size", help="Image size: a side in pixels, or WIDTHxHEIGHT; even. Default: what suits the data."),
]
FitOption = Annotated[str, option("--fit", help="How images of other shapes are brought to the size: crop or pad.")]
SetOption = Annotated[
    list[str] | None, option("--set", metavar="KEY=VALUE", help="Another setting, see below; can be repeated.")
]
OutFolder = Annotated[Path, option("-o", "--out", metavar="FOLDER", help="Output folder.")]
RunFolder = Annotated[
    Path, option("-o", "--out", metavar="FOLDER", help="Output folder; re-run the command to resume.")
]
SomeOutFolder = Annotated[Path | None, option("-o", "--out", metavar="FOLDER", help="Output folder. Default: none.")]
OutPicture = Annotated[Path, option("-o", "--out", metavar="FILE", help="Output picture: .png, .jpg or .webp.")]
OutImages = Annotated[
    str,
    option(
        "-o", "--out", help="Output: a picture for a grid, a name that ends in / for single files, or an .npz file."
    ),
]
CountOption = Annotated[int, option("-n", "--count", help="Number of images.")]
NormOption = Annotated[str, option("--norm", help="Norm of the perturbation: Linf, L2, L1 or L0.")]
EpsOption = Annotated[str, option("--eps", help="Perturbation size (epsilon), of pixels in [0, 1]: 8/255 or 0.5.")]


# -- records: options that go together --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Common:
    """What nearly every verb has."""

    seed: SeedOption = 0
    device: DeviceOption = "auto"
    json: JsonOption = False


@dataclass(frozen=True)
class Fitting:
    """How images are brought to one size."""

    size: SizeOption = None
    fit: FitOption = "crop"

    @property
    def pixels(self) -> int | tuple[int, int] | None:
        return read_size(self.size)


@dataclass(frozen=True)
class Conditions:
    """What the images are conditioned on.

    Attributes:
        label: Class label, by name or number; several take turns. Default: all; of edit none.
        prompt: Text prompt; -n images of each of several. Default: none, unconditional.
    """

    label: list[str] | None = None
    prompt: list[str] | None = None

    def of(self, count: int) -> dict[str, Any]:
        """``n``, ``label`` and ``prompt`` as the library takes them."""
        labels = [self.label[i % len(self.label)] for i in range(count)] if self.label else None
        prompts = [text for text in self.prompt for _ in range(count)] if self.prompt else None
        return {"n": len(prompts) if prompts else count, "label": labels, "prompt": prompts}


@dataclass(frozen=True)
class Stepping:
    """How a diffusion model is sampled.

    Attributes:
        sampler: Sampler (ODE or SDE solver): one of {samplers}. Default: dpmpp-2m.
        steps: Sampling steps over all stages. Default: 10, or more with more stages.
        guidance: Classifier-free guidance scale; 1 is off. Default: 1 for labels, 3 for prompts.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None

    def of(self) -> dict[str, Any]:
        """As the library takes them."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}


@dataclass(frozen=True)
class Guided(Stepping):
    """The same, and all of guidance.

    Attributes:
        interval: LOW,HIGH: Guidance interval: noise levels within which it acts.
        rescale: Guidance rescale, 0 to 1: brings the standard deviation back.
        threshold: Dynamic thresholding: a percentile such as 0.995; 0 is off.
    """

    interval: str | None = None
    rescale: float = 0.0
    threshold: float = 0.0

    def guided(self, generator: Generator) -> Guidance:
        """What was asked for, over what suits the model."""
        from dataclasses import replace

        asked: dict[str, Any] = {"interval": read_interval(self.interval), "rescale": self.rescale}
        asked |= {"scale": self.guidance} if self.guidance is not None else {}
        asked |= {"threshold": self.threshold} if self.threshold else {}
        return replace(generator.default_guidance, **asked)


@dataclass(frozen=True)
class Sampling(Guided):
    """The same, and autoguidance.

    Attributes:
        weak: MODEL: Autoguidance: a weaker model, in the place of the unconditional one.
    """

    weak: str | None = None


def register(app: typer.Typer, name: str, verb: Callable[..., Any], kind: type[Verb] = Verb) -> None:
    """Add a verb to the command line, the fields of its records as options."""
    app.command(name, cls=kind)(_spread(verb))


def _spread(verb: Callable[..., Any]) -> Callable[..., Any]:
    hints, texts = get_type_hints(verb, include_extras=True), described(verb)
    records = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        name = parameter.name
        if name not in records:
            parameters.append(parameter.replace(annotation=_explained(name, hints[name], texts)))
            continue
        kinds, said = get_type_hints(records[name], include_extras=True), _described_fields(records[name])
        parameters += [
            parameter.replace(name=each, default=_default(field), annotation=_explained(each, kinds[each], said))
            for each, field in ((field.name, field) for field in fields(records[name]))
        ]

    @functools.wraps(verb)
    def run(**given: Any) -> Any:
        gathered = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in records.items()
        }
        return verb(**given, **gathered)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    run.__doc__ = (verb.__doc__ or "").partition("\n\n    Args:")[0]
    return run


def _described_fields(record: type) -> dict[str, str]:
    """What the docstrings of a record and of those that it extends say of the fields."""
    return {name: text for kind in reversed(record.__mro__) for name, text in described(kind, "Attributes").items()}


def _explained(name: str, hint: Any, texts: Mapping[str, str]) -> Any:
    """The type of an option with its names and the help text that a docstring has for it."""
    if name not in texts:
        return hint
    kind, given = get_args(hint) if get_origin(hint) is Annotated else (hint, option(f"--{name.replace('_', '-')}"))
    metavar, text = re.fullmatch(r"(?:([A-Z][A-Z, =]*): )?(.*)", texts[name]).groups()  # type: ignore[union-attr]
    info: Any = option(*(given.default, *given.param_decls), help=text, metavar=metavar)
    return Annotated[kind, info]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


# -- what is read from texts ------------------------------------------------------------------------------------------


def read_eps(text: str) -> float:
    """``8/255`` or ``0.03`` as a number."""
    try:
        value = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(
            f"--eps {text!r} is no size: give a fraction such as 8/255, or a number such as 0.03"
        ) from None
    if not 0 <= value < float("inf"):
        raise InputError(f"--eps {text!r} cannot be: give a size of 0 or more")
    return value


def read_size(text: str | None) -> int | tuple[int, int] | None:
    """``64`` or ``WIDTHxHEIGHT`` as a side or (H, W)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(
            f"--size {text!r} cannot be read: give a side in pixels such as 64, or WIDTHxHEIGHT such as 64x48"
        )
    return int(parts[0]) if len(parts) == 1 else (int(parts[1]), int(parts[0]))


def read_settings(pairs: Sequence[str] | None) -> dict[str, str]:
    """``key=value`` texts as a dictionary."""
    settings: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r} is not of the form key=value: give for example --set batch=64")
        if key.strip() in settings:
            raise InputError(f"--set {key.strip()} is given twice: give it once")
        settings[key.strip()] = value.strip()
    return settings


def read_interval(text: str | None) -> tuple[float, float]:
    """``0.1,2`` as two numbers; everything when left out."""
    if text is None:
        return 0.0, float("inf")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--interval {text!r} cannot be read: give two noise levels such as 0.1,2") from None
    return low, high


def read_radii(text: str | None) -> tuple[float, ...] | None:
    """``0.25,0.5`` as numbers."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--radii {text!r} cannot be read: give L2 distances such as 0.25,0.5,0.75,1") from None
    if not all(0 < radius < float("inf") for radius in found):
        raise InputError(f"--radii {text!r}: give L2 distances over 0")
    return found


# -- data -------------------------------------------------------------------------------------------------------------


def load_images(source: str, size: int | tuple[int, int] | None, fit: str, split: str = "train") -> ImageSet:
    """The images, with a bar on a terminal while they are decoded."""
    from sfumato.data import load

    with counting(f"reading {source}") as progress:
        return load(source, split=split, size=size, fit=fit, progress=progress)


def load_images_of(ladder: Ladder, source: str, fit: str, split: str = "test") -> ImageSet:
    """The same at a model's size; InputError where they have other channels than its images."""
    images = load_images(source, ladder.size, fit, split)
    if images.channels != ladder.channels:
        raise InputError(
            f"{source} has {images.channels} channels, the model {ladder.channels}: give data like the model's"
        )
    return images


def load_random(ladder: Ladder, source: str, fit: str, count: int, seed: int) -> ImageSet:
    """``count`` test images of a source at random, at a model's size."""
    import numpy as np

    from sfumato.metrics.features import subset

    images = load_images_of(ladder, source, fit)
    return subset(images, np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))


def name_of(path: str) -> str:
    """What a classifier is called in figures and file names: the last part of a path."""
    return path if ":" in path else Path(path).name or path


# -- checks before any work -------------------------------------------------------------------------------------------


def check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"-n {count}: give 1 or more")


def check_file(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file that cannot be written."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"-o {str(path)!r} must end in {' or '.join(suffixes)}: give such a name")
    if path.is_dir():
        raise InputError(f"-o {str(path)!r} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"-o {str(path)!r}: there is no folder {str(path.parent)!r}: make it, or write elsewhere")


def check_folder(path: Path | None) -> None:
    """Refuse a folder that is, or lies below, a file."""
    if path is None:
        return
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"-o {str(path)!r}: {str(nearest)!r} is a file, not a folder: give another name")
