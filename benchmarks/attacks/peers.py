"""The peers' attacks, each called the way its own documentation does, on one module that counts what is asked of it.

A peer is a function ``(module, x, y, call) -> x_adv``; the steps of a call are the same as ours. Step sizes that a peer
must be given are 2.5 eps / steps; all else is its default. A package that is not installed is left out.
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
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.classifiers import Classifier

_MODULES = {"adv-lib": "adv_lib.attacks", "art": "art.attacks.evasion"}
_ABSENT = ("visdom", "torchvision", "torchvision.models")  # adv-lib imports them, its attacks do not use them


class Call(NamedTuple):
    """What an attack is asked; ``eps`` is 0 for the minimal-norm ones."""

    norm: str
    eps: float
    steps: int
    seed: int

    def order(self) -> float:
        return {"L0": 0, "L1": 1, "L2": 2, "Linf": float("inf")}[self.norm]

    def step_size(self) -> float:
        return 2.5 * self.eps / self.steps

    def relative_step(self) -> float:
        return 2.5 / self.steps

    def is_l1(self) -> bool:
        return self.norm == "L1"

    def target_classes(self) -> int:
        return 5 if self.is_l1() else 9


norm, size, steps, seed = (attrgetter(name) for name in ("norm", "eps", "steps", "seed"))
order, step_size, relative_step = Call.order, Call.step_size, Call.relative_step
is_l1, target_classes = Call.is_l1, Call.target_classes

Peer = Callable[[nn.Module, Tensor, Tensor, Call], Tensor]


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


def run(peer: Peer, classifier: Classifier, x: Tensor, y: Tensor, call: Call) -> tuple[Tensor, Plain]:
    """What the peer returns, detached, and the module that counted; the peers' own progress bars and logs are kept quiet."""
    module = Plain(classifier).eval()
    torch.manual_seed(call.seed)
    logging.disable(logging.WARNING)
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            x_adv = peer(module, x.clone(), y.clone(), call)
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


