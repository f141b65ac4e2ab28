"""Which device, and which number type on it."""

from __future__ import annotations

import torch

from sfumato.core.errors import InputError


def find_device(name: str | torch.device = "auto") -> torch.device:
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:1``; InputError where it does not exist."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {str(name)!r}: choose auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {str(name)!r} is not supported: choose auto, cpu or cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {str(name)!r} was asked for, and there is no such GPU: use --device auto or cpu")
    return device


def autocast_type(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """bfloat16 or None for float32. ``auto`` takes bf16 only where the hardware multiplies it faster than float32."""
    if precision == "float32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    fast = any(getattr(torch.cpu, check, bool)() for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if fast else None
