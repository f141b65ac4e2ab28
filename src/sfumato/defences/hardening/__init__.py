"""Adversarial training of a classifier, with generated images, and how smooth it makes the loss."""
