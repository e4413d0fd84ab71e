"""The decoder's model of a tensor, run over values that are known: to encode them, to count the
bits that this would take, and to collect what is known before each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.artifact.npk.decode import Frequencies, Plan, Tensor

Sink = Callable[[np.ndarray, np.ndarray], None]  # symbols [n], frequencies


class Known(Tensor):
    """``true``: int8 [K, P, C]. ``sink`` gets the symbols of each group with their frequencies."""

    def __init__(self, plan: Plan, true: np.ndarray, sink: Sink) -> None:
        super().__init__(plan, self._of_group)
        self.true, self.sink = true, sink
        self.place = np.zeros(256, np.int64)
        self.place[np.array(plan.alphabet, np.int64) + 128] = np.arange(len(plan.alphabet))

    def _slice(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        true = self.true[self.start : self.start + len(self.near), position, self.at].ravel()
        other = true != 0
        if self.plan.residual:
            self.symbols_of = [(true - self.rounded()).astype(np.int64) + 128]
        elif self.plan.zeros:
            self.symbols_of = [other.astype(np.int64), self._places(true[other])]
        else:
            self.symbols_of = [self._places(true)]
        return super()._slice(position)

    def _places(self, values: np.ndarray) -> np.ndarray:
        return self.place[values.astype(np.int64) + 128]

    def _coded(self, frequencies: Frequencies, classes: np.ndarray) -> np.ndarray:
        self.wanted = self.symbols_of.pop(0)
        return super()._coded(frequencies, classes)

    def _of_group(self, at: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        symbols = self.wanted[at]
        self.sink(symbols, frequencies)
        return symbols


def bits(plan: Plan, true: np.ndarray) -> float:
    """What coding the values takes."""
    total = 0.0

    def count(symbols: np.ndarray, frequencies: np.ndarray) -> None:
        nonlocal total
        seen = np.bincount(symbols, minlength=len(frequencies))
        total += float(seen @ (np.log2(frequencies.sum()) - np.log2(frequencies)))

    Known(plan, true, count).run()
    return total


class Features(Known):
    """Collects what is known before each value, and the magnitude of its difference."""

    def __init__(self, plan: Plan, true: np.ndarray) -> None:
        # Two classes, and a weight of columns: or else nothing is kept of them.
        columns = int(8 <= plan.filters <= 1 << 20)
        watching = replace(plan, classes=2, coarse=1, weights=(1, 1, columns, 1))
        super().__init__(watching, true, lambda symbols, frequencies: None)
        self.rows: list[list[np.ndarray]] = []

    def _classes(self, position: int) -> np.ndarray:
        shape = self.near.shape
        known = [np.broadcast_to(part, shape).ravel() for part in self.features(position)]
        self.rows.append([np.full(self.near.size, position), *known])
        return np.zeros(self.near.size, np.uint8)

    def _slice(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        values, differences = super()._slice(position)
        self.rows[-1].append(np.abs(differences.astype(np.int64)))
        return values, differences

    def table(self) -> np.ndarray:
        """float64 [6, n]: position, the four features, magnitude."""
        self.run()
        return np.concatenate([np.stack(row) for row in self.rows], 1).astype(np.float64)
