"""Generator: a ladder, a denoiser and its labels, as one thing that samples, denoises, saves and loads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.requests import Labels, Prompts, label_numbers, requested
from sfumato.conditions.text import TextEncoder, trained_encoder
from sfumato.config import Config
from sfumato.core import checkpoint
from sfumato.core.devices import autocast_type, find_device
from sfumato.core.errors import InputError
from sfumato.denoisers import Denoiser
from sfumato.guidance import Guidance, guided
from sfumato.ladder import Ladder
from sfumato.samplers import SAMPLERS, Denoise, Noise, Rung, Sampler, share_steps

FORMAT = 1
# Of the default sampler where none are asked for: more did not bring the distance down, see benchmarks/results/ablation.md.
LEAST_STEPS, COARSE_STEPS, FINEST_STEPS = 10, 4, 6
TEXT_GUIDANCE = Guidance(3.0)


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, whatever they show: the options of ``Generator.sample`` and of all that samples.

    Args:
        steps: how many in all, shared over the stages by ``samplers.share_steps``, or a number for each stage.
        sampler: a name in ``samplers.SAMPLERS``; None is the model's ``default_sampler``.
        guidance: the scale g of ``u + g (c - u)``, or a Guidance with interval, rescale and threshold; 1 is off. None
            is the model's ``default_guidance`` where there is a condition.
        weak: a weaker generator of the same kind, for autoguidance; it takes the place of u.
        seed: of the request; image i has its own stream of noise, so it is the same in any batch.
    """

    steps: int | Sequence[int] | None = None
    sampler: str | None = None
    guidance: float | Guidance | None = None
    weak: Generator | None = None
    seed: int = 0


