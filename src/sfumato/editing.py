"""Editing with a generator that was trained for none of it: image to image, inpainting, super-resolution.

All three are the ladder's own sampling, begun at a rung that holds the given image instead of at pure noise, and with what is
known put into each predicted clean image x^. Where x^ is right, every step of every sampler leaves the state on
``B x + s e``: so the known part of z stays the given image, noised to the level and shrunk to the stage at hand, across
the jumps too, and samplers know nothing of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.conditions.requests import Labels, Prompts
from sfumato.core.errors import InputError
from sfumato.core.pictures import to_bytes
from sfumato.data.decode import Unreadable, open_image
from sfumato.data.fit import as_image, fit_image
from sfumato.generator import Generator, check_counts
from sfumato.ladder import Ladder, Level, flow_time, from_flow_time, pool, repeat
from sfumato.samplers import Denoise, Noise, ResumedNoise, Rung, Sampler

Picture = str | Path | Image.Image | Tensor  # a file; an open image; (C, H, W) or (1, C, H, W) in [0, 1]

STRENGTH = 0.6  # of image to image, where none is asked for
# Of inpainting, where nothing is asked for. Fashion-MNIST, holes of a sixth to a half: against 0 the squared error falls by a
# tenth to a quarter, for twice the time; 4 takes three times as long, for little more.
RESAMPLE = 2
IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION = "image to image", "inpainting", "super-resolution"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BISECTIONS = 24  # to a shift of less than 1e-7


@dataclass(frozen=True)
class Edit:
    """What is to be done to which image; made by ``plan``.

    Args:
        kind: IMAGE_TO_IMAGE, INPAINTING or SUPER_RESOLUTION.
        image: (C, h, w) in [0, 1], at the resolution of ``stage``.
        stage: the finest; for super-resolution the coarser one that the image lies in.
        strength: 0 (the image itself) to 1 (pure noise).
        known: (1, H, W) bool, the pixels to keep; None where there is no mask.
    """

    kind: str
    image: Tensor
    stage: int
    strength: float = 1.0
    known: Tensor | None = None

    def __str__(self) -> str:
        if self.kind == SUPER_RESOLUTION:
            return f"{self.kind} from {self.image.shape[2]}x{self.image.shape[1]}"
        inpainted = "" if self.known is None else f", {1 - self.known.double().mean():.0%} inpainted"
        return f"{self.kind}{inpainted}, strength {self.strength:g}"


def plan(ladder: Ladder, image: Picture, strength: float | None = None, mask: Picture | None = None) -> Edit:
    """What is to be done to an image, and the image as the ladder needs it.

    Files and open images of any size and mode are brought to the model's: transparency on white (for a model of RGBA it
    is kept), cropped to its shape. Without mask and strength an image that is nearer in area to a coarser stage than to
    the finest is one to enlarge.

    Args:
        ladder: of the model.
        image: see ``Picture``; a tensor of a stage's shape is taken as it is.
        strength: 0 to 1; None is STRENGTH without a mask and 1 with one.
        mask: of the size of the image as given; what is lighter than half grey is inpainted, the rest kept.

    Raises:
        InputError: an image or a mask that cannot be used, a strength that is not within 0 and 1.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise InputError(f"strength {strength} is impossible: give 0 (the image itself) to 1 (nothing of it)")
    name = _name(image, "the image to start from")
    given = _open(image, name, ladder.channels)
    height, width = _size(given)
    finest = ladder.stages - 1
    if mask is not None:
        stencil = _name(mask, "the mask")
        opened = _open(mask, stencil, 1)
        if _size(opened) != (height, width):
            size = _size(opened)
            raise InputError(
                f"{stencil} is {size[1]}x{size[0]}, but {name} is {width}x{height}: give a mask of the same size"
            )
        known = _fitted(opened, ladder.size, 1) < 0.5  # (1, H, W)
        if bool(known.all()):
            raise InputError(
                f"{stencil} has no white in it, or too little to be seen at {ladder.size[1]}x{ladder.size[0]}, so there is "
                "nothing to inpaint: make white what is to be new"
            )
        full = _fitted(given, ladder.size, ladder.channels)
        return Edit(INPAINTING, full, finest, 1.0 if strength is None else float(strength), known)
    stage = _nearest_stage(ladder, height * width)
    if strength is None and stage < finest:
        return Edit(SUPER_RESOLUTION, _fitted(given, ladder.shape(stage)[1:], ladder.channels), stage)
    full = _fitted(given, ladder.size, ladder.channels)
    return Edit(IMAGE_TO_IMAGE, full, finest, STRENGTH if strength is None else float(strength))


