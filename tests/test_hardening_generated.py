"""Generated images in the mix of hardening: drawn once, balanced, filtered by a classifier, a share of each batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.classifiers import DIGITS, hardened, same
from helpers.generators import saved_generator
from sfumato.classifiers import NETWORKS, Classifier, read_description
from sfumato.classifiers.objective import Network
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.defences.hardening import adversarial_training as at
from sfumato.defences.hardening import generated
from sfumato.defences.hardening import harden as hardening
from sfumato.defences.hardening.adversarial_training import METHODS, Threat
from sfumato.engine import Moment
from sfumato.generator import Generator


def test_the_surest_of_each_class_are_kept() -> None:
    """An image's first pixel is its logit for class 1: what is kept follows by hand."""

    def model(x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(x[:, 0, 0, 0], 0.5), x[:, 0, 0, 0]], 1)

    values = torch.tensor([10, 250, 100, 140, 200, 20, 120, 180, 60, 160], dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1, 0])
    classifier, plain = Classifier(model, labels="ab"), values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    rows, kept, agreed = generated.surest(classifier, plain, labels)
    # Taken for their label: of class 0 10, 20, 100, 120, of class 1 250, 200, 180, 140. At most 4 of 5 of each.
    assert agreed == 8 and sorted(values[rows].tolist()) == [10, 20, 100, 120, 140, 180, 200, 250]
    assert torch.equal(kept, labels[rows]) and kept.bincount().tolist() == [4, 4]
    some = torch.tensor([0, 1, 4, 3, 2])  # of class 0 two agree, of class 1 three, of each four fifths at most
    rows, kept, _ = generated.surest(classifier, plain[some], labels[some])
    assert kept.bincount().tolist() == [2, 2] and 140 not in values[some][rows].tolist()  # the least sure one goes
    with pytest.raises(InputError, match="draws as 'b' the classifier takes nothing"):
        generated.surest(classifier, values.new_zeros(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))


def test_few_images_are_not_repeated_without_end() -> None:
    """At the share that is affordable, an image is seen at most four times as often as one of the data."""
    assert generated.affordable(0.3, 50_000, 60_000) == 0.3
    share = generated.affordable(0.3, 1_000, 60_000)
    assert (share / 1_000) / ((1 - share) / 60_000) == pytest.approx(4)


class Painter(Generator):
    """Draws what a label says: a plain image as bright as the label's number."""

    def sample(self, n: int = 16, label: Any = None, *, seed: int = 0, **how: Any) -> Tensor:  # type: ignore[override]
        noise = 0.01 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return (torch.tensor([int(name) for name in label]).view(-1, 1, 1, 1) / 10 + noise).clamp(0, 1)


@pytest.fixture
def painter(tmp_path: Path) -> Painter:
    return Painter.from_pretrained(saved_generator(tmp_path / "painter"), "cpu")  # type: ignore[return-value]


def judge() -> Classifier:
    """Takes a plain image for its brightness, up to 7; brighter ones for 7."""
    levels, order = (torch.arange(10) / 10).clamp(max=0.7), 1e-3 * torch.arange(10)
    return Classifier(lambda x: -100 * (x.mean((1, 2, 3))[:, None] - levels) ** 2 - order, labels=DIGITS)


def test_images_are_drawn_once_balanced_and_kept(tmp_path: Path, painter: Painter) -> None:
    levels = torch.arange(10) / 10 + 0.005
    easy = Classifier(lambda x: -((x.mean((1, 2, 3))[:, None] - levels) ** 2) * 1e3, labels=DIGITS[::-1])
    file, told = tmp_path / "g.safetensors", []
    how: dict[str, Any] = {"identity": {"of": 1, "seed": 1}, "most": 450}
    reverse = Classifier(lambda x: easy(x).flip(1), labels=DIGITS[::-1])
    pool = generated.draw_pool(painter, reverse, file, **how, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 450), (200, 450), (400, 450), (450, 450)] and pool.drawn == pool.agreed == 450
    assert pool.labels.bincount().tolist() == [36] * 10  # four fifths of 45
    assert torch.equal(9 - pool.labels, (pool.images.float().mean((1, 2, 3)) / 25.5 - 0.05).round().long())  # by name
    x, y = pool.take(4000, torch.Generator().manual_seed(0))
    assert float(x.max()) <= 1 and int(y.bincount().min()) > 320 and int(y.bincount().max()) < 480
    # It is taken from the file, also one that was left in the middle; another generator's is refused.
    del told[:]
    again = generated.draw_pool(painter, reverse, file, **how, progress=lambda *_: told.append(_))
    assert torch.equal(again.images, pool.images) and not told
    tensors, stored = checkpoint.read(file)
    checkpoint.write_tensors(file, {"images": tensors["images"][:200].clone()}, stored)
    assert torch.equal(generated.draw_pool(painter, reverse, file, **how).images, pool.images)
    with pytest.raises(InputError, match="another generator"):
        generated.draw_pool(painter, reverse, file, **{**how, "identity": {"of": 2, "seed": 1}})
    with pytest.raises(InputError, match="draws as '8' the classifier takes nothing"):
        generated.draw_pool(painter, judge(), tmp_path / "other" / "pool.safetensors", **how)
    assert not (tmp_path / "other").exists()  # these images serve no other generator or classifier
    few = generated.draw_pool(painter, reverse, tmp_path / "few.safetensors", **{**how, "most": 10**6}, seconds=1e-9)
    assert few.drawn == generated.CHUNK  # no time for more than is needed to measure the speed


def test_a_share_of_each_batch_is_generated(tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardened with a painter whose images are told by their brightness; and it goes on after a stop."""
    module = NETWORKS["convnet"](1, (8, 8), 10)
    clf = Classifier(module, mean=0.3, std=0.3, labels=DIGITS, size=(8, 8), channels=1)
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(threat: Threat) -> Callable[..., tuple[Tensor, Tensor]]:
        def objective(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
            seen.append((x, y))
            return at.standard(network, x, y, moment)

        return objective

    monkeypatch.setitem(METHODS, "pgd", watched)
    monkeypatch.setattr(generated, "surest", lambda _, images, labels: (torch.arange(len(images)), labels, len(images)))
    how: dict[str, Any] = {"method": "pgd", "eps": 0.1, "epochs": 0.3, "generator": painter, "share": 0.4}
    whole = hardening.harden(clf, "digits", tmp_path / "whole", **how)
    batches = [pair for pair in seen if len(pair[0])]
    for x, y in batches:
        plain = x.flatten(1).std(1) < 0.02
        assert int(plain.sum()) == round(0.4 * len(x))
        assert torch.equal((x[plain].mean((1, 2, 3)) * 10 - 0.05).round().long(), y[plain])
    notes = read_description(tmp_path / "whole")["training"]
    mixed = notes["generated"]
    assert mixed["share"] == pytest.approx(0.4, abs=0.01) and mixed["kept"] == mixed["drawn"] > 0
    steps = hardened(clf, tmp_path / "parts", **how)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    monkeypatch.setattr(Painter, "sample", None)  # what was drawn is there
    with pytest.raises(InputError, match=r"--minutes 1e-09 leave no time to train after .* generated images took"):
        hardened(clf, tmp_path / "parts", **{**how, "epochs": None, "minutes": 1e-9})
    assert same(whole, hardening.harden(clf, "digits", tmp_path / "parts", **how))
