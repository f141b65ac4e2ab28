"""Classifiers: any model as one that takes pixels in [0, 1], small ones to train, and where to find others.

>>> import torch
>>> from sfumato.classifiers import Classifier
>>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
>>> images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
>>> logits, gradient = classifier.gradient(images, lambda z: torch.nn.functional.cross_entropy(z, labels, reduction="none"))
>>> tuple(logits.shape), tuple(gradient.shape), classifier.forwards, classifier.backwards
((4, 10), (4, 1, 8, 8), 4, 4)
"""

from __future__ import annotations

from sfumato.classifiers.accuracy import Accuracy, Evaluation, evaluate_classifier, match_labels
from sfumato.classifiers.classifier import BudgetExceeded, Classifier, TwoLogits
from sfumato.classifiers.find import find_classifier
from sfumato.classifiers.networks import NETWORKS
from sfumato.classifiers.saved import load_classifier, read_description, save_classifier
from sfumato.classifiers.training import ClassifierRequest, classifier_steps, train_classifier

__all__ = [
    "NETWORKS",
    "Accuracy",
    "BudgetExceeded",
    "Classifier",
    "ClassifierRequest",
    "Evaluation",
    "TwoLogits",
    "classifier_steps",
    "evaluate_classifier",
    "find_classifier",
    "load_classifier",
    "match_labels",
    "read_description",
    "save_classifier",
    "train_classifier",
]
