"""The registry of networks.

A network is one ``nn.Module`` class: ``__init__(ladder, classes, serves, **options)``, where ``serves`` are the stages it is for, and
``forward(z, sigma, detail, stage, label)``, see ``unet.NestedUNet``.
"""

from __future__ import annotations

from torch import nn

from sfumato.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry("network")
