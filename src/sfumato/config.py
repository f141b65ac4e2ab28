"""What defines a model and its training: one frozen record, presets by image size, and settings by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sfumato.conditions import Kinds
from sfumato.core.docstrings import described
from sfumato.core.errors import InputError, nearest
from sfumato.denoisers import NETWORKS, SHARING, Denoiser
from sfumato.ladder import WEIGHTS, Ladder

TARGETS = ("x", "z_next")
OPTIMIZERS = ("adamw", "muon")
LEVELS = ("uniform", "logit-normal")
WIDEST = 0.28  # ema widths that a power function can have
SAMPLING = ("guidance", "threshold")  # settings that shape the samples, not the training


@dataclass(frozen=True)
class Config:
    """Every choice that shapes a model, apart from the data and the budget; see ``PRESETS`` for the defaults by size.

    Attributes:
        stages: resolutions of the ladder; each further one halves the image.
        jumps: noise level at which each resolution is entered, coarse first; empty: by the size.
        plain: noise level at and below which a stage's state is the ordinary image + noise, coarse first; empty: by the size.
        network: architecture of the denoiser: unet or dit.
        options: of the network, see below.
        sharing: one network for all stages (shared), for each (stage), or for each rung (rung).
        rungs: noise levels in each stage, coarse first, for target z_next and sharing rung; empty: continuous levels.
        target: what the network regresses: the clean image (x), or the mean of the next, less noisy state (z_next).
        weights: loss weighting over noise levels: velocity, edm, elbo, min-snr or uniform.
        levels: distribution of the noise levels in training, in flow time: uniform or logit-normal.
        plain_share: share of the finest stage's training states that are ordinary image + noise, as defences need them.
        text: frozen language model that encodes captions: minilm, a folder, or owner/name on the Hub.
        drop: probability of dropping the condition, for classifier-free guidance.
        flip: random mirroring of the images.
        batch: batch size, in images of the finest stage.
        mix: training images of each stage for one of the finest, coarse first; empty: as many of each.
        optimizer: muon or adamw.
        learning_rate: peak learning rate.
        warmup: share of the budget in which the learning rate rises.
        decay: share of the budget, at its end, in which the learning rate falls to 0.
        weight_decay: decoupled weight decay.
        clip: gradient clipping, by norm.
        ema: exponential moving average of the weights: its width as a share of the training so far (EDM2's sigma_rel).
        precision: bf16, float32, or auto: bf16 where it is faster.
        guidance: default guidance scale in sampling; 0: 1 for labels, 3 for texts.
        threshold: default percentile of dynamic thresholding in sampling; 0 is off.
    """

    # the ladder
    stages: int = 3
    jumps: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()
    # the denoiser
    network: str = "unet"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sharing: str = "shared"
    rungs: tuple[int, ...] = ()
    # what is learned
    target: str = "x"
    weights: str = "velocity"
    levels: str = "uniform"
    plain_share: float = 0.1
    text: str = "minilm"
    drop: float = 0.1
    flip: bool = False
    # how
    batch: int = 32
    mix: tuple[float, ...] = ()
    optimizer: str = "muon"
    learning_rate: float = 4e-3
    warmup: float = 0.02
    decay: float = 0.5
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.05
    precision: str = "auto"
    # what suits the model's samples, where nothing else is asked for
    guidance: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.network, tuple(NETWORKS), "network"),
            (self.sharing, SHARING, "sharing"),
            (self.target, TARGETS, "target"),
            (self.weights, tuple(WEIGHTS), "loss weight"),
            (self.levels, LEVELS, "levels"),
            (self.optimizer, OPTIMIZERS, "optimizer"),
            (self.precision, ("auto", "bf16", "float32"), "precision"),
        ):
            if value not in known:
                raise InputError(f"unknown {what} {value!r}: {nearest(value, known)}")
        shares = dict.fromkeys(("drop", "warmup", "decay", "weight_decay", "threshold"), 1)
        for name, high in {**shares, "plain_share": 0.9, "guidance": 100}.items():
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name}={getattr(self, name)} is impossible: give a number from 0 to {high}")
        for name in ("batch", "learning_rate", "clip", "ema"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}={getattr(self, name)} is impossible: give a number over 0")
        if self.ema >= WIDEST:
            raise InputError(f"ema={self.ema} is impossible: give a number under {WIDEST}")
        if self.rungs and (len(self.rungs) != self.stages or min(self.rungs) < 1):
            raise InputError(
                f"rungs={self.rungs} does not fit {self.stages} stages: give one number, 1 or more, for each"
            )
        if self.mix and (len(self.mix) != self.stages or not all(0 < share < float("inf") for share in self.mix)):
            raise InputError(f"mix={self.mix} does not fit {self.stages} stages: give one number over 0 for each")
        if self.target == "z_next" and not self.rungs:
            raise InputError("target=z_next needs rungs=, the number of rungs in each stage, such as rungs=4,4")

    def ladder(self, size: tuple[int, int], channels: int) -> Ladder:
        """The ladder over images of this size."""
        return Ladder(size, channels, self.stages, self.jumps, self.plain)

    def denoiser(self, ladder: Ladder, kinds: Kinds, **rms: Any) -> Denoiser:
        """A new denoiser (``rms``: smooth_rms and sharp_rms of the data)."""
        return Denoiser(ladder, kinds, self.network, self.options, self.sharing, self.rungs, **rms)

    def need_all_levels(self, work: str) -> None:
        """InputError for a model that knows its own rungs alone, where ``work`` needs noise levels between them."""
        if self.sharing == "rung":
            raise InputError(
                f"this model has a network for each of its rungs alone, and {work} needs all noise levels: "
                "train with sharing=shared or sharing=stage"
            )

    def with_settings(self, settings: Mapping[str, str]) -> Config:
        """Settings given as text (``--set key=value``); a network's own options count as keys too."""
        config = self
        if "network" in settings and settings["network"] != config.network:
            config = replace(config, network=settings["network"], options={})
        own = {f.name: f for f in fields(Config) if f.name != "options"}
        options = _network_options(config.network)
        hints = typing.get_type_hints(Config)
        changes: dict[str, Any] = {}
        changed_options = dict(config.options)
        for key, text in settings.items():
            if key in own:
                changes[key] = _parse(key, text, hints[key], getattr(config, key))
            elif key in options:
                changed_options[key] = _parse(key, text, type(options[key]), options[key])
            else:
                raise InputError(f"unknown setting {key!r}: {nearest(key, [*own, *options])}")
        return replace(config, options=changed_options, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts; ``from_json`` is the inverse."""
        plain = _swapped(asdict(self), tuple, list)
        return {**plain, "options": _swapped(self.options, tuple, list)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Config:
        known = {f.name for f in fields(Config)}
        if unknown := set(stored) - known:
            raise InputError(f"the configuration holds {sorted(unknown)}, which this version of sfumato does not know")
        values = _swapped(stored, list, tuple)
        values["options"] = _swapped(stored.get("options", {}), list, tuple)
        return Config(**values)


def _swapped(values: Mapping[str, Any], kind: type, wanted: type) -> dict[str, Any]:
    """What is of one kind becomes the other: JSON has lists, a frozen configuration tuples."""
    return {name: wanted(value) if isinstance(value, kind) else value for name, value in values.items()}


def _network_options(network: str) -> dict[str, Any]:
    """The names and defaults of a network's own options."""
    parameters = inspect.signature(NETWORKS.find(network)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def described_settings() -> dict[str, dict[str, str]]:
    """What each setting means, in one line, from the docstrings: those of a Config, then those of each network."""
    own = {name: text for name, text in described(Config, "Attributes").items() if name != "options"}
    explained = {"Settings (--set KEY=VALUE)": own}
    for name, network in NETWORKS.items():
        options = {key: text for key, text in described(network).items() if key in _network_options(name)}
        explained[f"Settings with network={name}"] = options
    return explained


def _parse(key: str, text: str, kind: Any, default: Any) -> Any:
    """Text to the type of a setting: numbers, words, true/false, and tuples of numbers joined by commas."""
    try:
        if typing.get_origin(kind) is tuple or kind in (tuple, list):
            whole = typing.get_args(kind)[:1] == (int,) or (default and isinstance(default[0], int))
            return tuple((int if whole else float)(part) for part in text.split(",") if part.strip())
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
        wanted = names.get(kind, "numbers joined by commas")
        raise InputError(f"setting {key}={text!r} cannot be read: give {wanted}") from None


@dataclass(frozen=True)
class Preset:
    """Widths and depths by level, innermost first; the rest follows from the size of the images."""

    up_to: int  # px, the larger side for which this preset is picked by itself
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    patch: int
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


PRESETS: dict[str, Preset] = {
    "tiny": Preset(12, (96, 64), (2, 1), 2),
    "small": Preset(40, (128, 64), (2, 2), 2),
    "medium": Preset(80, (192, 128, 64), (2, 2, 2), 2, {"learning_rate": 2e-3}),
    "large": Preset(160, (384, 256, 128), (3, 3, 2), 4, {"batch": 64, "learning_rate": 1e-3}),
    "huge": Preset(256, (512, 384, 192, 128), (4, 3, 2, 2), 4, {"learning_rate": 1e-3}),
}
LARGE = 32 * 32  # pixels of a feature map, above which widths are the outer levels' and nothing attends
COARSEST_LEVEL = 7  # px: feature maps halve down to this, not further
# The coarsest stage of images up to so many pixels. At 32 a third stage of 8 costs as much as one of 16 and does not pay.
COARSEST_STAGE = {12: 4, 27: 7, 256: 14}


def preset(size: tuple[int, int], name: str | None = None) -> Config:
    """The defaults for images of (height, width) pixels; ``name`` overrides the choice by size."""
    if name is not None and name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    chosen = PRESETS[name] if name else next((p for p in PRESETS.values() if max(size) <= p.up_to), None)
    if chosen is None:
        raise InputError(f"images of {size[0]}x{size[1]} are too large for the presets: give --size 256 or less")
    if min(size) < 4 or size[0] % 2 or size[1] % 2:
        raise InputError(
            f"images of {size[0]}x{size[1]} do not work: both sides must be even, and 4 pixels or more: give an even --size"
        )
    stages = 1 + _halvings(size, next(least for up_to, least in COARSEST_STAGE.items() if max(size) <= up_to))
    patch = chosen.patch
    while size[0] % patch or size[1] % patch:
        patch //= 2
    grid = size[0] // patch, size[1] // patch
    levels = min(1 + _halvings(grid, COARSEST_LEVEL if max(size) > 12 else 2), len(chosen.channels))
    # Every stage must fit a level, the coarsest too: with fewer levels than that, it is the stages that go.
    while stages > 1 and min(size) >> (stages - 1) < min(grid) >> (levels - 1):
        stages -= 1
    # Sizes that do not halve far leave the innermost level large: the widths and the attention for small maps are not for it.
    inner = (grid[0] >> (levels - 1)) * (grid[1] >> (levels - 1))
    begin = 0 if inner <= LARGE else len(chosen.channels) - levels
    options: dict[str, Any] = {
        "channels": chosen.channels[begin : begin + levels][::-1],
        "blocks": chosen.blocks[begin : begin + levels][::-1],
        "patch": patch,
    }
    if inner > LARGE:
        options["attention"] = 0
    return Config(stages=stages, options=options, **chosen.changes)


def _halvings(size: tuple[int, int], smallest: int) -> int:
    """How often both sides can be halved and stay whole and at least ``smallest``."""
    count = 0
    while all(side % 2 ** (count + 1) == 0 and side >> (count + 1) >= smallest for side in size):
        count += 1
    return count
