"""Generator: a ladder, a denoiser and its labels, as one thing that samples, denoises, saves and loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.requests import Labels, Prompts, label_numbers, requested
from sfumato.conditions.text import TextEncoder, find_encoder
from sfumato.config import Config
from sfumato.core import checkpoint
from sfumato.core.devices import autocast_type, find_device
from sfumato.core.errors import InputError
from sfumato.denoisers import Denoiser
from sfumato.editing import Picture, edit, plan
from sfumato.film import film
from sfumato.guidance import Guidance, guided
from sfumato.ladder import Ladder
from sfumato.likelihood import Score, score
from sfumato.samplers import SAMPLERS, Denoise, Noise, Rung, Sampler, share_steps

FORMAT = 1
# Of the default sampler where none are asked for: more did not bring the distance down, see benchmarks/RESULTS.md.
LEAST_STEPS, COARSE_STEPS, FINEST_STEPS = 10, 4, 6
TEXT_GUIDANCE = Guidance(3.0)


class Generator:
    """A trained model.

    >>> generator = Generator.from_pretrained("runs/fashion")      # doctest: +SKIP
    >>> pixels = generator.sample(16, "sneaker", seed=1)           # doctest: +SKIP
    """

    def __init__(self, denoiser: Denoiser, classes: Sequence[str], config: Config, device: str = "cpu") -> None:
        self.device = find_device(device)
        self.denoiser = denoiser.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
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
        """DPM-Solver++(2M): at equal distance half of Heun's evaluations, see benchmarks/RESULTS.md. Euler on fixed rungs."""
        return "euler" if self.config.rungs else "dpmpp-2m"

    @property
    def default_guidance(self) -> Guidance:
        """That of the model's settings; else off for labels and, for texts, which an unguided model follows loosely,
        ``TEXT_GUIDANCE``."""
        if not self.kinds.droppable or not self.config.drop:
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
            denoiser = config.denoiser(
                ladder,
                kinds,
                smooth_rms=description["smooth_rms"],
                sharp_rms=description["sharp_rms"],
            )
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
        tensors = self.denoiser.state_dict()
        if half:
            tensors = {
                name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
            }
        checkpoint.write(Path(path), tensors, self.description())

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
        """Draw n images.

        Args:
            n: how many.
            label: a class by name or number, or one for each image; None gives every class in turn.
            prompt: a text, or one for each image, for a model that was trained with captions; None gives images of
                anything.
            condition: what the images are told, where it is neither: an embedding, an image to enlarge.
            batch_size: images at a time; the pictures do not depend on it.
            progress: told (images drawn, n) after each batch.
            how: ``steps``, ``sampler``, ``guidance``, ``weak``, ``seed`` as in ``trace``.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU.
        """
        if n < 1 or batch_size < 1:
            raise InputError(f"n={n} and batch_size={batch_size}: both must be 1 or more")
        told = self.condition(n, label, prompt) if condition is None else condition
        pictures = []
        for first in range(0, n, batch_size):
            chosen = range(first, min(first + batch_size, n))
            for rung in self.trace(len(chosen), condition=told[slice(first, chosen.stop)], first=first, **how):
                last = rung.x_hat
            pictures.append(to_pixels(last).cpu())
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
        steps: int | Sequence[int] | None = None,
        sampler: str | None = None,
        guidance: float | Guidance | None = None,
        weak: Generator | None = None,
        seed: int = 0,
        first: int = 0,
        through: Callable[[Sampler], Sampler] | None = None,
    ) -> Iterator[Rung]:
        """The same, rung by rung: every state z and every predicted clean image on the way up, in [-1, 1] space.

        Args:
            steps: how many in all, shared over the stages by ``samplers.share_steps``, or a number for each stage.
            sampler: a name in ``samplers.SAMPLERS``.
            guidance: g of ``u + g (c - u)``, or a Guidance with interval, rescale and threshold; 1 is off. None is the
                model's ``default_guidance`` where the images are told anything.
            weak: a weaker generator of the same kind, for autoguidance; it takes the place of u.
            seed: of the request; image i has its own stream of noise, so it is the same in any batch.
            first: number of the first image.
            through: what makes another sampler of the one asked for, such as an edit.

        Raises:
            InputError: an unknown label or sampler, impossible steps, guidance without labels.
        """
        if n < 1:
            raise InputError(f"n={n}: draw 1 image or more")
        sampler = sampler or self.default_sampler
        method = SAMPLERS.find(sampler) if through is None else through(SAMPLERS.find(sampler))
        if sampler == "heun" and self.config.rungs:
            raise InputError("sampler 'heun' looks between the rungs, where a model with sharing=rung has no network: "
                             "choose euler, ancestral or mean")  # fmt: skip
        shared = self._steps(steps)
        told = self.condition(n, label, prompt, first) if condition is None else condition
        if guidance is None:
            something = any(part is not None for part in (told.label, told.vector, told.tokens))
            guidance = self.default_guidance if something and weak is None else Guidance()
        if isinstance(guidance, int | float):
            guidance = replace(self.default_guidance, scale=float(guidance))
        if guidance.scale == 1 and (weak is not None or guidance.rescale or guidance.interval != Guidance().interval):
            raise InputError(
                "a weak model, an interval and rescale act only with guidance other than 1: give guidance=2, say"
            )
        denoise = self._bound(told)
        other = None
        if guidance.scale != 1:
            if weak is not None:
                if weak.device != self.device:
                    raise InputError(
                        f"the weak model is on {weak.device}, the model on {self.device}: load both on one"
                    )
                if (weak.ladder, weak.classes, weak.kinds) != (self.ladder, self.classes, self.kinds):
                    raise InputError(
                        "the weak model must have the same images, ladder and labels as the model it guides"
                    )
                other = weak._bound(told)
            elif self.kinds.droppable and self.config.drop > 0:
                other = self._bound(told.without())
            else:
                lacks = "dropping some of them (drop=0)" if self.kinds.droppable else "labels or texts"
                raise InputError(
                    f"guidance needs labels or texts, and this model was trained without {lacks}: "
                    "leave it out, or give a weak model"
                )
        noise = Noise(seed, range(first, first + n), self.device)
        return _without_gradients(method(guided(denoise, other, guidance), self.ladder, noise, shared))

    def edit(
        self,
        image: Picture,
        n: int = 16,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        strength: float | None = None,
        mask: Picture | None = None,
        resample: int | None = None,
        **how: Any,
    ) -> Tensor:
        """Draw n images from one: image to image, inpainting where there is a mask, super-resolution of a small image.

        >>> generator.edit("bag.png", 8, "bag", strength=0.4)          # doctest: +SKIP

        Args:
            image: a file, an open image, or a tensor (C, H, W) in [0, 1]; brought to the model's size and channels.
                Without strength and mask one that is nearer in area to a coarser stage than to the finest is enlarged,
                and the result, pooled, is that image.
            n: how many.
            label, prompt, condition: as in ``sample``; None tells nothing, where ``sample`` has the classes take turns.
            strength: 0 gives the image itself, 1 forgets it (without a mask: ``sample`` with the same seed). None is
                ``editing.STRENGTH``, with a mask 1.
            mask: of the size of the image; what is white is painted anew, what is black keeps its pixels exactly.
            resample: how often the lower half of each stage is painted again to fit in better; None is
                ``editing.RESAMPLE``.
            how: ``steps``, ``sampler``, ``guidance``, ``weak``, ``seed``, ``batch_size``, ``progress`` as in ``sample``.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU.

        Raises:
            InputError: as ``sample``; an image or a mask that cannot be used, an impossible strength, sampler "mean".
        """
        planned = plan(self.ladder, image, strength, mask)
        return edit(self, planned, n, label, prompt=prompt, condition=condition, resample=resample, **how)

    def film(self, n: int = 1, label: Labels = None, image: Tensor | None = None, **how: Any) -> Image.Image:
        """Both directions of the chain as one picture; see ``film.film``."""
        return film(self, n, label, image, **how)

    def condition(self, n: int, label: Labels = None, prompt: Prompts = None, first: int = 0) -> Condition:
        """What n images are told, from ``first`` on: labels or prompts; InputError for one that the model does not know."""
        return requested(self.kinds, self.classes, lambda: self.encoder, n, label, prompt, first)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The frozen language model that read this model's captions; loaded when it is first asked for."""
        encoder = find_encoder(self.config.text)
        if encoder.width != self.kinds.tokens:
            raise InputError(
                f"text={self.config.text!r} has states of width {encoder.width}, but this model was trained with "
                f"{self.kinds.tokens}: install the language model that it was trained with"
            )
        return encoder

    def labels(self, n: int, label: Labels = None) -> Tensor:
        """The (n,) int64 label numbers of a request; InputError for an unknown one, with the nearest name."""
        return label_numbers(self.kinds, self.classes, n, label)

    def _steps(self, steps: int | Sequence[int] | None) -> tuple[int, ...]:
        if self.config.rungs:
            if steps is not None and (isinstance(steps, int) or tuple(steps) != self.config.rungs):
                raise InputError(f"this model was trained on rungs {self.config.rungs} alone: leave the steps out")
            return self.config.rungs
        if steps is None:
            return share_steps(self.ladder, max(LEAST_STEPS, COARSE_STEPS * (self.ladder.stages - 1) + FINEST_STEPS))
        return share_steps(self.ladder, steps) if isinstance(steps, int) else tuple(steps)

    def _bound(self, condition: Condition) -> Denoise:
        """The denoiser for images that are told this, as samplers call it."""
        c = condition.to(self.device)

        def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
            with self.autocast():
                return self.denoiser(z, torch.full((len(z),), sigma, device=z.device), stage, c)

        return denoise

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the device is faster with it and the configuration allows it."""
        kind = autocast_type(self.device, self.config.precision)
        return nullcontext() if kind is None else torch.autocast(self.device.type, kind)

    def score(
        self,
        x: Tensor,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        **how: Any,
    ) -> Score:
        """How likely images (N, C, H, W) in [0, 1] are, in bits per dimension; see ``likelihood.score``.

        ``how``: ``method``, ``draws``, ``seed``, ``batch_size``, ``progress``.
        """
        return score(self, x, label, prompt=prompt, condition=condition, **how)

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
        if tuple(x.shape[1:]) != self.ladder.shape(self.ladder.stages - 1):
            raise InputError(
                f"images of shape {tuple(x.shape[1:])} do not fit this model: it takes {self.ladder.shape(self.ladder.stages - 1)}"
            )
        level = 2 * torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        if level.shape not in ((), (len(x),)):
            raise InputError(
                f"sigma of shape {tuple(level.shape)} does not fit {len(x)} images: give one, or one for each"
            )
        level = level.expand(len(x))
        if not bool(((level > 0) & level.isfinite()).all()):
            raise InputError("sigma must be over 0 and finite")
        if label is None and self.classes and not self.config.drop:
            raise InputError("this model was trained with drop=0, so it cannot do without a label: give one")
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
