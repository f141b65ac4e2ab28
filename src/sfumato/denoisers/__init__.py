"""Networks ``x^ = D(z, s, stage, c)`` that predict the clean image of a stage from its noisy one."""

from sfumato.denoisers import dit, unet
from sfumato.denoisers.denoiser import SHARING, Denoiser
from sfumato.denoisers.networks import NETWORKS

__all__ = ["NETWORKS", "SHARING", "Denoiser", "dit", "unet"]
