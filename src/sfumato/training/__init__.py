"""Training a generator, and the image-text embedding that recipes and metrics use."""

from sfumato.config import PRESETS
from sfumato.engine import Progress
from sfumato.training.denoising import train, training_steps
from sfumato.training.request import TrainingRequest

__all__ = ["PRESETS", "Progress", "TrainingRequest", "train", "training_steps"]
