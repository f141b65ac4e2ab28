"""Decision boundaries: the maths of planes and what a classifier says on them, apart from the plots.

>>> from sfumato.boundary import boundary                                               # doctest: +SKIP
>>> boundary(classifier, x, y).save("boundary.png")                                     # doctest: +SKIP
>>> boundary(classifier, x, y, other=hardened).save("before-and-after.png")             # doctest: +SKIP
"""

from __future__ import annotations

from sfumato.boundary.fields import Field, Path, along, crossing, field, path
from sfumato.boundary.figure import EPS, FORMATS, KINDS, Boundaries, boundary
from sfumato.boundary.planes import (
    Plane,
    Threat,
    adversarial_direction,
    adversarial_plane,
    gradient_direction,
    random_direction,
    spanned,
    through,
)
from sfumato.boundary.toys import TOYS, examine, toy, train_toy
from sfumato.boundary.views import ascent, three_images, windows

__all__ = ["EPS", "FORMATS", "KINDS", "TOYS", "Boundaries", "Field", "Path", "Plane", "Threat"]
__all__ += ["adversarial_direction", "adversarial_plane", "along", "ascent", "boundary", "crossing", "examine"]
__all__ += ["field", "gradient_direction", "path", "random_direction", "spanned", "three_images", "through", "toy"]
__all__ += ["train_toy", "windows"]