def _given(settings: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """Settings of a peer are values, or functions of the call."""
    return {key: value(call) if callable(value) else value for key, value in settings.items()}


def torchattacks(name: str | dict[str, str], **settings: Any) -> Peer:
    """A class of torchattacks, or one a norm."""

    def run(module: nn.Module, x: Tensor, y: Tensor, call: Call) -> Tensor:
        named = name if isinstance(name, str) else name[call.norm]
        return getattr(_package("torchattacks"), named)(module, **_given(settings, call))(x, y)

    return run


def foolbox(names: dict[str, str], **settings: Any) -> Peer:
    """A class of foolbox a norm."""

    def run(module: nn.Module, x: Tensor, y: Tensor, call: Call) -> Tensor:
        package = _package("foolbox")
        attack = getattr(package.attacks, names[call.norm])(**_given(settings, call))
        model = package.PyTorchModel(module, bounds=(0, 1), device="cpu")
        return attack(model, x, y, epsilons=call.eps or None)[1 if call.eps else 0]

    return run


def adv_lib(name: str, **settings: Any) -> Peer:
    """A function of adv-lib."""
    return lambda module, x, y, call: getattr(_package("adv-lib"), name)(module, x, y, **_given(settings, call))


def auto_attack(member: str) -> Peer:
    """A member of pyautoattack's ensemble alone, with ``steps`` in place of its number of steps or queries."""

    def run(module: nn.Module, x: Tensor, y: Tensor, call: Call) -> Tensor:
        shared: dict[str, Any] = {"norm": call.norm, "eps": call.eps, "device": "cpu", "seed": call.seed}
        whole = _package("pyautoattack").AutoAttack(module, **shared)
        own = {**shared, "n_iter": call.steps, "n_restarts": 1, "logger": whole.logger, "use_largereps": call.is_l1()}
        whole.apgd = type(whole.apgd)(module, **own)  # some of its settings follow from n_iter when it is made
        whole.apgd_targeted = type(whole.apgd_targeted)(module, n_target_classes=call.target_classes(), **own)
        whole.fab.n_iter, whole.square.n_queries = call.steps, call.steps
        whole.attacks_to_run = [member]
        return whole.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return run


def art(name: str, estimator: str = "estimator", /, **settings: Any) -> Peer:
    """A class of adversarial-robustness-toolbox."""

    def run(module: nn.Module, x: Tensor, y: Tensor, call: Call) -> Tensor:
        import numpy as np

        np.random.seed(call.seed)
        package = _package("art")
        with torch.no_grad():
            classes = module(x[:1]).shape[1]
        shape = {"input_shape": tuple(x.shape[1:]), "nb_classes": classes, "clip_values": (0.0, 1.0)}
        build = importlib.import_module("art.estimators.classification").PyTorchClassifier
        model = build(module, loss=nn.CrossEntropyLoss(), device_type="cpu", **shape)
        attack = getattr(package, name)(**{estimator: model}, **_given(settings, call))
        return torch.from_numpy(attack.generate(x.numpy(), y=np.eye(classes, dtype=np.float32)[y.numpy()]))

    return run


def _named(pattern: str, norms: tuple[str, ...]) -> dict[str, str]:
    return {each: pattern.format(each) for each in norms}


ALL, TWO, L2, LINF = ("Linf", "L2", "L1"), ("Linf", "L2"), ("L2",), ("Linf",)
FOUR = ("L0", "L1", "L2", "Linf")
_PGD = {"Linf": "PGD", "L2": "PGDL2"}
_TA: dict[str, Any] = {"eps": size, "norm": norm, "seed": seed}
_ART: dict[str, Any] = {"norm": order, "eps": size, "max_iter": steps, "verbose": False}
_ART_PGD: dict[str, Any] = {**_ART, "num_random_init": 1, "batch_size": 256, "eps_step": step_size}
_ART_APGD: dict[str, Any] = {**_ART, "nb_random_init": 1, "batch_size": 256, "loss_type": "cross_entropy"}
_ART_APGD["eps_step"] = lambda call: 2 * call.eps
_ADV: dict[str, Any] = {"norm": order, "eps": size, "n_iter": steps}
_ADV_T: dict[str, Any] = {**_ADV, "num_targets": target_classes, "use_large_reps": is_l1}
_FMN = {"L0": "L0FMNAttack", "L1": "L1FMNAttack", "L2": "L2FMNAttack", "Linf": "LInfFMNAttack"}
_HSJ = {"constraint": lambda call: call.norm.lower(), "steps": steps}
_ART_DF: dict[str, Any] = {"max_iter": steps, "batch_size": 64, "verbose": False}

Peers = dict[str, dict[str, tuple[tuple[str, ...], Peer]]]  # attack of ours -> package -> its norms, the peer

FIXED: Peers = {
    "fgsm": {
        "torchattacks": (LINF, torchattacks("FGSM", eps=size)),
        "foolbox": (ALL, foolbox(_named("{}FastGradientAttack", ALL))),
        "art": (ALL, art("FastGradientMethod", norm=order, eps=size)),
    },
    "pgd": {
        "torchattacks": (TWO, torchattacks(_PGD, eps=size, alpha=step_size, steps=steps)),
        "foolbox": (ALL, foolbox(_named("{}PGD", ALL), rel_stepsize=relative_step, steps=steps)),
        "adv-lib": (LINF, adv_lib("pgd_linf", ε=size, steps=steps, relative_step_size=relative_step)),
        "art": (TWO, art("ProjectedGradientDescent", **_ART_PGD)),
    },
    "apgd": {
        "pyautoattack": (ALL, auto_attack("apgd-ce")),
        "torchattacks": (TWO, torchattacks("APGD", **_TA, steps=steps)),
        "adv-lib": (ALL, adv_lib("apgd", **_ADV, loss_function="ce", use_large_reps=is_l1)),
        "art": (TWO, art("AutoProjectedGradientDescent", **_ART_APGD)),
    },
    "apgd-t": {
        "pyautoattack": (ALL, auto_attack("apgd-t")),
        "torchattacks": (TWO, torchattacks("APGDT", **_TA, steps=steps)),
        "adv-lib": (ALL, adv_lib("apgd_targeted", **_ADV_T)),
    },
    "fab": {"pyautoattack": (ALL, auto_attack("fab-t"))},
    "square": {
        "pyautoattack": (ALL, auto_attack("square")),
        "torchattacks": (TWO, torchattacks("Square", **_TA, n_queries=steps, resc_schedule=True)),
        "art": (TWO, art("SquareAttack", **_ART)),
    },
}
MINIMAL: Peers = {
    "deepfool": {
        "adv-lib": (TWO, adv_lib("df", norm=order, steps=steps)),
        "foolbox": (TWO, foolbox(_named("{}DeepFoolAttack", TWO), steps=steps)),
        "torchattacks": (L2, torchattacks("DeepFool", steps=steps)),
        "art": (L2, art("DeepFool", "classifier", **_ART_DF)),
    },
    "carlini-wagner": {
        "adv-lib": (L2, adv_lib("carlini_wagner_l2", max_iterations=steps)),
        "foolbox": (L2, foolbox({"L2": "L2CarliniWagnerAttack"}, steps=steps)),
        "torchattacks": (L2, torchattacks("CW", steps=lambda call: 9 * call.steps)),
    },
    "ddn": {
        "adv-lib": (L2, adv_lib("ddn", steps=steps, levels=None)),
        "foolbox": (L2, foolbox({"L2": "DDNAttack"}, steps=steps)),
    },
    "fmn": {
        "adv-lib": (FOUR, adv_lib("fmn", norm=order, steps=steps, α_init=lambda c: 10.0 if c.norm == "Linf" else 1.0)),
        "foolbox": (FOUR, foolbox(_FMN, steps=steps)),
    },
    "sigma-zero": {"adv-lib": (("L0",), adv_lib("sigma_zero", num_steps=steps))},
    "fab": {"adv-lib": (ALL, adv_lib("fab", norm=order, n_iter=steps, targeted_restarts=True, restarts=9))},
    "hop-skip-jump": {
        "foolbox": (TWO, foolbox(_named("HopSkipJumpAttack", TWO), **_HSJ)),
        "art": (TWO, art("HopSkipJump", "classifier", norm=order, max_iter=steps, verbose=False)),
    },
}


def find(peers: Peers, attack: str, threat: str) -> dict[str, Peer]:
    """The installed counterparts of an attack of ours by package."""
    known = peers.get(attack, {}).items()
    return {package: peer for package, (norms, peer) in known if threat in norms and installed(package)}
