"""Measures of a generator: Frechet and kernel distance, precision and recall, labels, memorisation."""

from __future__ import annotations

from sfumato.metrics.distances import frechet_distance, kernel_distance
from sfumato.metrics.evaluate import EvaluationRequest, compare, evaluate
from sfumato.metrics.features import FEATURES, FeatureSpace, reference_features
from sfumato.metrics.manifold import density_coverage, precision_recall
from sfumato.metrics.neighbours import memorisation, nearest
from sfumato.metrics.report import lines, picture
from sfumato.metrics.retrieval import Retrieval, find_judge, r_precision

__all__ = ["FEATURES", "EvaluationRequest", "FeatureSpace", "Retrieval", "compare", "density_coverage", "evaluate"]
__all__ += ["find_judge", "frechet_distance", "kernel_distance", "lines", "memorisation", "nearest", "picture"]
__all__ += ["precision_recall", "r_precision", "reference_features"]
