"""How Square asks its queries: several of a sample in one pass, and none whose answer is known.

While nothing is accepted, all proposals start from the same point, so several queries of a sample are asked in one pass.
The first that is better is taken and those after it are proposed anew: the path is the same as one by one. The longer
nothing was accepted the more are asked at once, so that few are in vain, and never fewer than fill a batch. A proposal
that changes nothing, or was refused before and nothing has changed since, counts as a query but is not sent through the
classifier: the result is the same for any deterministic one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.attacks.batching import answer_batch
from sfumato.attacks.context import AttackContext, Rows
from sfumato.attacks.losses import margin, reached
from sfumato.core.streams import Streams

MOST_AT_ONCE = 64  # queries of one sample in a pass
MOST_REMEMBERED = 2**16  # distinct proposals of one window size, above which refusals are not remembered
_ENTRIES = 2**24  # of all proposals in a pass
_PLACES = 2**21  # pixels of all windows that are looked at together


@dataclass
class Query(Rows):
    """Queries that are to be asked, one row each."""

    row: Tensor  # (m,) of which sample
    number: Tensor  # (m,) which of its queries
    window: Tensor  # (m, 2) height and width
    numbers: Tensor  # (m, 5 + C) random bits: two corners, one more, and a sign a channel


@dataclass
class Draft(Rows):
    """What proposals change, where that is cheaper to know than the proposals are to make."""

    places: Tensor  # (m, A) pixels
    values: Tensor  # (m, A) what they become


class Proposals(Protocol):
    """Where a search begins, and what a query asks; ``best`` is the best point of each sample so far."""

    x: Tensor
    """(n, C, H, W) the images."""
    kinds: int
    """Of proposals at one size of the window; 0 where their refusals are not to be remembered."""

    def keep(self, rows: Tensor) -> None: ...
    def first(self, streams: Streams) -> Tensor: ...
    def name(self, query: Query) -> Tensor: ...
    def area(self, query: Query) -> int: ...
    def draft(self, query: Query) -> Draft: ...
    def changes(self, best: Tensor, query: Query, draft: Draft) -> Tensor: ...
    def proposed(self, best: Tensor, query: Query, draft: Draft) -> Tensor: ...


@dataclass
class _State(Rows):
    """The samples that are not fooled yet, every one at a query of its own."""

    rows: Tensor  # (n,) where they belong in the result
    y: Tensor  # (n,)
    best: Tensor  # (n, C, H, W)
    height: Tensor  # (n,) the margin at best
    next: Tensor  # (n,) the number of the next query
    accepted: Tensor  # (n,) that of the query after the last improvement
    refused: Tensor  # (n, kinds) bool: proposals that did not improve on best


def search(context: AttackContext, proposals: Proposals, sides: Sequence[tuple[int, int]], streams: Streams) -> Tensor:
    """The first adversarial point of each sample, or its best after all queries.

    Args:
        context: the samples (B, ...), none of them fooled.
        proposals: for the same samples, as images.
        sides: height and width of the windows of queries 1, 2, ...; query 0 is the first guess.
        streams: the samples' random numbers.

    Returns:
        (B, C, H, W).
    """
    return _Search(context, proposals, sides, streams).run()


class _Search:
    def __init__(
        self, context: AttackContext, proposals: Proposals, sides: Sequence[tuple[int, int]], streams: Streams
    ) -> None:
        self.context, self.proposals, self.streams = context[:0], proposals, streams
        self.result = proposals.x.clone()
        device, count = self.result.device, len(self.result)
        self.windows = torch.tensor([(0, 0), *sides], device=device)  # (queries, 2)
        changes = [i for i in range(1, len(sides) + 1) if i == 1 or sides[i - 1] != sides[i - 2]]
        self.ends = torch.tensor(
            [*changes, len(sides) + 1], device=device
        )  # queries at which the windows' size changes
        remembered = proposals.kinds if proposals.kinds <= MOST_REMEMBERED else 0
        best = proposals.first(streams)
        height, hit = self._ask(best, context.y)
        self.state = _State(
            rows=torch.arange(count, device=device),
            y=context.y,
            best=best,
            height=height,
            next=torch.ones(count, dtype=torch.int64, device=device),
            accepted=torch.zeros(count, dtype=torch.int64, device=device),
            refused=torch.zeros(count, remembered, dtype=torch.bool, device=device),
        )
        self._leave(hit)

    def run(self) -> Tensor:
        """All queries."""
        queries = len(self.windows)
        while len(self.state.rows):
            state, images = self.state, self.proposals.x
            place = torch.searchsorted(self.ends, state.next, right=True).clamp_max(len(self.ends) - 1)
            upper = self.ends[place]  # (n,) the query at which each sample's windows change
            most = max(1, min(MOST_AT_ONCE, _ENTRIES // images.numel()))
            # Where the classifier is small, as many cost no more than one.
            fit = self._batch() // len(state.rows)
            count = ((state.next - state.accepted) // 6).clamp(max(1, min(most, fit)), most)
            fooled = self._advance(torch.minimum(count, upper - state.next))
            if state.refused.shape[1]:
                state.refused[state.next == upper] = False  # the next window has another size
            self._leave(fooled | (state.next >= queries))
        return self.result

    def _advance(self, count: Tensor) -> Tensor:
        """Ask the next ``count`` (n,) queries of each sample, up to its first improvement; (n,) who is fooled."""
        state, device = self.state, count.device
        row = torch.arange(len(count), device=device).repeat_interleave(count)  # (m,) the sample of each proposal
        order = torch.arange(len(row), device=device)
        number = state.next[row] + order - (count.cumsum(0) - count)[row]  # (m,)
        bits = self.streams.at(row, number).bits((5 + self.proposals.x.shape[1],))
        query = Query(row, number, self.windows[number], bits)
        name = self.proposals.name(query)
        height, hit = self._answered(query, name)
        better = hit | (height > state.height[row])
        # The first improvement of each sample: proposals of one row are in the order of their queries.
        first = torch.full_like(state.next, len(row)).scatter_reduce(0, row[better], order[better], "amin")  # (n,)
        taken = first < len(row)  # (n,)
        chosen = first[taken]
        state.best[taken] = self.proposals.proposed(state.best, query[chosen], self.proposals.draft(query[chosen]))
        state.height[taken] = height[chosen]
        state.next += count
        state.next[taken] = number[chosen] + 1
        state.accepted[taken] = state.next[taken]
        if state.refused.shape[1]:
            state.refused[row, name] = True
            state.refused[taken] = False
        fooled = torch.zeros_like(taken)
        fooled[taken] = hit[chosen]
        return fooled

    def _answered(self, query: Query, name: Tensor) -> tuple[Tensor, Tensor]:
        """The margins at the proposals, and whether they fool, (m,) and (m,); -inf and False where these are no better."""
        state, proposals = self.state, self.proposals
        height = state.height.new_full((len(name),), -torch.inf)
        hit = torch.zeros_like(query.row, dtype=torch.bool)
        unknown = query.row.new_ones(len(name), dtype=torch.bool)
        if state.refused.shape[1]:
            unknown = ~state.refused[query.row, name]
        batch = self._batch()
        looked_at = max(batch, _PLACES // (proposals.x.shape[1] * proposals.area(query)))
        for part in unknown.nonzero().flatten().split(looked_at):
            draft = proposals.draft(query[part])
            changes = proposals.changes(state.best, query[part], draft)
            part, draft = part[changes], draft[changes]
            # Proposals are made for one pass at a time and then forgotten, so that they stay in a CPU's cache.
            for few in torch.arange(len(part), device=part.device).tensor_split(max(1, -(-len(part) // batch))):
                which = part[few]
                proposal = proposals.proposed(state.best, query[which], draft[few])
                height[which], hit[which] = self._ask(proposal, state.y[query.row[which]])
        return height, hit

    def _ask(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The margins that the search raises, and whether the samples are fooled: (n,) and (n,)."""
        if len(x) == 0:
            return x.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=x.device)
        logits = self.context.answers(x.reshape(-1, *self.context.x.shape[1:]))
        height = margin(logits, y) * (-1 if self.context.targeted else 1)
        return height.to(x.dtype), reached(logits, y, self.context.targeted)

    def _batch(self) -> int:
        return answer_batch(self.context.classifier, self.proposals.x, self.context.batch_size)

    def _leave(self, done: Tensor) -> None:
        """These samples go, with their best points."""
        if bool(done.any()):
            self.result[self.state.rows[done]] = self.state.best[done]
            self.state, self.streams = self.state[~done], self.streams.keep(~done)
            self.proposals.keep(~done)
