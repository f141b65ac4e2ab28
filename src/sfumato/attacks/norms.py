"""Norms, their balls, and projections: what each attack does to a perturbation.

A perturbation ``delta`` is (B, ...); all is per sample, over everything but the first dimension. ``eps`` is a float or
a (B,) tensor, in [0, 1] units (for L0: how many entries may change).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.core.errors import InputError, nearest

NORMS = ("Linf", "L2", "L1", "L0")
_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_ROUNDS = 100  # of the finite, rising iterations below, which take fewer than ten in practice


def check_norm(norm: str, known: Sequence[str] = NORMS, who: str = "") -> str:
    """``norm`` itself; InputError where it is none of ``known``."""
    if norm not in known:
        raise InputError(f"unknown norm {norm!r}{f' for {who}' if who else ''}: {nearest(norm, known)}")
    return norm


def dual(norm: str) -> str:
    """The norm q with ``max over ||d||_norm <= 1 of <d, g> = ||g||_q``: Linf and L1 are each other's, L2 its own."""
    return _DUAL[check_norm(norm, tuple(_DUAL), "a dual norm")]


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, D), contiguous or not."""
    return x.flatten(1)


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, or (B,) numbers, as (B, 1, ..., 1) in the dtype, device and rank of ``like`` (B, ...).

    Raises:
        InputError: as many numbers as there are samples were wanted, and others came.
    """
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.numel() not in (1, len(like)):
        raise InputError(f"{value.numel()} values were given for {len(like)} samples: give one number, or one a sample")
    return value.reshape(-1).expand(len(like)).reshape(-1, *[1] * (like.ndim - 1))


def norm_of(delta: Tensor, norm: str) -> Tensor:
    """The norm of each perturbation: (B, ...) -> (B,); L0 counts the entries that are not 0."""
    check_norm(norm)
    delta = flat(delta)
    if norm == "Linf":
        return delta.abs().amax(1) if delta.shape[1] else delta.new_zeros(len(delta))
    if norm == "L2":
        return torch.linalg.vector_norm(delta, dim=1)
    if norm == "L1":
        return delta.abs().sum(1)
    return (delta != 0).sum(1).to(delta.dtype)