def start_level(ladder: Ladder, strength: float) -> Level:
    """The rung whose noise a strength over 0 stands for, 1 being the ladder's foot.

    Each stage has an equal share of strength, and within it strength is linear in flow time ``n = s / (1 + s)``, as the
    samplers' steps are.
    """
    if strength == 1:
        return Level(0, ladder.jumps[0])
    place = strength * ladder.stages
    above = math.ceil(place) - 1  # stages: where two meet, the finer one counts
    stage = ladder.stages - 1 - above
    low, high = flow_time(torch.tensor([ladder.ends[stage], ladder.jumps[stage]], dtype=torch.float64))
    return Level(stage, float(from_flow_time(low + (place - above) * (high - low))))


# -- what is known goes into each x^ --------------------------------------------------------------------------------------


def keep(denoise: Denoise, ladder: Ladder, x: Tensor, known: Tensor) -> Denoise:
    """x^ with the known pixels in their places, at the resolution of each stage.

    A coarse pixel that stands for known and unknown ones gets the mean of the known, in full where they are half of them
    or more, and less of it where they are fewer: ``x^' = f A(m x) / A m + (1 - f) x^`` with ``f = min(1, 2 A m)``. (To
    wait for pixels that are known altogether leaves coarse stages to guess what lies at the edge of the hole: on
    Fashion-MNIST the seams it shows are half as strong again.)

    Args:
        x: (1, C, H, W), clean; known: m, (1, 1, H, W), 1 where x is to be kept and 0 elsewhere.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for stage in range(ladder.stages):
        share = ladder.shrink(known, stage)
        f = (2 * share).clamp_max(1)
        parts.append((f * ladder.shrink(known * x, stage) / share.clamp_min(1e-6), 1 - f))

    def kept(z: Tensor, sigma: float, stage: int) -> Tensor:
        fixed, free = parts[stage]
        return fixed + free * denoise(z, sigma, stage)

    return kept


def agree(denoise: Denoise, small: Tensor, at: int) -> Denoise:
    """x^ of the stages above ``at``, shifted so that its blocks have the pixels of ``small`` as their means.

    Range and null space (Wang et al. 2022, DDNM, arXiv 2212.00490, section 3): ``x^' = x^ + Up(y - A x^)``, with as many
    poolings as lie between the stages.
    """

    def agreeing(z: Tensor, sigma: float, stage: int) -> Tensor:
        return towards(denoise(z, sigma, stage), small, stage - at)

    return agreeing


def towards(x: Tensor, small: Tensor, halvings: int) -> Tensor:
    """``x + Up^n (y - A^n x)``: the image nearest to x whose n-fold pooling is y."""
    return x + _up(small - _down(x, halvings), halvings)


def clipped_towards(x: Tensor, small: Tensor, halvings: int) -> Tensor:
    """The image in [0, 1] nearest to x whose n-fold pooling is y: each block shifted, then clipped, to the right mean."""
    low, high = -torch.ones_like(_down(x, halvings)), torch.ones_like(_down(x, halvings))
    for _ in range(_BISECTIONS):  # the mean rises with the shift
        middle = (low + high) / 2
        under = _down((x + _up(middle, halvings)).clamp(0, 1), halvings) < small
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (x + _up((low + high) / 2, halvings)).clamp(0, 1)


def _down(x: Tensor, halvings: int) -> Tensor:
    for _ in range(halvings):
        x = pool(x)
    return x


def _up(x: Tensor, halvings: int) -> Tensor:
    for _ in range(halvings):
        x = repeat(x)
    return x


# -- the sampler that edits --------------------------------------------------------------------------------------------------------------


def edited(sampler: Sampler, edit: Edit, resample: int = 0, on_rungs: bool = False) -> Sampler:
    """A sampler that edits; it yields the rungs of ``sampler`` from the edit's own level on.

    * image to image: SDEdit (Meng et al. 2021, arXiv 2108.01073), begun at ``ladder.marginal`` of the image.
    * inpainting: the same with ``keep``; RePaint (Lugmayr et al. 2022, arXiv 2201.09865), but for the known part's states,
      which come from one chain and are not drawn again at every level. ``resample`` times the lower half of each stage is
      noised and denoised again (its section 4.2): what was inpainted while the known part was hidden in more noise is
      inpainted again with it in clearer view.
    * super-resolution: begun by the exact jump from the small image at the end of its stage, with ``agree``.

    Args:
        on_rungs: begin at the rung nearest to the level asked for: a network for each rung knows no other.

    Raises:
        InputError: the sampler cannot begin halfway.
    """

    def sampled(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
        levels = ladder.levels(steps)
        level, z, constrained = _begin(edit, denoise, ladder, noise, levels if on_rungs else None)
        for stage in range(level.stage, ladder.stages):
            if stage > level.stage:
                level = Level(stage, ladder.jumps[stage])
                z = ladder.jump(z, stage, noise(ladder.shape(stage)))
            half = min(level.sigma, levels[stage][steps[stage] // 2])
            for again in range(resample + 1):
                if again:
                    level = Level(stage, half)
                    z = ladder.add_noise(z, stage, ladder.ends[stage], half, noise(ladder.shape(stage)))
                for i, rung in enumerate(sampler(constrained, ladder, ResumedNoise(noise, level, z), steps)):
                    if i == 0 and (rung.stage, rung.sigma) != level:
                        raise InputError("this sampler cannot begin at an image: choose another, such as dpmpp-2m")
                    yield rung
                    if (rung.stage, rung.sigma) == (stage, ladder.ends[stage]):
                        z = rung.z
                        break

    return sampled


def _begin(
    edit: Edit, denoise: Denoise, ladder: Ladder, noise: Noise, rungs: list[list[float]] | None
) -> tuple[Level, Tensor, Denoise]:
    """The level at which an edit begins, the state there, and the denoiser with what is known put into its x^."""
    if edit.kind == SUPER_RESOLUTION:
        e, stage = noise(ladder.shape(edit.stage)), edit.stage + 1
        small = 2 * edit.image[None].to(e) - 1
        z = ladder.jump(small + ladder.ends[edit.stage] * e, stage, noise(ladder.shape(stage)))
        return Level(stage, ladder.jumps[stage]), z, agree(denoise, small, edit.stage)
    level = start_level(ladder, edit.strength)
    if rungs is not None:
        time = level.sigma / (1 + level.sigma)
        level = Level(level.stage, min(rungs[level.stage][:-1], key=lambda sigma: abs(sigma / (1 + sigma) - time)))
    e = noise(ladder.shape(level.stage))
    x = 2 * edit.image[None].to(e) - 1
    if edit.known is None:
        return level, ladder.marginal(x, *level, e), denoise
    known = edit.known[None].to(e)
    seen = known * x if edit.strength == 1 else x  # at full strength nothing shows of what is to be inpainted
    return level, ladder.marginal(seen, *level, e), keep(denoise, ladder, x, known)


def edit(
    generator: Generator,
    image: Picture | Edit,
    n: int = 16,
    label: Labels = None,
    *,
    prompt: Prompts = None,
    condition: Condition | None = None,
    strength: float | None = None,
    mask: Picture | None = None,
    resample: int | None = None,
    sampler: str | None = None,
    **how: Any,
) -> Tensor:
    """Sample n images from one: image to image, inpainting where there is a mask, super-resolution of a small image.

    >>> sfumato.edit(generator, "bag.png", 8, "bag", strength=0.4)          # doctest: +SKIP

    Args:
        generator: the model.
        image: a file, an open image, or a tensor (C, H, W) in [0, 1]; brought to the model's size and channels.
            Without strength and mask one that is nearer in area to a coarser stage than to the finest is enlarged,
            and the result, pooled, is that image. Or an Edit, which has its strength and mask, as ``plan`` made it.
        n: how many.
        label, prompt, condition: as in ``Generator.sample``, but None is unconditional: the classes do not take turns.
        strength: of SDEdit: 0 gives the image itself, 1 forgets it (without a mask: ``Generator.sample`` with the same
            seed). None is ``STRENGTH``, with a mask 1.
        mask: of the size of the image; what is white is inpainted, what is black keeps its pixels exactly.
        resample: how often the lower half of each stage is inpainted again to fit in better; None is ``RESAMPLE``.
        how: ``steps``, ``guidance``, ``weak``, ``seed``, ``batch_size``, ``progress`` as in ``Generator.sample``;
            ``sampler`` too, but "mean".

    Returns:
        (n, C, H, W) float32 in [0, 1], on the CPU.

    Raises:
        InputError: as ``Generator.sample``; an image or a mask that cannot be used, an impossible strength.
    """
    planned = image if isinstance(image, Edit) else plan(generator.ladder, image, strength, mask)
    check_counts(n)
    sampler = sampler or generator.default_sampler
    if sampler == "mean":
        raise InputError(
            "sampler 'mean' adds no noise after its start, so it cannot go through noised images: choose another one"
        )
    if resample is not None and (planned.known is None or resample < 0):
        raise InputError(
            f"resample={resample} is impossible: give 0 or more"
            if planned.known is not None
            else "resample is for inpainting: give a mask too, or leave it out"
        )
    if planned.kind == IMAGE_TO_IMAGE and planned.strength == 1:
        return generator.sample(n, label, prompt=prompt, condition=condition, sampler=sampler, **how)
    if condition is None:
        nothing = label is None and prompt is None
        if nothing:
            generator.need_unconditional()
        # Without a label the classes do not take turns, as they do in sampling: the image says what it is.
        condition = Condition() if nothing else generator.condition(n, label, prompt)
    if planned.strength == 0:
        return planned.image.repeat(n, 1, 1, 1)
    times = RESAMPLE if resample is None and planned.known is not None else resample or 0
    on_rungs = bool(generator.config.rungs)

    def through(method: Sampler) -> Sampler:
        return edited(method, planned, times, on_rungs)

    pixels = generator.sample(n, condition=condition, sampler=sampler, through=through, **how)
    if planned.known is not None:
        return torch.where(planned.known, planned.image, pixels)
    if planned.kind == SUPER_RESOLUTION:
        halvings = generator.ladder.stages - 1 - planned.stage
        return clipped_towards(pixels, planned.image, halvings)
    return pixels


# -- images and masks as they are given -----------------------------------------------------------------------------------


def _name(picture: Picture, otherwise: str) -> str:
    return repr(str(picture)) if isinstance(picture, str | Path) else otherwise


def _open(picture: Picture, name: str, channels: int) -> Image.Image | Tensor:
    """A file or an open image in mode L, RGB or (for 4 channels) RGBA; a tensor, checked, as (C, H, W)."""
    if isinstance(picture, Tensor):
        x = picture[0] if picture.ndim == 4 and len(picture) == 1 else picture
        if x.ndim != 3 or x.shape[0] not in _MODES or not x.is_floating_point() or min(x.shape) < 1:
            raise InputError(
                f"{name} is a {x.dtype} tensor of shape {tuple(picture.shape)}: give floats (C, H, W), C being 1, 3 or 4"
            )
        x = x.detach().to("cpu", torch.float32)
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise InputError(f"{name} has values outside [0, 1]: scale its pixels to that range")
        return x
    source = picture
    if isinstance(source, Image.Image):
        encoded = io.BytesIO()
        kept = source if source.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else source.convert("RGB")
        kept.save(encoded, format="PNG")
        source = encoded.getvalue()
    elif not Path(source).is_file():
        raise InputError(f"{name} is no file, or none that can be seen: give an image")
    try:
        return open_image(Path(source) if isinstance(source, str) else source, alpha=channels == 4)
    except Unreadable as error:
        raise InputError(f"{name} cannot be used: {error}; give an image that opens") from None


def _size(opened: Image.Image | Tensor) -> tuple[int, int]:
    """(H, W)."""
    return (opened.shape[1], opened.shape[2]) if isinstance(opened, Tensor) else (opened.height, opened.width)


def _fitted(opened: Image.Image | Tensor, size: Sequence[int], channels: int) -> Tensor:
    """(C, H, W) float32 in [0, 1]; a tensor of just this shape keeps its values, all else goes through 8 bits."""
    if isinstance(opened, Tensor):
        if tuple(opened.shape) == (channels, *size):
            return opened
        return _fitted(as_image(to_bytes(opened[None])[0]), size, channels)
    if opened.mode == "RGBA" and channels != 4:
        flat = Image.new("RGB", opened.size, "white")
        flat.paste(opened, mask=opened.getchannel("A"))
        opened = flat
    array = fit_image(opened.convert(_MODES[channels]), (size[0], size[1]), "crop")  # (H, W, C) uint8
    return torch.as_tensor(array.copy()).permute(2, 0, 1).float() / 255


def _nearest_stage(ladder: Ladder, area: int) -> int:
    """The stage whose images have an area nearest to this one, in ratio; the finest for any larger."""

    def distance(stage: int) -> float:
        _, height, width = ladder.shape(stage)
        return abs(math.log(area / (height * width)))

    return min(range(ladder.stages - 1, -1, -1), key=distance)
