"""The registry of networks.

A network is one ``nn.Module`` class: ``__init__(ladder, kinds, serves, **options)``, where ``kinds`` are the parts of c and ``serves``
the stages it is for, and ``forward(z, sigma, detail, stage, c)``, see ``unet.NestedUNet``.
"""

from __future__ import annotations

from torch import nn

from sfumato.core.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry("network")
