"""Text to image with the model that ships with the package: prompts, guidance, and an edit towards another prompt.

python examples/text_to_image.py
"""

import torch

import sfumato
from sfumato.core.pictures import grid, save
from sfumato.generator import packaged

generator = sfumato.Generator.from_pretrained(packaged())

# Four images of each prompt.
prompts = ["a red heart", "a cat with sunglasses", "a green apple"]
pixels = torch.cat([generator.sample(4, prompt=text, seed=1) for text in prompts])  # (12, 3, 64, 64) in [0, 1]
save(grid(pixels, columns=4), "prompts.png")

# Classifier-free guidance: 1 is off, more follows the prompt more closely.
scales = [1.0, 3.0, 8.0]
pixels = torch.cat([generator.sample(4, prompt="a smiling sun", guidance=g, seed=1) for g in scales])
save(grid(pixels, columns=4), "guidance.png")

# Image to image: noise is added to the apple, and it is denoised again, conditioned on another text.
(apple,) = generator.sample(1, prompt="red apple", seed=1)
green = sfumato.edit(generator, apple, 4, prompt="a green apple", strength=0.6, seed=1)
save(grid(torch.cat([apple[None], green]), columns=5), "edit.png")