class Generator:
    """A trained model.

    >>> generator = Generator.from_pretrained("runs/fashion")      # doctest: +SKIP
    >>> pixels = generator.sample(16, "sneaker", seed=1)           # doctest: +SKIP
    """

    def __init__(self, denoiser: Denoiser, classes: Sequence[str], config: Config, device: str = "cpu") -> None:
        self.device = find_device(device)
        self.denoiser: Denoiser = denoiser.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.classes = tuple(classes)
        self.config = config

    @property
    def ladder(self) -> Ladder:
        return self.denoiser.ladder

    @property
    def kinds(self) -> Kinds:
        """The parts of c that the model was trained with."""
        return self.denoiser.kinds

    @property
    def default_sampler(self) -> str:
        """DPM-Solver++(2M): at equal distance half of Heun's evaluations, see benchmarks/results/generative.md. Euler on fixed rungs."""
        return "euler" if self.config.rungs else "dpmpp-2m"

    @property
    def default_guidance(self) -> Guidance:
        """That of the model's settings; else off for labels and, for texts, which an unguided model follows loosely,
        ``TEXT_GUIDANCE``."""
        if not self.unconditional:
            return Guidance(threshold=self.config.threshold)
        if self.config.guidance:
            return Guidance(self.config.guidance, threshold=self.config.threshold)
        return replace(TEXT_GUIDANCE if self.kinds.tokens else Guidance(), threshold=self.config.threshold)

    # -- files ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Generator:
        """Load a run folder, a saved folder, a ``model.safetensors``, or ``hf:owner/name`` from the Hub.

        Everything is read from the one safetensors file; nothing in it is ever executed.

        Raises:
            InputError: no model there, a damaged or foreign file, a pickle, or a device that this machine lacks.
        """
        file = checkpoint.find(path)
        tensors, description = checkpoint.read(file)
        return cls.from_tensors(tensors, description, str(file), device)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], description: dict[str, Any], name: str, device: str) -> Generator:
        """Rebuild a generator from its tensors and the description beside them (see ``description``)."""
        try:
            if description["format"] != FORMAT:
                raise InputError(
                    f"{name} is of format {description['format']}, this sfumato reads format {FORMAT}: update it"
                )
            config = Config.from_json(description["config"])
            ladder = config.ladder(tuple(description["size"]), description["channels"])
            kinds = Kinds(**description.get("kinds", {"classes": len(description["classes"])}))
            if kinds.classes != len(description["classes"]):
                raise ValueError(f"{kinds.classes} classes, but {len(description['classes'])} names for them")
            rms = {name: description[name] for name in ("smooth_rms", "sharp_rms")}
            denoiser = config.denoiser(ladder, kinds, **rms)
            denoiser.load_state_dict(tensors)
        except InputError as error:
            raise InputError(f"{name} cannot be used: {error}") from None
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{name} is no sfumato model, or a damaged one ({reason}): train or copy it again"
            ) from None
        return cls(denoiser, description["classes"], config, device)

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        ladder = self.ladder
        return {
            "format": FORMAT,
            "size": list(ladder.size),
            "channels": ladder.channels,
            "classes": list(self.classes),
            "kinds": asdict(self.kinds),
            "smooth_rms": list(self.denoiser.smooth_rms),
            "sharp_rms": list(self.denoiser.sharp_rms),
            "config": self.config.to_json(),
        }

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write ``model.safetensors`` and ``config.json`` into the folder ``path``, each in one piece.

        ``half``: weights in float16, half as large and as good for sampling; loading brings them back to float32.
        """
        tensors: dict[str, Tensor] = self.denoiser.state_dict()
        if half:
            tensors |= {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}
        checkpoint.write(Path(path), tensors, self.description())

    # -- what the model can do --------------------------------------------------------------------------------------

    @property
    def unconditional(self) -> bool:
        """Whether some conditions were dropped in training, so that there is a c to leave out, and to guide away from."""
        return self.kinds.droppable and self.config.drop > 0

    def need_unconditional(self, work: str = "") -> None:
        """InputError for a model that predicts nothing without a condition.

        Args:
            work: what has no condition to give, such as "purification"; "" where the caller could give one.
        """
        if self.kinds.image:
            advice = f", and {work} has none to give: give another model" if work else ": give it one (condition=)"
            raise InputError(f"this model enlarges an image{advice}")
        if self.kinds.droppable and not self.config.drop:
            advice = f", and {work} must not know it: give a model trained with drop=0.1" if work else ": give one"
            raise InputError(f"this model was trained with drop=0, so it cannot do without a label{advice}")

    # -- sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int = 16,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **how: Any,
    ) -> Tensor:
        """Sample n images.

        Args:
            n: how many.
            label: a class by name or number, or one for each image; None gives every class in turn.
            prompt: a text, or one for each image, for a model that was trained with captions; None samples
                unconditionally.
            condition: the condition itself, where it is neither: an embedding, an image to enlarge.
            batch_size: images at a time; the pictures do not depend on it.
            progress: called with (images sampled, n) after each batch.
            how: ``steps``, ``sampler``, ``guidance``, ``weak``, ``seed``, see ``Sampling``; ``through`` as in ``trace``.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU.

        Raises:
            InputError: an unknown label or sampler, impossible steps, guidance without labels.
        """
        check_counts(n, batch_size)
        condition = self.condition(n, label, prompt) if condition is None else condition
        pictures: list[Tensor] = []
        for first in range(0, n, batch_size):
            chosen = range(first, min(first + batch_size, n))
            rungs = self.trace(len(chosen), condition=condition[slice(first, chosen.stop)], first=first, **how)
            pictures.append(to_pixels(deque(rungs, maxlen=1).pop().x_hat).cpu())
            if progress is not None:
                progress(chosen.stop, n)
        return torch.cat(pictures)

    def trace(
        self,
        n: int = 1,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        first: int = 0,
        through: Callable[[Sampler], Sampler] | None = None,
        **how: Any,
    ) -> Iterator[Rung]:
        """The same, rung by rung: every state z and every predicted clean image on the way up, in [-1, 1] space.

        Args:
            label, prompt, condition: as in ``sample``.
            first: number of the first image.
            through: what makes another sampler of the one asked for, such as an edit.
            how: ``steps``, ``sampler``, ``guidance``, ``weak``, ``seed``, see ``Sampling``.

        Raises:
            InputError: as ``sample``.
        """
        check_counts(n)
        asked = Sampling(**how)
        name = asked.sampler or self.default_sampler
        sampler = SAMPLERS.find(name) if through is None else through(SAMPLERS.find(name))
        if name == "heun" and self.config.rungs:
            raise InputError(
                "sampler 'heun' looks between the rungs, where a model with sharing=rung has no network: "
                "choose euler, ancestral or mean"
            )
        steps = self.steps_by_stage(asked.steps)
        condition = self.condition(n, label, prompt, first) if condition is None else condition
        denoise = self._guided(condition, asked)
        noise = Noise(asked.seed, range(first, first + n), self.device)
        return _without_gradients(sampler(denoise, self.ladder, noise, steps))

    def condition(self, n: int, label: Labels = None, prompt: Prompts = None, first: int = 0) -> Condition:
        """The condition of n images, from number ``first`` on; InputError for a label or prompt that the model does not
        know."""
        return requested(self, n, label, prompt, first)

    @property
    def encoder(self) -> TextEncoder:
        """The frozen language model that read this model's captions; loaded when it is first asked for."""
        return trained_encoder(self.config.text, self.kinds.tokens)

    def labels(self, n: int, label: Labels = None) -> Tensor:
        """The (n,) int64 label numbers of a request; InputError for an unknown one, with the nearest name."""
        return label_numbers(self, n, label)

    def steps_by_stage(self, steps: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """The steps of each stage, coarse first, for a request as in ``Sampling``."""
        if self.config.rungs:
            if steps is not None and (isinstance(steps, int) or tuple(steps) != self.config.rungs):
                raise InputError(f"this model was trained on rungs {self.config.rungs} alone: leave the steps out")
            return self.config.rungs
        if steps is None:
            steps = max(LEAST_STEPS, COARSE_STEPS * (self.ladder.stages - 1) + FINEST_STEPS)
        return share_steps(self.ladder, steps) if isinstance(steps, int) else tuple(steps)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the device is faster with it and the configuration allows it."""
        kind = autocast_type(self.device, self.config.precision)
        return nullcontext() if kind is None else torch.autocast(self.device.type, kind)

    def _conditioned(self, condition: Condition) -> Denoise:
        """The denoiser with its condition given, as samplers call it."""
        c = condition.to(self.device)

        def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
            with self.autocast():
                return self.denoiser(z, torch.full((len(z),), sigma, device=z.device), stage, c)

        return denoise

    def _guided(self, condition: Condition, asked: Sampling) -> Denoise:
        """The same with the guidance that was asked for, or else the model's own."""
        guidance, weak = asked.guidance, asked.weak
        if guidance is None:
            something = any(part is not None for part in (condition.label, condition.vector, condition.tokens))
            guidance = self.default_guidance if something and weak is None else Guidance()
        if isinstance(guidance, int | float):
            guidance = replace(self.default_guidance, scale=float(guidance))
        denoise = self._conditioned(condition)
        if guidance.scale == 1:
            if weak is not None or guidance.rescale or guidance.interval != Guidance().interval:
                raise InputError(
                    "a weak model, an interval and rescale act only with guidance other than 1: give guidance=2, say"
                )
            return guided(denoise, None, guidance)
        if weak is not None:
            if weak.device != self.device:
                raise InputError(f"the weak model is on {weak.device}, the model on {self.device}: load both on one")
            if (weak.ladder, weak.classes, weak.kinds) != (self.ladder, self.classes, self.kinds):
                raise InputError("the weak model must have the same images, ladder and labels as the model it guides")
            return guided(denoise, weak._conditioned(condition), guidance)
        if not self.unconditional:
            lacks = "dropping some of them (drop=0)" if self.kinds.droppable else "labels or texts"
            raise InputError(
                f"guidance needs labels or texts, and this model was trained without {lacks}: "
                "leave it out, or give a weak model"
            )
        return guided(denoise, self._conditioned(condition.without()), guidance)

    # -- denoising --------------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, sigma: float | Tensor, label: Labels = None) -> Tensor:
        """The expected clean image ``E[x_0 | x]`` for ``x = x_0 + sigma e``: plain Gaussian noise at full resolution.

        Args:
            x: (B, C, H, W) noisy pixels; clean ones lie in [0, 1].
            sigma: standard deviation of the noise in [0, 1] units, one or one an image (B,), over 0.
            label: as in ``sample``; None drops the condition.

        Returns:
            (B, C, H, W) float32, in [0, 1] units (not clipped), on the device of x; differentiable in x where x asks
            for a gradient.
        """
        check_shape(x, self.ladder)
        level = 2 * torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        if level.shape not in ((), (len(x),)):
            raise InputError(
                f"sigma of shape {tuple(level.shape)} does not fit {len(x)} images: give one, or one for each"
            )
        level = level.expand(len(x))
        if not bool(((level > 0) & level.isfinite()).all()):
            raise InputError("sigma must be over 0 and finite")
        if label is None:
            self.need_unconditional()
        c = (Condition() if label is None else Condition(label=self.labels(len(x), label))).to(self.device)
        z = 2 * x.to(self.device, torch.float32) - 1
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            x_hat = self.denoiser(z, level, self.ladder.stages - 1, c, torch.ones_like(level))
        return ((x_hat + 1) / 2).to(x.device)


def packaged() -> Path:
    """The folder of the model that comes with the package; it draws emoji from texts."""
    folder = Path(__file__).parent / "packaged" / "emoji"
    if not (folder / checkpoint.MODEL).exists():
        raise InputError("this installation has no packaged model: name a model, or install sfumato again")
    return folder


def check_shape(x: Tensor, ladder: Ladder, least: int = 0) -> None:
    """InputError unless x is (N, C, H, W) images of the finest stage of the ladder, N being ``least`` or more."""
    wanted = ladder.shape(ladder.stages - 1)
    if x.ndim != 4 or tuple(x.shape[1:]) != wanted or len(x) < least:
        takes = ", ".join(map(str, wanted))
        raise InputError(f"images of shape {tuple(x.shape)} do not fit this model: it takes (N, {takes})")


def check_counts(n: int, batch_size: int = 1) -> None:
    """InputError for a request for no image, or for none at a time."""
    if n < 1 or batch_size < 1:
        raise InputError(f"n={n} and batch_size={batch_size}: both must be 1 or more")


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] space to [0, 1] pixels, clipped."""
    return ((x.float() + 1) / 2).clamp(0, 1)


def _without_gradients(rungs: Iterator[Rung]) -> Iterator[Rung]:
    """The rungs, each computed without gradients; between them the caller's setting holds."""
    while True:
        with torch.no_grad():
            rung = next(rungs, None)
        if rung is None:
            return
        yield rung
