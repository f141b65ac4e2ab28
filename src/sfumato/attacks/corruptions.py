"""Common corruptions of small images at severities 1 to 5 (Hendrycks & Dietterich 2019, arXiv 1903.12261), and the worst.

Constants are those of the paper's CIFAR-10-C, pixelate's apart. Each corruption is one function ``(x (B, C, H, W), severity, streams) ->
(B, C, H, W)``, both in [0, 1]; its noise is the same at every severity, so that severity alone makes the difference.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.losses import margin, toward
from sfumato.attacks.registry import ATTACKS
from sfumato.attacks.spatial import rigid
from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.core.streams import Streams, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

Corruption = Callable[[Tensor, int, Streams], Tensor]
CORRUPTIONS: Registry[Corruption] = Registry("corruption")


@ATTACKS.add("corruptions")
def corruptions(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    severity: int = 3,
    names: Sequence[str] | None = None,
) -> Tensor:
    """The corruption at which the classifier errs most, for each image; no norm bounds it.

    Args: as every attack, see registry.py, of images (B, C, H, W) with C of 1 or 3, and
        severity: 1 (hardly seen) to 5.
        names: of the corruptions tried (None: all of CORRUPTIONS).

    Returns:
        (B, C, H, W) in [0, 1]: of the image itself and its corruptions, the one with the largest margin.

    Raises:
        InputError: an unknown corruption, a severity that is not 1 to 5, images of another shape.
    """
    raised = toward(margin, targeted)
    with classifier.ready():
        worst, highest = x.detach().clone(), raised(classifier.logits(x), y)
        for name in CORRUPTIONS if names is None else names:
            corrupted = corrupt(x, name, severity, seed=seed, ids=ids)
            value = raised(classifier.logits(corrupted), y)
            better = value > highest
            worst[better], highest = corrupted[better], torch.where(better, value, highest)
    return worst


def corrupt(x: Tensor, name: str, severity: int, *, seed: int = 0, ids: Tensor | Sequence[int] | None = None) -> Tensor:
    """Images with one corruption.

    Args:
        x: (B, C, H, W) pixels in [0, 1], C of 1 or 3.
        name: of CORRUPTIONS.
        severity: 1 to 5.
        seed, ids: of the noise, as in every attack.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        InputError: an unknown corruption, a severity that is not 1 to 5, images of another shape.
    """
    function = CORRUPTIONS.find(name)
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"severity {severity} of {name!r} is unknown: choose 1, 2, 3, 4 or 5")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"corruptions need grey or colour images (B, 1 or 3, H, W), not shape {tuple(x.shape)}")
    if not len(x):
        return x.clone()
    streams = streams_for(x, seed, ids, salt=zlib.crc32(name.encode()))
    return function(x.detach(), severity, streams).clamp(0, 1).to(x.dtype)


@CORRUPTIONS.add("gaussian-noise")
def gaussian_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Electronic noise: normal, the same everywhere."""
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] * streams.normal(x.shape[1:])


@CORRUPTIONS.add("shot-noise")
def shot_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Too few photons: Poisson counts, white being so many."""
    from scipy.stats import poisson

    photons = (500, 250, 100, 75, 50)[severity - 1]
    share = streams.uniform(x.shape[1:]).cpu().double() + 2.0**-25  # never 0, whose quantile would be -1
    counts = poisson.ppf(share.numpy(), (x * photons).cpu().double().numpy())
    return torch.from_numpy(counts).to(x) / photons


@CORRUPTIONS.add("impulse-noise")
def impulse_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Salt and pepper: a share of the values is black or white."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    draw = streams.uniform(x.shape[1:]).to(x)
    return torch.where(draw < share / 2, 0.0, torch.where(draw >= 1 - share / 2, 1.0, x))


@CORRUPTIONS.add("gaussian-blur")
def gaussian_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Out of focus; edge pixels repeat beyond the edge."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1).to(x)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=x.shape[1])


@CORRUPTIONS.add("motion-blur")
def motion_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """The camera moved, along a random direction within 45 degrees of the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    angle = streams.uniform((), -math.pi / 4, math.pi / 4).to(x)  # (B,)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(radius + 1)]
    still = torch.zeros_like(angle)
    total = torch.zeros_like(x)
    for k, weight in enumerate(weights):
        total += weight / sum(weights) * rigid(x, still, k * angle.cos(), k * angle.sin(), outside="border")
    return total


@CORRUPTIONS.add("brightness")
def brightness(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """More light: the value of the HSV colour rises, hue and saturation stay."""
    value = x.amax(1, keepdim=True)  # (B, 1, H, W)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-12), brighter)


@CORRUPTIONS.add("contrast")
def contrast(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Less contrast: nearer to each channel's mean."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] * (x - mean)


@CORRUPTIONS.add("fog")
def fog(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Clouds of noise with a power-law spectrum, in place of the paper's diamond-square plasma of the same decay."""
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    height, width = x.shape[2:]
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2).sqrt().to(x)
    # An amplitude that falls by ``decay`` an octave, over the number of waves in an octave of a plane.
    falling = torch.where(frequency > 0, frequency.clamp(min=1e-6) ** -(1 + math.log2(decay)), 0.0)
    clouds = torch.fft.irfft2(torch.fft.rfft2(streams.normal((height, width)).to(x)) * falling, s=(height, width))
    low, high = clouds.amin((1, 2), keepdim=True), clouds.amax((1, 2), keepdim=True)
    clouds = ((clouds - low) / (high - low).clamp(min=1e-12))[:, None]  # (B, 1, H, W)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * clouds) * brightest / (brightest + amount)


@CORRUPTIONS.add("pixelate")
def pixelate(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Fewer pixels, averaged over areas both ways.

    Stronger than in the paper: at its 0.95 to 0.65 of small images, a higher severity is often nearer to the image.
    """
    share = (0.8, 0.65, 0.5, 0.4, 0.3)[severity - 1]
    height, width = x.shape[2:]
    small = F.interpolate(x, size=(max(1, int(height * share)), max(1, int(width * share))), mode="area")
    return F.interpolate(small, size=(height, width), mode="area")


@CORRUPTIONS.add("jpeg")
def jpeg(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Compressed by Pillow's JPEG and opened again."""
    import numpy as np
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    opened = []
    for picture in pixels:
        file = BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=quality)
        opened.append(np.asarray(Image.open(file)).reshape(picture.shape))
    return torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2).to(x) / 255
