"""Train a small class-conditional diffusion model from scratch, sample from it, and look at one image on its way up.

python examples/train_and_sample.py
"""

import sfumato
from sfumato.core.pictures import grid, save

# 10,000 images of clothes that ship with the package. Run again to resume; 15 minutes draw clean shapes.
generator = sfumato.train("clothes", "runs/clothes", minutes=15)

# Each class in turn. Guidance above 1 makes images more typical of their class.
pixels = generator.sample(40, guidance=1.5, seed=1)  # (40, 1, 28, 28) in [0, 1]
save(grid(pixels, columns=10), "samples.png")

# One sneaker, step by step: what the denoiser predicts at each noise level, coarse stage first.
for rung in generator.trace(1, "sneaker", seed=1):
    height, width = rung.x_hat.shape[2:]
    print(f"stage {rung.stage}: {height}x{width} pixels, noise {rung.sigma:6.3f}")
