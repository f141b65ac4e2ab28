"""Projected gradient ascent: the loop behind PGD, adversarial training, SmoothAdv and the attacks on purifiers.

x_{t+1} = P(x_t + step(g_t))        g_t: the gradient, at x_t, of what is to be raised
                                    P: the nearest point of ball and box (Madry et al. 2018, arXiv 1706.06083, 2.1)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.attacks.norms import flat, per_sample, project_onto, steepest

Slope = Callable[[Tensor, int], Tensor | tuple[Tensor, Tensor]]  # x_t (B, ...), t -> the gradient, and who goes on
Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # gradient, x_t, radius (B,), t -> the change of x_t

FIRST_STEP, LAST_STEP = 2.0, 0.02  # times eps, where no step is given
_L1_SHARE = 0.1  # of the entries take part in the first L1 step
_L1_REACH = 0.5  # how far one pixel can be expected to move inside the box


def ascend(
    x: Tensor,
    slope: Slope,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int,
    step: Step | float | None = None,
    begin: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent in the box and the ball around ``x``.

    Args:
        x: (B, ...) pixels in [0, 1], the centres of the balls.
        slope: gives the gradient at the current points, alone or with (n,) bool which of them go on: it does not see
            the others again. It is asked ``steps`` times, and not at the point where the last step ends.
        norm: Linf, L2 or L1.
        eps: radius, a float or (B,).
        steps: how many.
        step: a rule; or the length of every step as a share of ``eps``; or None, see ``steepest_steps``.
        begin: (B, ...) in box and ball; ``x`` by default.

    Returns:
        (n, ...) in box and ball: where the last step ends, for the samples that did not leave.
    """
    rule = step if callable(step) else steepest_steps(norm, step, steps)
    radius = per_sample(eps, x).reshape(-1)
    x_adv = x if begin is None else begin
    for index in range(steps if len(x) else 0):
        found = slope(x_adv, index)
        gradient, going = found if isinstance(found, tuple) else (found, None)
        if going is not None and not bool(going.all()):
            x, x_adv, gradient, radius = x[going], x_adv[going], gradient[going], radius[going]
        if len(x_adv) == 0:
            break
        x_adv = project_onto(x, x_adv + rule(gradient, x_adv, radius, index), norm, radius)
    return x_adv


def steepest_steps(norm: str, share: float | None, steps: int) -> Step:
    """Steepest steps of length ``share * eps``; without a share the length falls geometrically from 2 to 0.02 eps.

    For L1 the number of entries that take part falls from a tenth of all to what a step needs inside the box, in the
    first half of the run: first many move, then the few that count most collect the budget.
    """

    def step(gradient: Tensor, x_adv: Tensor, radius: Tensor, index: int) -> Tensor:
        done = index / max(1, steps - 1)
        length = radius * (FIRST_STEP * (LAST_STEP / FIRST_STEP) ** done if share is None else share)
        if norm != "L1":
            return per_sample(length, x_adv) * steepest(gradient, norm)
        blocked = ((x_adv >= 1) & (gradient > 0)) | ((x_adv <= 0) & (gradient < 0))
        needed = (length / _L1_REACH).ceil().clamp_min(1)
        most = (_L1_SHARE * flat(x_adv).shape[1] / needed).clamp_min(1)
        count = needed * most ** max(0.0, 1 - 2 * done)
        return per_sample(length, x_adv) * steepest(gradient.masked_fill(blocked, 0), norm, count)

    return step
