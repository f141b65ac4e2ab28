"""``sfumato attack``."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import show, waiting
from sfumato.cli.options import option


def attack(
    classifier: options.ClassifierArgument,
    data: options.DataOption,
    name: Annotated[str, option("--attack")],
    out: options.OutFolder,
    norm: str | None = None,
    eps: str | None = None,
    count: options.CountOption = 8,
    targeted: str | None = None,
    steps: int | None = None,
    settings: Annotated[list[str] | None, option("--set")] = None,
    *,
    fitting: options.Fitting,
    common: options.Common,
) -> None:
    """Craft adversarial examples for a few images, and show them: clean, noise, adversarial, and the predictions.

    Args:
        name: Adversarial attack: one of {attacks}.
        norm: Norm of the perturbation: Linf, L2, L1 or L0. Default: the attack's own.
        eps: Perturbation size (epsilon), of pixels in [0, 1]: 8/255 or 0.5. Default: the attack's own.
        count: Number of test images to attack.
        targeted: LABEL: Target class of the attack. Default: untargeted.
        steps: Attack iterations. Default: the attack's own.
        settings: KEY=VALUE: Another setting of the attack; can be repeated.
    """
    radius = None if eps is None else options.read_eps(eps)
    chosen = options.read_settings(settings)
    if steps is not None:
        chosen["steps"] = str(steps)
    pixels = fitting.pixels
    options.check_folder(out)
    from sfumato.attacks import ATTACKS
    from sfumato.audit import demonstrate
    from sfumato.audit.demonstration import PICTURES, read_options
    from sfumato.classifiers import find_classifier

    read_options(name, ATTACKS.find(name), norm, radius, chosen)  # before anything is loaded
    found = find_classifier(classifier, common.device)
    images = options.load_images(data, pixels or found.size, fitting.fit, "test")
    with waiting(f"attacking {classifier}"):
        how: dict[str, Any] = {"norm": norm, "eps": radius, "target": targeted, "count": count, "options": chosen}
        shown = demonstrate(found, images, name, seed=common.seed, **how)
        result = shown.save(out)
    lines = [shown.line(), f"pictures: {out / PICTURES}"]
    if shown.eps is not None and name != "universal":
        words = shlex.join([classifier, "--data", data, "--norm", shown.norm, "--eps", eps or f"{shown.eps:g}"])
        lines.append(f"next: sfumato audit {words} -o report")
    show(lines, {"classifier": classifier, "data": data, **result, "out": str(out)}, common.json)
