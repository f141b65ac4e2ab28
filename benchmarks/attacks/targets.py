"""What is attacked: a standard and a hardened Fashion-MNIST network, trained here, and an ImageNet network from its wheel."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.base.trial import runs_folder
from sfumato.classifiers import NETWORKS, Classifier, find_classifier, load_classifier, match_labels, save_classifier
from sfumato.core.streams import mix_seed
from sfumato.data import load

NAMES = ("standard", "robust", "effnet-lite0")
EPOCHS, BATCH, RATE = 5, 128, 0.2
TRAINED_EPS = 0.1  # Linf
# The radii of the fixed-size attacks, with which each target's accuracy falls neither to 0 nor hardly at all.
EPS: dict[str, dict[str, float]] = {
    "standard": {"Linf": 0.02, "L2": 0.5, "L1": 6.0},
    "robust": {"Linf": 0.1, "L2": 1.5, "L1": 12.0},
    "effnet-lite0": {"Linf": 0.15 / 255, "L2": 0.08, "L1": 4.0},
}
# Photographs that come with scikit-learn, scikit-image and matplotlib: package and place in it.
PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
)
SIDE = 128  # pixels of their crops, which the network takes as they are: its own 224 would cost three times as much
CROPS = ((0.5, 1.0), (0.25, 0.8), (0.75, 0.8))  # where along the photograph, and the share of its shorter side
SUREST = 0.5  # the least probability of the prediction that is taken as the label


@dataclass(frozen=True)
class Target:
    """A classifier with samples."""

    name: str
    classifier: Classifier
    x: Tensor  # (B, C, H, W) in [0, 1]
    y: Tensor  # (B,)
    eps: Mapping[str, float]  # by norm
    first: int = 0  # of the images to choose from


def find_target(name: str, samples: int, first: int = 0, right_only: bool = True) -> Target:
    """The target, trained first where the cache does not hold it, and ``samples`` of the test images from ``first`` on.

    ``right_only``: of those that it gets right.
    """
    if name == "effnet-lite0":
        classifier, x, y = photographs()
        x, y = x[first:], y[first:]
    else:
        classifier = fashion_classifier(TRAINED_EPS if name == "robust" else 0.0)
        data = load("fashion-mnist", split="test")
        some = slice(first, first + 3 * samples)
        x, y = data.pixels(some), match_labels(classifier, data)[some]
        right = (classifier.predict(x) == y) | (not right_only)
        x, y = x[right], y[right]
    return Target(name, classifier, x[:samples].contiguous(), y[:samples], EPS[name], first)


def fashion_classifier(eps: float, seed: int = 0) -> Classifier:
    """The "convnet", on whole Fashion-MNIST; with ``eps``, hardened against Linf perturbations of that size."""
    folder = runs_folder() / f"attacks-convnet-eps{eps:g}-epochs{EPOCHS}-seed{seed}"
    if not (folder / "model.safetensors").exists():
        train(folder, eps, seed)
    return load_classifier(folder, "cpu")


def train(folder: Path, eps: float, seed: int) -> None:
    """SGD with a one-cycle rate; with ``eps`` on examples of a random start and one signed step (Wong et al. 2020)."""
    data = load("fashion-mnist")
    assert data.labels is not None
    labels = torch.from_numpy(data.labels).long()
    torch.manual_seed(mix_seed(seed, 0))
    network = NETWORKS.find("convnet")(data.channels, data.size, len(data.classes))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = Classifier(
        network, mean=0.2860, std=0.3530, labels=data.classes, size=data.size, channels=data.channels, device="cpu"
    )
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * (len(data) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(mix_seed(seed, 1))
    began, step = time.perf_counter(), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data), generator=generator).split(BATCH)[: len(data) // BATCH]:
            x, y = data.pixels(rows.numpy()), labels[rows]
            network.train()
            if eps:
                x = _signed_step(classifier, x, y, eps, generator)
            loss = F.cross_entropy(network(classifier.preprocess(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            step += 1
            if step % 200 == 0:
                print(f"training {folder.name}: {step}/{steps}, loss {loss:.3f}", flush=True)
    network.eval()
    save_classifier(folder, classifier, {"seconds": round(time.perf_counter() - began, 1), "eps": eps, "seed": seed})


def _signed_step(classifier: Classifier, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    start = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1).requires_grad_()
    loss = F.cross_entropy(classifier.model(classifier.preprocess(start)), y)
    (slope,) = torch.autograd.grad(loss, start)
    moved = start.detach() + 1.25 * eps * slope.sign()
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)


def photographs() -> tuple[Classifier, Tensor, Tensor]:
    """EfficientNet-Lite0 at 128 pixels, crops of photographs, and what it says of them.

    Crops of which it is not sure at all are left out, the rest goes through the photographs in turn.
    """
    whole = find_classifier("effnet-lite0", "cpu").module
    assert whole is not None
    network = whole.get_submodule("network").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = Classifier(network, mean=127 / 255, std=128 / 255, size=(SIDE, SIDE), channels=3, batch_size=16)
    files = [file for package, place in PHOTOGRAPHS if (file := _inside(package, place)) is not None]
    x = torch.stack([_crop(file, *crop) for crop in CROPS for file in files])
    probability, y = classifier.logits(x).softmax(1).max(1)
    sure = probability >= SUREST
    return classifier, x[sure], y[sure]


def _inside(package: str, place: str) -> Path | None:
    """A file of an installed package; None where it, or the package, is missing."""
    found = importlib.util.find_spec(package)
    file = Path(found.origin).parent / place if found and found.origin else None
    return file if file is not None and file.exists() else None


def _crop(file: Path, along: float, share: float) -> Tensor:
    """A square of the photograph, (3, SIDE, SIDE) in 8-bit steps."""
    with Image.open(file) as image:
        side = int(share * min(image.size))
        left, top = (int(along * (length - side)) for length in image.size)
        picture = image.convert("RGB").crop((left, top, left + side, top + side))
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(SIDE, SIDE, 3).permute(2, 0, 1).float() / 255
