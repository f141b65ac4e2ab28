"""Train a classifier, find adversarial examples by three attacks, and draw its decision boundary.

python examples/attack_and_boundary.py
"""

import torch

import sfumato
from sfumato.attacks import ATTACKS, verified
from sfumato.boundary import boundary
from sfumato.classifiers import train_classifier

classifier = train_classifier("clothes", "clf", epochs=4)
test = sfumato.load("clothes", split="test")
assert test.labels is not None  # this set has labels
x, y = test.pixels(slice(64)), torch.tensor(test.labels[:64])  # (64, 1, 28, 28) in [0, 1], and (64,)
print("accuracy:", float((classifier.predict(x).cpu() == y).float().mean()))

# Every attack has the same signature, and returns pixels in [0, 1] within eps of x.
for name in ("fgsm", "pgd", "apgd"):
    x_adv = ATTACKS[name](classifier, x, y, norm="Linf", eps=8 / 255)
    # `verified` checks the norm and the range of pixels, and asks the classifier again.
    found = verified(classifier, x, x_adv, y, norm="Linf", eps=8 / 255)
    robust = 1 - float(found.success.float().mean())
    print(f"{name}: robust accuracy {robust:.2f}, all within eps: {bool(found.in_ball.all())}")

# The plane through three test images: where one class ends and the next begins.
boundary(classifier, x, y, kind="plane").save("boundary.png")
