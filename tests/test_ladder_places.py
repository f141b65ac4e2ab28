"""Where the stages and levels of a ladder lie; any ladder, walked; and ladders that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.oracles import inside, some_rungs
from sfumato.core.errors import InputError
from sfumato.ladder import Ladder, Level, flow_time, from_flow_time, pool

PLAIN_IS_END = Ladder((4, 8), 1, 3)
PLAIN_ABOVE = Ladder((4, 8), 1, 3, plain=(2.0, 2.0, 0.6))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_stages_share_the_flow_time_equally(stages: int):
    ladder = Ladder((32, 64), 3, stages)
    ends = [float(flow_time(torch.tensor(end, dtype=torch.float64))) for end in ladder.ends]
    np.testing.assert_allclose(ends, [1 - (k + 1) / stages for k in range(stages)], atol=1e-12)
    np.testing.assert_allclose(ladder.ends[:-1], np.array(ladder.jumps[1:]) / 2)


def test_levels_run_from_jump_to_end_evenly_in_flow_time():
    for stage, levels in enumerate(PLAIN_IS_END.levels([3, 5, 7])):
        assert len(levels) == [4, 6, 8][stage]
        assert levels[0] == PLAIN_IS_END.jumps[stage] and levels[-1] == PLAIN_IS_END.ends[stage]
        gaps = np.diff([s / (1 + s) for s in levels])
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
        assert gaps[0] < 0


def test_flow_time_and_back():
    sigma = torch.tensor([0.0, 0.01, 1.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(from_flow_time(flow_time(sigma)), sigma)


def test_detail_in_double_precision_for_plain_numbers():
    """A Python float is a double: the share of detail at it must not be rounded to float32."""
    ladder, sigma = PLAIN_ABOVE, 0.7123456789012345
    expected = (ladder.jumps[2] - sigma) / (ladder.jumps[2] - ladder.plain[2])
    assert float(ladder.detail(2, sigma)) == pytest.approx(expected, rel=1e-13)


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    stages = draw(st.integers(1, 4))
    unit = 2 ** max(stages - 1, 1)
    height, width = unit * draw(st.integers(1, 4)), unit * draw(st.integers(1, 4))
    jumps: list[float] = []
    for stage in range(stages):
        top = 50.0 if stage == 0 else 1.8 * jumps[-1]  # over half of the next is all that is asked
        jumps.append(draw(st.floats(0.05 * top, top)) if stage else draw(st.floats(5, 80)))
    ends = [*(j / 2 for j in jumps[1:]), 0.0]
    plain = [e + draw(st.floats(0, 0.9)) * (j - e) for e, j in zip(ends, jumps, strict=True)]
    return Ladder((height, width), draw(st.sampled_from([1, 3, 4])), stages, tuple(jumps), tuple(plain))


@settings(max_examples=40, deadline=None)
@given(ladders(), st.data())
def test_any_ladder_walks_down_and_up(ladder: Ladder, data: st.DataObject):
    channels, (height, width) = ladder.channels, ladder.size
    x = torch.rand(2, channels, height, width) * 2 - 1
    rungs = some_rungs(ladder)
    first = data.draw(st.integers(0, len(rungs) - 1))
    second = data.draw(st.integers(first, len(rungs) - 1))
    here, there = rungs[first], rungs[second]
    z = ladder.marginal(x, here.stage, here.sigma, torch.randn(2, *ladder.shape(here.stage)))
    assert tuple(z.shape[1:]) == ladder.shape(here.stage)
    lower = ladder.down(z, here, there, torch.Generator().manual_seed(0))
    assert tuple(lower.shape[1:]) == ladder.shape(there.stage)
    assert lower.dtype == torch.float32 and bool(torch.isfinite(lower).all())
    for stage in range(1, ladder.stages):
        up = ladder.jump(torch.zeros(1, *ladder.shape(stage - 1)), stage, torch.randn(1, *ladder.shape(stage)))
        assert tuple(up.shape[1:]) == ladder.shape(stage)
        assert float(pool(up).abs().max()) < 1e-4 * ladder.jumps[stage]  # fresh noise is detail alone
    for stage in range(ladder.stages):
        shares = [float(ladder.detail(stage, inside(ladder, stage, share))) for share in (0.0, 0.3, 0.6, 1.0)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(1, abs=1e-4)
        assert shares[-1] == pytest.approx(0 if stage else 1, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(ladders(), st.data())
def test_down_never_reduces_noise(ladder: Ladder, data: st.DataObject):
    """From the clean image of zeros the state is noise alone, and as strong as the level says."""
    rung = data.draw(st.sampled_from(some_rungs(ladder)))
    count = max(4000 // ladder.size[0] // ladder.size[1], 2) * 4 ** (ladder.stages - rung.stage)
    x = torch.zeros(count, ladder.channels, *ladder.size)
    z = ladder.down(x, Level(ladder.stages - 1, 0.0), rung, torch.Generator().manual_seed(0))
    assert float(z.square().mean().sqrt()) == pytest.approx(rung.sigma, rel=0.08, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stages": 0}, "one stage or more"),
        ({"size": (30, 32), "stages": 3}, "30x32 cannot be halved"),
        ({"size": (7, 8), "stages": 1}, "7x8"),
        ({"size": (0, 8)}, "0x8"),
        ({"channels": 2}, "2 channels"),
        ({"stages": 2, "jumps": (40.0,)}, "jumps"),
        ({"stages": 2, "jumps": (1.0, 2.0)}, "jumps"),  # J_0 = J_1 / 2: no room for stage 0
        ({"stages": 2, "jumps": (40.0, -1.0)}, "jumps"),
        ({"stages": 1, "jumps": (float("nan"),)}, "jumps|levels"),
        ({"stages": 1, "jumps": (float("inf"),)}, "jumps|levels"),
        ({"stages": 2, "plain": (1.0,)}, "plain"),
        ({"stages": 2, "plain": (1.0, 2.0)}, "plain"),  # plain_1 = J_1
        ({"stages": 3, "plain": (2.0, 0.1, 0.1)}, "plain"),  # under end_1
    ],
)
def test_impossible_ladders(arguments: dict, words: str):
    with pytest.raises(InputError, match=words):
        Ladder(**arguments)


def test_plain_of_stage_0_is_ignored():
    """It has no detail to lose, so that any number will do."""
    assert Ladder((8, 8), 1, 2, plain=(0.0, 0.5)).detail(0, 3.0) == 1


@pytest.mark.parametrize("steps", [(4, 4), (4, 4, 0), (4, 4, 4, 4), ()])
def test_impossible_steps(steps: tuple[int, ...]):
    with pytest.raises(InputError, match="steps"):
        PLAIN_IS_END.levels(steps)
