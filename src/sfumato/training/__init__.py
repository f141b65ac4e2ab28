"""Training a generator."""

from sfumato.config import PRESETS
from sfumato.training.loop import Progress, train, training_steps

__all__ = ["PRESETS", "Progress", "train", "training_steps"]
