"""Randomized smoothing: certified L2 radii of a classifier behind a diffusion model's denoiser.

python examples/certify.py
"""

import sfumato
from sfumato.classifiers import train_classifier
from sfumato.defences import ABSTAIN, certify

SIGMA = 0.25  # of the noise, for pixels in [0, 1]
RADII = [0.125, 0.25, 0.5]

generator = sfumato.train("clothes", "runs/clothes", minutes=15)
classifier = train_classifier("clothes", "clf", epochs=4)
test = sfumato.load("clothes", split="test")
assert test.labels is not None  # this set has labels
x, y = test.pixels(slice(20)), test.labels[:20]

# The certificate holds for the smoothed classifier: noise, then the denoiser, then the classifier, then a majority vote.
certificates = certify(classifier, x, sigma=SIGMA, denoise=generator.denoise, radii=RADII, n=10_000, alpha=0.001)

for number, (certificate, label) in enumerate(zip(certificates, y, strict=True)):
    answer = "abstains" if certificate.label == ABSTAIN else classifier.labels[certificate.label]
    print(f"image {number} ({test.classes[label]}): {answer}, radius {certificate.radius:.3f}, {certificate.n} draws")
for radius in RADII:
    right = sum(c.label == label and c.radius >= radius for c, label in zip(certificates, y, strict=True))
    print(f"certified accuracy at L2 radius {radius}: {right / len(y):.0%}")
