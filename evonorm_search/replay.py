"""Draw a search's candidates again, from its seed and the recorded order of completion.

With several workers the order in which candidates end is chance. It decides which population a
candidate is drawn from, and nothing else does, so from that order a search is a function of its
seed. The trainings are not done again.
"""

from __future__ import annotations

from collections import deque

from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError

from .config import get_cfg
from .evolution import Member
from .search import Draws, members
from .space import Graph, formula
from .store import Candidate, Store


def replay(store: Store) -> str:
    """Draw all stored candidates again; returns a line that says what was compared.

    Raises:
        UserError: a candidate is not what its draw gives. A changed score is noticed where a
            tournament has another winner with it.
    """
    again = _Replay(store)
    for candidate, _ in sorted(again.rows, key=lambda row: row[0].key):
        if not again.taken <= candidate.drawn_after <= len(again.rows):
            what = f"was drawn when {candidate.drawn_after} had ended, unlike the others"
            raise again.error(candidate, what)
        again.take(candidate.drawn_after)
        again.compare(candidate)
    again.take(len(again.rows))
    return (
        f"{len(again.rows)} candidates drawn again from seed {again.draws.seed} and the order of "
        f"completion: the same graphs, parents and population of {len(again.population)}"
    )


class _Replay:
    def __init__(self, store: Store) -> None:
        self.path, text = store.path, store.get("config")
        if text is None:
            raise UserError(f"{self.path} has no settings to draw with")
        self.draws = Draws(merge_saved(get_cfg(), text, str(self.path)))
        self.rows = list(store.candidates())
        self.results = {candidate.key: result for candidate, result in self.rows}
        self.population: deque[Member] = deque(maxlen=self.draws.settings.window)
        self.drawn: dict[int, Graph] = {}
        self.taken = 0  # results

    def take(self, until: int) -> None:
        """Take the first `until` results into the population, with the graphs drawn here."""
        for candidate, result in self.rows[self.taken : until]:
            if candidate.key not in self.drawn:
                raise self.error(candidate, "ended before it was drawn")
            drawn = candidate._replace(graph=self.drawn[candidate.key])
            self.population.extend(members(drawn, result))
            self.taken += 1

    def compare(self, candidate: Candidate) -> None:
        """Draw a candidate from the population as it is now."""
        graph, parent = self.draws(self.population, candidate.key)
        self.drawn[candidate.key] = graph
        if graph != candidate.graph:
            raise self.error(candidate, f"is {candidate.formula}, but its draw is {formula(graph)}")
        if candidate.formula != str(formula(graph)):
            raise self.error(candidate, f"has the formula {candidate.formula}, but another graph")
        if candidate.parent != (parent.key if parent else None):
            raise self.error(candidate, f"has the parent {candidate.parent}, but its draw another")
        same = candidate.same_as
        if same is not None and self.results[candidate.key] != self.results.get(same):
            raise self.error(candidate, f"has another result than candidate {same}, its equal")

    def error(self, candidate: Candidate, what: str) -> UserError:
        return UserError(
            f"{self.path}: candidate {candidate.key} {what}; the file was changed, or is of a "
            "version that draws otherwise"
        )
