"""The peers' attacks, each called the way its own documentation does, on one module that counts what is asked of it.

A peer is a function ``(module, x, y, norm, eps, steps, seed) -> x_adv``; ``steps`` are the same as ours. Step sizes that
a peer wants to be told are 2.5 eps / steps; all else is its default. A package that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.classifiers import Classifier

Peer = Callable[[nn.Module, Tensor, Tensor, str, float, int, int], Tensor]

PACKAGES = ("torchattacks", "foolbox", "adv-lib", "pyautoattack", "art")
_MODULES = {"adv-lib": "adv_lib.attacks", "art": "art.attacks.evasion"}
_ORDER = {"L0": 0, "L1": 1, "L2": 2, "Linf": float("inf")}
_ABSENT = ("visdom", "torchvision", "torchvision.models")  # adv-lib imports them, its attacks do not use them


class Plain(nn.Module):
    """A classifier's model and preprocessing as a module; counts images forwards and backwards."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.prepared = classifier.model, classifier.preprocess
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        self.forwards += count
        logits = self.model(self.prepared(x))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._went_back(count))
        return logits

    def _went_back(self, count: int) -> None:
        self.backwards += count


def installed(package: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(package, package).split(".")[0]) is not None


def run(
    peer: Peer, classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int
) -> tuple[Tensor, Plain]:
    """What the peer returns, detached, and the module that counted; the peers' own progress bars and logs are kept quiet."""
    module = Plain(classifier).eval()
    torch.manual_seed(seed)
    logging.disable(logging.WARNING)
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            x_adv = peer(module, x.clone(), y.clone(), norm, eps, steps, seed)
    finally:
        logging.disable(logging.NOTSET)
    return x_adv.detach(), module


