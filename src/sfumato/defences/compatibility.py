"""Guards: do a classifier, a generator in front of it and the images belong together?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator

_COLOURS = {1: "grey", 3: "colour", 4: "colour with transparency"}


def check_compatible(classifier: Classifier, generator: Generator) -> None:
    """InputError where the generator's images are none that the classifier takes: another size, colour, or other classes.

    A classifier of colour images takes grey ones, too. A generator without labels may be in front of any classifier.
    """
    channels, height, width = generator.ladder.shape(generator.ladder.stages - 1)
    if classifier.size is not None and classifier.size != (height, width):
        high, wide = classifier.size
        problem = f"the classifier takes {wide}x{high} pixels, the generator makes {width}x{height}"
        raise InputError(f"{problem}: train one of them again with the other's --size, and the same --fit")
    advice = "give a generator that was trained on the classifier's data"
    allowed = {1, 3} if classifier.channels == 3 else {classifier.channels}
    if classifier.channels is not None and channels not in allowed:
        wants, has = _COLOURS[classifier.channels], _COLOURS[channels]
        raise InputError(f"the classifier takes {wants} images, the generator makes {has} ones: {advice}")
    if not generator.classes:
        return
    other = [name for name in classifier.labels if name not in generator.classes] if classifier.named else []
    if other:
        raise InputError(f"the classifier knows a class {other[0]!r}, the generator does not: {advice}")


def check_smoothing(classifier: Classifier, generator: Generator, data: ImageSet, sigma: float) -> None:
    """InputError where the generator's denoiser cannot stand in front of this classifier at this noise.

    Args:
        sigma: standard deviation of the noise, of pixels in [0, 1].
    """
    check_compatible(classifier, generator)
    check_images(data, generator)
    generator.config.need_all_levels("randomized smoothing")
    generator.need_unconditional("randomized smoothing")
    most = generator.ladder.jumps[0] / 2
    if sigma > most:
        raise InputError(f"sigma {sigma:g} is more noise than this generator has seen: give {most:g} or less")


def check_images(data: ImageSet, generator: Generator) -> None:
    """InputError unless the data has images of the size and colour that the generator makes."""
    channels, height, width = generator.ladder.shape(generator.ladder.stages - 1)
    if (data.channels, *data.size) != (channels, height, width):
        has = f"data {data.name!r} has images of {data.size[1]}x{data.size[0]} pixels and {data.channels} channels"
        makes = f"the generator makes {width}x{height} with {channels}"
        raise InputError(f"{has}, {makes}: give the --size, --fit and data that it was trained with")


def check_pixels(x: Tensor) -> Tensor:
    """``x`` without its history; InputError for what is no batch of images in [0, 1]."""
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise InputError(f"images of shape {tuple(x.shape)} {x.dtype}: give a float tensor (B, C, H, W), B 1 or more")
    low, high = (float(value) for value in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"pixels run from {low:g} to {high:g}: give them between 0 and 1, without noise")
    return x.detach()
