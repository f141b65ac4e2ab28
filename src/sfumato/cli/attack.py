"""``sfumato attack``."""

from __future__ import annotations

import shlex
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    JsonOption,
    SeedOption,
    SizeOption,
    Verb,
    check_folder,
    load_images,
    read_settings,
    read_size,
    show,
    waiting,
)
from sfumato.core.errors import InputError

ClassifierArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLF",
        help="A trained folder, effnet-lite0, timm:NAME, hf:NAME or py:package.module:factory.",
        show_default=False,
    ),
]


class AttackVerb(Verb):
    """A command whose help names the attacks: they need torch, so only ``--help`` looks them up."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from sfumato.attacks import ATTACKS

        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text and "{attacks}" in text:
                parameter.help = text.replace("{attacks}", ", ".join(sorted(ATTACKS)))  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def attack(
    classifier: ClassifierArgument,
    data: DataOption,
    name: Annotated[str, typer.Option("--attack", help="One of {attacks}.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pictures and results.")],
    norm: Annotated[
        str | None,
        typer.Option("--norm", help="Linf, L2, L1 or L0. Default: the attack's own.", show_default=False),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", help="Size of the perturbation, of pixels in [0, 1]: 8/255 or 0.5.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images to draw and attack.")] = 8,
    targeted: Annotated[
        str | None,
        typer.Option(
            "--targeted", metavar="LABEL", help="The class to be named. Default: any wrong one.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of the attack. Default: its own.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the attack; as often as you like."),
    ] = None,
    fit: FitOption = "crop",
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fool a classifier on a few images, and look: clean, noise, adversarial, and what it says of each."""
    radius = None if eps is None else read_eps(eps)
    options = read_settings(settings or [])
    if steps is not None:
        options["steps"] = str(steps)
    pixels = read_size(size)
    check_folder(out)
    from sfumato.attacks import ATTACKS
    from sfumato.audit import demonstrate
    from sfumato.audit.demonstration import PICTURES, read_options
    from sfumato.classifiers import find_classifier

    read_options(name, ATTACKS.find(name), norm, radius, options)  # before anything is loaded
    found = find_classifier(classifier, device)
    images = load_images(data, pixels or found.size, fit, "test")
    with waiting(f"attacking {classifier}"):
        shown = demonstrate(
            found, images, name, norm=norm, eps=radius, target=targeted, count=count, seed=seed, options=options
        )
        result = shown.save(out)
    lines = [shown.line(), f"pictures: {out / PICTURES}"]
    if shown.eps is not None and name != "universal":
        words = shlex.join([classifier, "--data", data, "--norm", shown.norm, "--eps", eps or f"{shown.eps:g}"])
        lines.append(f"next: sfumato audit {words} -o report")
    show(lines, {"classifier": classifier, "data": data, **result, "out": str(out)}, as_json)


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
