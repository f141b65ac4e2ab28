"""What a model can be conditioned on: labels, texts, vectors, low-resolution images."""

from sfumato.conditions.condition import Condition, Kinds

__all__ = ["Condition", "Kinds"]