def project(delta: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """The nearest point (in L2) of the ball of radius ``eps``: (B, ...) -> (B, ...).

    L1 by the threshold of Duchi et al. 2008 (figure 1); L0 keeps the ``floor(eps)`` largest entries.
    """
    return _project(delta, norm, per_sample(eps, delta), torch.full_like(delta, float("inf")))


def project_box_ball(x: Tensor, delta: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """The nearest ``delta`` (in L2) with ``x + delta`` in [0, 1] and in the ball at once, exactly; ``x`` in [0, 1].

    Doing the one and then the other is exact for Linf only; for L1 see Croce & Hein 2021 (proposition 2.1).
    """
    delta = torch.maximum(torch.minimum(delta, 1 - x), -x) if norm == "Linf" else delta
    room = torch.where(delta > 0, 1 - x, x)  # how far each entry may go in its own direction
    delta = _project(delta, norm, per_sample(eps, delta), room)
    return torch.maximum(torch.minimum(delta, 1 - x), -x)


def project_onto(x: Tensor, moved: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """The point of box and ball around ``x`` nearest to ``moved``; both (B, ...), as is the result."""
    if norm == "Linf":  # fewer passes over memory than through delta, with the same result
        return moved.clamp(*cube(x, eps))
    return (x + project_box_ball(x, moved - x, norm, eps)).clamp(0, 1)


def cube(x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest point of the box and the Linf ball around ``x``, each (B, ...)."""
    radius = per_sample(eps, x)
    return (x - radius).clamp_(min=0), (x + radius).clamp_(max=1)


def _project(delta: Tensor, norm: str, eps: Tensor, room: Tensor) -> Tensor:
    """Onto the ball and the box ``|delta_i| <= room_i``."""
    check_norm(norm)
    if norm == "Linf":
        return torch.minimum(torch.maximum(delta, -torch.minimum(eps, room)), torch.minimum(eps, room))
    size, bound = flat(delta.abs()), flat(room)  # (B, D)
    radius = eps.reshape(-1)  # (B,)
    inside = torch.minimum(size, bound)
    if norm == "L2":
        size = torch.where((inside.square().sum(1) <= radius**2)[:, None], inside, _shrink_l2(size, bound, radius))
    elif norm == "L1":
        size = torch.where((inside.sum(1) <= radius)[:, None], inside, _shrink_l1(size, bound, radius))
    else:
        # Keeping entry i saves size_i^2 of the squared distance, less what the box takes.
        gain = size.square() - (size - inside).square()
        rank = gain.argsort(dim=1, descending=True).argsort(dim=1)
        size = torch.where(rank < radius.floor()[:, None], inside, 0.0)
    if norm in ("L2", "L1"):  # rounding may leave it a hair outside
        length = norm_of(size, norm).clamp_min(torch.finfo(size.dtype).tiny)
        size = size * (radius / length).clamp_max(1)[:, None]
    return size.reshape(delta.shape) * delta.sign()


def _shrink_l2(size: Tensor, bound: Tensor, radius: Tensor) -> Tensor:
    """``min(s size, bound)`` of length ``radius``.

    From below: solve for s with the entries clipped so far, clip those that s brings to their bound, solve again. s only
    rises and entries only get clipped, so it ends at the exact s.
    """
    scale = radius / torch.linalg.vector_norm(size, dim=1).clamp_min(torch.finfo(size.dtype).tiny)
    for _ in range(_ROUNDS):
        clipped = scale[:, None] * size >= bound  # (B, D)
        left = (radius**2 - torch.where(clipped, bound, 0.0).square().sum(1)).clamp_min(0)
        free = torch.where(clipped, 0.0, size).square().sum(1)
        risen = torch.where(free > 0, (left / free.clamp_min(torch.finfo(size.dtype).tiny)).sqrt(), scale)
        if not bool((risen > scale * (1 + 1e-6)).any()):
            break
        scale = torch.maximum(scale, risen)
    return torch.minimum(scale[:, None] * size, bound)


def _shrink_l1(size: Tensor, bound: Tensor, radius: Tensor) -> Tensor:
    """``min(max(size - t, 0), bound)`` of sum ``radius``: the sum is piecewise linear in t with 2 D kinks."""
    # At size_i - bound_i an entry leaves its bound and falls at slope -1; at size_i it has reached 0.
    leaves = (size - bound).clamp_min(0)
    kinks, order = torch.cat([leaves, size], 1).sort(dim=1)  # (B, 2 D)
    change = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1).gather(1, order)
    slope = change.cumsum(1)  # of the sum, right of each kink
    start = torch.minimum(size, bound).sum(1, keepdim=True)  # at t = 0
    fall = (slope[:, :-1] * kinks.diff(dim=1)).cumsum(1)
    total = torch.cat([start, start + fall], 1)  # at each kink; nothing changes before the first one
    # The last kink at which the sum is still at least the radius.
    here = ((total >= radius[:, None]).sum(1, keepdim=True) - 1).clamp_min(0)
    falling = slope.gather(1, here).clamp_max(-1)
    threshold = kinks.gather(1, here) + (total.gather(1, here) - radius[:, None]) / -falling
    for _ in range(2):  # Newton's step takes out what the long cumulative sums rounded away
        here = torch.minimum((size - threshold).clamp_min(0), bound)
        moving = ((here > 0) & (here < bound)).sum(1, keepdim=True)
        excess = here.sum(1, keepdim=True) - radius[:, None]
        threshold = torch.where(moving > 0, threshold + excess / moving.clamp_min(1), threshold)
    return torch.minimum((size - threshold).clamp_min(0), bound)


def steepest(gradient: Tensor, norm: str, count: int | Tensor = 1) -> Tensor:
    """The step of norm 1 that raises a linear loss most: (B, ...) -> (B, ...).

    Linf: the sign. L2: the direction. L1: the sign at the ``count`` largest entries, shared evenly (exactly steepest at
    count 1; more entries move faster inside the box: Tramer & Boneh 2019, section 4.1). A gradient of 0 gives no step.

    Args:
        gradient: of the loss to raise.
        norm: Linf, L2 or L1.
        count: for L1, how many entries take part: a number, or (B,).
    """
    check_norm(norm, tuple(_DUAL), "a steepest step")
    if norm == "Linf":
        return gradient.sign()
    if norm == "L2":
        # Scaled first, so that the squares of tiny gradients do not vanish.
        largest = flat(gradient).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_sample(largest, gradient)
        return scaled / per_sample(norm_of(scaled, "L2").clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
    size = flat(gradient).abs()  # (B, D)
    counts = torch.as_tensor(count, device=size.device).reshape(-1).expand(len(size)).clamp(1, size.shape[1]).long()
    if int(counts.max()) == 1:
        step = torch.zeros_like(size).scatter_(1, size.argmax(1, keepdim=True), 1.0) * (size > 0)
    else:
        kth = size.sort(dim=1, descending=True)[0].gather(1, counts[:, None] - 1)  # (B, 1)
        step = ((size >= kth) & (size > 0)).to(size.dtype)
        step = step / step.sum(1, keepdim=True).clamp_min(1)
    return step.reshape(gradient.shape) * gradient.sign()
