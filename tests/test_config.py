"""Settings as text, presets by size, and the way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch

from helpers.oracles import TINY
from sfumato.conditions import Condition, Kinds
from sfumato.config import PRESETS, Config, preset
from sfumato.core.errors import InputError

READ: dict[str, dict[str, Any]] = {
    "stages": {"2": 2},
    "learning_rate": {"1e-3": 1e-3},
    "ema": {"0.1": 0.1},
    "flip": {"true": True, "YES": True, "0": False},
    "weights": {"elbo": "elbo"},
    "sharing": {"stage": "stage"},
    "levels": {"logit-normal": "logit-normal"},
    "jumps": {"40,4, 1": (40.0, 4.0, 1.0), "": ()},
    "plain": {"2,0.5,0": (2.0, 0.5, 0.0)},
    "rungs": {"4,4,4": (4, 4, 4)},
    "mix": {"1,1,0.5": (1.0, 1.0, 0.5)},
    "precision": {"float32": "float32"},
    "batch": {"32": 32},
}


@pytest.mark.parametrize("key", READ)
def test_settings_of_each_kind(key: str):
    for text, value in READ[key].items():
        read = getattr(Config().with_settings({key: text}), key)
        assert read == value and type(read) is type(value)


def test_options_of_the_network_are_settings_too():
    config = Config().with_settings({"channels": "16,32", "blocks": "1,2", "patch": "4", "width": "48"})
    assert dict(config.options) == {"channels": (16, 32), "blocks": (1, 2), "patch": 4, "width": 48}
    assert dict(config.with_settings({"patch": "2"}).options)["channels"] == (16, 32)  # the others stay


def test_another_network_starts_from_its_own_defaults():
    config = preset((32, 32)).with_settings({"network": "dit", "depth": "2"})
    assert config.network == "dit" and dict(config.options) == {"depth": 2}
    assert "channels" in dict(preset((32, 32)).with_settings({"network": "unet"}).options)


IMPOSSIBLE = {
    "unknown setting 'lerning_rate': did you mean 'learning_rate'": "lerning_rate=1",
    "did you mean 'channels'": "chanels=1",
    "unknown setting 'depth'": "depth=2",  # of another network
    "unknown setting 'options'": "options=x",
    "unknown network 'unit': did you mean 'unet'": "network=unit",
    "did you mean 'velocity'": "weights=velocty",
    "unknown sharing": "sharing=stges",
    "unknown target": "target=y",
    "unknown precision": "precision=fp16",
    "did you mean 'logit-normal'": "levels=normal",
    "stages='two' cannot be read: give a whole number": "stages=two",
    "whole number": "batch=1.5",
    "give a number": "ema=wide",
    "true or false": "flip=maybe",
    "numbers joined by commas": "mix=1,x,1 rungs=1.5,2 channels=a,b",
    **{asked: asked for asked in ("drop=1.5", "drop=nan", "batch=0", "ema=0", "ema=0.5")},  # 0.5: no power function's
    "learning_rate": "learning_rate=-1 learning_rate=nan learning_rate=inf",
    "clip": "clip=0",
    "mix": "mix=1,2 mix=1,0,1 mix=1,nan,1 mix=1,inf,1",
    "needs rungs=": "target=z_next sharing=rung",
    "rungs": "rungs=2,2 rungs=2,0,2",  # for three stages
    "stages is 0": "stages=0",
    "jumps": "jumps=40,1,9",
    "plain": "plain=9,9,9",
}


@pytest.mark.parametrize(
    ("words", "setting"), [(words, one) for words, settings in IMPOSSIBLE.items() for one in settings.split()]
)
def test_impossible_settings(words: str, setting: str):
    """Found before any training, with the name of the setting; some need the ladder or the network to be built."""
    with pytest.raises(InputError, match=words):
        config = Config(options={"channels": (16, 16), "blocks": (1, 1)}).with_settings(dict([setting.split("=")]))
        config.denoiser(config.ladder((16, 16), 1), Kinds())


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 48)])
def test_json_and_back(size: tuple[int, int]):
    config = preset(size).with_settings({"jumps": "", "drop": "0.2", **({"rungs": "3,3"} if size == (8, 8) else {})})
    text = json.dumps(config.to_json())
    assert Config.from_json(json.loads(text)) == config
    assert json.dumps(Config.from_json(json.loads(text)).to_json()) == text


def test_json_of_a_newer_version():
    with pytest.raises(InputError, match="colour"):
        Config.from_json({**Config().to_json(), "colour": 1})


def test_json_without_newer_fields_takes_the_defaults():
    stored = Config(stages=2).to_json()
    del stored["drop"]
    assert Config.from_json(stored) == Config(stages=2)


# -- presets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 12, 28, 32, 48, 64, 128, 256])
def test_preset_by_size(side: int):
    config = preset((side, side))
    ladder = config.ladder((side, side), 3)
    chosen = next(p for p in PRESETS.values() if side <= p.up_to)
    assert set(config.options["channels"]) <= set(chosen.channels)
    assert list(config.options["channels"]) == sorted(config.options["channels"])  # wider inside
    assert min(ladder.shape(0)[1:]) >= 4 and ladder.stages >= (2 if side >= 8 else 1)


def test_preset_by_name():
    assert preset((8, 8), "small").options["channels"] != preset((8, 8)).options["channels"]
    with pytest.raises(InputError, match="unknown preset 'smal': did you mean 'small'"):
        preset((8, 8), "smal")


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 48), (64, 64)])
def test_every_preset_builds_at_any_size(name: str, size: tuple[int, int]):
    config = preset(size, name)
    ladder = config.ladder(size, 1)
    with torch.device("meta"):
        denoiser = config.denoiser(ladder, Kinds(2))
        for stage in range(ladder.stages):
            z = torch.zeros(2, *ladder.shape(stage))
            assert denoiser(z, torch.ones(2), stage, None, torch.ones(2)).shape == z.shape


@pytest.mark.parametrize("size", [(8, 8), (14, 22), (28, 28), (32, 32)])
def test_a_preset_made_small_runs(size: tuple[int, int]):
    """With real numbers: every stage, forward and backward."""
    config = preset(size)
    levels = len(config.options["channels"])
    config = config.with_settings({**TINY, "channels": ",".join(["16"] * levels), "blocks": ",".join(["1"] * levels)})
    ladder = config.ladder(size, 3)
    denoiser = config.denoiser(ladder, Kinds(2))
    for stage in range(ladder.stages):
        z = torch.randn(2, *ladder.shape(stage))
        x_hat = denoiser(z, torch.full((2,), ladder.jumps[stage]), stage, Condition(torch.tensor([0, 2])))
        x_hat.square().mean().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in denoiser.parameters() if p.grad is not None)


def test_every_field_has_a_default():
    assert {f.name for f in fields(Config)} == set(Config().to_json())