def _package(name: str) -> Any:
    with _stand_ins() if name == "adv-lib" else contextlib.nullcontext():
        return importlib.import_module(_MODULES.get(name, name))


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules in place of absent ones, for as long as an import lasts."""
    added = [name for name in _ABSENT if name not in sys.modules and not _found(name)]
    for name in added:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.models = sys.modules.setdefault("torchvision.models", module)  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def torchattacks(name: str, **settings: Any) -> Peer:
    """A class of torchattacks; settings that are functions are called with (eps, steps)."""

    def run(module: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        chosen = {key: value(eps, steps) if callable(value) else value for key, value in settings.items()}
        named = chosen.pop("named", ())
        if "norm" in named:
            chosen["norm"] = norm
        if "seed" in named:
            chosen["seed"] = seed
        return getattr(_package("torchattacks"), name)(module, **chosen)(x, y)

    return run


def foolbox(names: dict[str, str], **settings: Any) -> Peer:
    """A class of foolbox a norm; settings that are functions are called with (eps, steps)."""

    def run(module: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        package = _package("foolbox")
        chosen = {key: value(eps, steps) if callable(value) else value for key, value in settings.items()}
        if chosen.pop("constraint", None):
            chosen["constraint"] = norm.lower()
        attack = getattr(package.attacks, names[norm])(**chosen)
        model = package.PyTorchModel(module, bounds=(0, 1), device="cpu")
        return attack(model, x, y, epsilons=eps or None)[1 if eps else 0]

    return run


def adv_lib(name: str, **settings: Any) -> Peer:
    """A function of adv-lib; settings that are functions are called with (norm, eps, steps)."""

    def run(module: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        chosen = {key: value(norm, eps, steps) if callable(value) else value for key, value in settings.items()}
        return getattr(_package("adv-lib"), name)(module, x, y, **chosen)

    return run


def auto_attack(member: str) -> Peer:
    """A member of pyautoattack's ensemble alone, with ``steps`` in place of its number of steps or queries."""

    def run(module: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        whole = _package("pyautoattack").AutoAttack(module, norm=norm, eps=eps, device="cpu", seed=seed)
        own = {"n_iter": steps, "n_restarts": 1, "norm": norm, "eps": eps, "seed": seed, "device": "cpu",
               "logger": whole.logger, "use_largereps": norm == "L1"}  # fmt: skip
        whole.apgd = type(whole.apgd)(module, **own)  # some of its settings follow from n_iter when it is made
        whole.apgd_targeted = type(whole.apgd_targeted)(module, n_target_classes=5 if norm == "L1" else 9, **own)
        whole.fab.n_iter, whole.square.n_queries = steps, steps
        whole.attacks_to_run = [member]
        return whole.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return run


def art(name: str, estimator: str = "estimator", /, **settings: Any) -> Peer:
    """A class of adversarial-robustness-toolbox; settings that are functions are called with (norm, eps, steps)."""

    def run(module: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        import numpy as np

        np.random.seed(seed)
        package = _package("art")
        with torch.no_grad():
            classes = module(x[:1]).shape[1]
        model = importlib.import_module("art.estimators.classification").PyTorchClassifier(
            module, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes,
            clip_values=(0.0, 1.0), device_type="cpu",
        )  # fmt: skip
        chosen = {key: value(norm, eps, steps) if callable(value) else value for key, value in settings.items()}
        attack = getattr(package, name)(**{estimator: model}, **chosen)
        return torch.from_numpy(attack.generate(x.numpy(), y=np.eye(classes, dtype=np.float32)[y.numpy()]))

    return run


def by_norm(peers: dict[str, Peer]) -> Peer:
    """One for each norm, where the package has them under several names."""
    return lambda module, x, y, norm, eps, steps, seed: peers[norm](module, x, y, norm, eps, steps, seed)


def _step(eps: float, steps: int) -> float:
    return 2.5 * eps / steps


def _order(norm: str, eps: float, steps: int) -> float:
    return _ORDER[norm]


_STEPS = {"steps": lambda eps, steps: steps}
_EPS_OF = {"eps": lambda norm, eps, steps: eps}
_ART = {"norm": _order, **_EPS_OF, "verbose": False}
_TA = {"eps": lambda eps, steps: eps, "named": ("norm", "seed")}

# (attack of ours, package): the norms that the peer has, and the peer.
FIXED: dict[tuple[str, str], tuple[tuple[str, ...], Peer]] = {
    ("fgsm", "torchattacks"): (("Linf",), torchattacks("FGSM", eps=lambda eps, steps: eps)),
    ("fgsm", "foolbox"): (
        ("Linf", "L2", "L1"),
        foolbox({n: f"{n}FastGradientAttack" for n in ("Linf", "L2", "L1")}),
    ),
    ("fgsm", "art"): (("Linf", "L2", "L1"), art("FastGradientMethod", norm=_order, eps=_EPS_OF["eps"])),
    ("pgd", "torchattacks"): (
        ("Linf", "L2"),
        by_norm({
            "Linf": torchattacks("PGD", eps=lambda eps, steps: eps, alpha=_step, **_STEPS),
            "L2": torchattacks("PGDL2", eps=lambda eps, steps: eps, alpha=_step, **_STEPS),
        }),
    ),
    ("pgd", "foolbox"): (
        ("Linf", "L2", "L1"),
        foolbox(
            {"Linf": "LinfPGD", "L2": "L2PGD", "L1": "L1PGD"}, rel_stepsize=lambda eps, steps: 2.5 / steps, **_STEPS
        ),
    ),
    ("pgd", "adv-lib"): (
        ("Linf",),
        adv_lib("pgd_linf", ε=_EPS_OF["eps"], steps=lambda n, e, steps: steps, relative_step_size=lambda n, e, s: 2.5 / s),
    ),
    ("pgd", "art"): (
        ("Linf", "L2"),
        art("ProjectedGradientDescent", eps_step=lambda n, eps, steps: _step(eps, steps), max_iter=lambda n, e, s: s,
            num_random_init=1, batch_size=256, **_ART),
    ),
    ("apgd", "pyautoattack"): (("Linf", "L2", "L1"), auto_attack("apgd-ce")),
    ("apgd", "torchattacks"): (("Linf", "L2"), torchattacks("APGD", **_TA, **_STEPS)),
    ("apgd", "adv-lib"): (
        ("Linf", "L2", "L1"),
        adv_lib("apgd", norm=_order, **_EPS_OF, n_iter=lambda n, e, s: s, loss_function="ce",
                use_large_reps=lambda norm, e, s: norm == "L1"),
    ),
    ("apgd", "art"): (
        ("Linf", "L2"),
        art("AutoProjectedGradientDescent", eps_step=lambda n, eps, s: 2 * eps, max_iter=lambda n, e, s: s,
            nb_random_init=1, batch_size=256, loss_type="cross_entropy", **_ART),
    ),
    ("apgd-t", "pyautoattack"): (("Linf", "L2", "L1"), auto_attack("apgd-t")),
    ("apgd-t", "torchattacks"): (("Linf", "L2"), torchattacks("APGDT", **_TA, **_STEPS)),
    ("apgd-t", "adv-lib"): (
        ("Linf", "L2", "L1"),
        adv_lib("apgd_targeted", norm=_order, **_EPS_OF, n_iter=lambda n, e, s: s,
                num_targets=lambda norm, e, s: 5 if norm == "L1" else 9, use_large_reps=lambda norm, e, s: norm == "L1"),
    ),
    ("fab", "pyautoattack"): (("Linf", "L2", "L1"), auto_attack("fab-t")),
    ("square", "pyautoattack"): (("Linf", "L2", "L1"), auto_attack("square")),
    ("square", "torchattacks"): (
        ("Linf", "L2"),
        torchattacks("Square", **_TA, n_queries=lambda eps, steps: steps, resc_schedule=True),
    ),
    ("square", "art"): (
        ("Linf", "L2"),
        art("SquareAttack", max_iter=lambda n, e, s: s, **_ART),
    ),
}  # fmt: skip

MINIMAL: dict[tuple[str, str], tuple[tuple[str, ...], Peer]] = {
    ("deepfool", "adv-lib"): (("L2", "Linf"), adv_lib("df", norm=_order, steps=lambda n, e, s: s)),
    ("deepfool", "foolbox"): (("L2", "Linf"), foolbox({n: f"{n}DeepFoolAttack" for n in ("L2", "Linf")}, **_STEPS)),
    ("deepfool", "torchattacks"): (("L2",), torchattacks("DeepFool", **_STEPS)),
    ("deepfool", "art"): (
        ("L2",),
        art("DeepFool", "classifier", max_iter=lambda n, e, s: s, batch_size=64, verbose=False),
    ),
    ("carlini-wagner", "adv-lib"): (("L2",), adv_lib("carlini_wagner_l2", max_iterations=lambda n, e, s: s)),
    ("carlini-wagner", "foolbox"): (("L2",), foolbox({"L2": "L2CarliniWagnerAttack"}, **_STEPS)),
    ("carlini-wagner", "torchattacks"): (("L2",), torchattacks("CW", steps=lambda eps, steps: 9 * steps)),
    ("ddn", "adv-lib"): (("L2",), adv_lib("ddn", steps=lambda n, e, s: s, levels=None)),
    ("ddn", "foolbox"): (("L2",), foolbox({"L2": "DDNAttack"}, **_STEPS)),
    ("fmn", "adv-lib"): (
        ("L0", "L1", "L2", "Linf"),
        adv_lib("fmn", norm=_order, steps=lambda n, e, s: s, α_init=lambda norm, e, s: 10.0 if norm == "Linf" else 1.0),
    ),
    ("fmn", "foolbox"): (
        ("L0", "L1", "L2", "Linf"),
        foolbox({"L0": "L0FMNAttack", "L1": "L1FMNAttack", "L2": "L2FMNAttack", "Linf": "LInfFMNAttack"}, **_STEPS),
    ),
    ("sigma-zero", "adv-lib"): (("L0",), adv_lib("sigma_zero", num_steps=lambda n, e, s: s)),
    ("fab", "adv-lib"): (
        ("Linf", "L2", "L1"),
        adv_lib("fab", norm=_order, n_iter=lambda n, e, s: s, targeted_restarts=True, restarts=9),
    ),
    ("hop-skip-jump", "foolbox"): (
        ("L2", "Linf"),
        foolbox(dict.fromkeys(("L2", "Linf"), "HopSkipJumpAttack"), constraint=True, **_STEPS),
    ),
    ("hop-skip-jump", "art"): (
        ("L2", "Linf"),
        art("HopSkipJump", "classifier", norm=_order, max_iter=lambda n, e, s: s, verbose=False),
    ),
}  # fmt: skip
