"""HintSwitch: read experts ahead only while that is measured to help.

Decoded tokens are timed in phases with and without hints, in turns; the faster way is kept for a
while, then both are measured again. The first token of a phase is not counted: its experts were
asked for by the phase before. A token takes longer the more experts it misses, and texts have runs
of tokens that miss many, so times are compared at equal misses. Hints change no token, only when
its experts are read.
"""

import numpy as np
from numpy.typing import NDArray

# Tokens of a phase, phases of each way in a trial, tokens until the next trial.
_PHASE = 9
_TURNS = 3
_HOLD = 512
# Hints cost reads of experts that are not used: they have to gain more than noise does.
_LEAST_GAIN = 0.01


class HintSwitch:
    """Ask `on` before a token, tell `note` its seconds and misses once the cache is full."""

    def __init__(self) -> None:
        self.on = True
        self.trials = 0
        self._kept = True
        self._noted: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
        self._token = 0

    def note(self, seconds: float, misses: int) -> None:
        """A token took so long and read so many experts; `on` may change for the next."""
        self._token += 1
        trial = 2 * _PHASE * _TURNS
        if self._token <= trial:
            if self._token % _PHASE != 1:
                self._noted[self.on].append((seconds, misses))
            self.on = self._token // _PHASE % 2 == 0
            if self._token == trial:
                with_hints, without = (np.array(self._noted[way]) for way in (True, False))
                self._kept = gain(with_hints, without) > _LEAST_GAIN
                self._noted = {True: [], False: []}
                self.trials += 1
                self.on = self._kept
        elif self._token == trial + _HOLD:
            self._token, self.on = 0, True


def gain(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Share of their mean seconds that ours take less, at equal misses.

    Both [T, 2], seconds and misses of tokens; a miss is taken to cost the same in both.
    """
    centred = np.concatenate([ours - ours.mean(0), theirs - theirs.mean(0)])
    spread = float(centred[:, 1] @ centred[:, 1])
    slope = float(centred[:, 0] @ centred[:, 1]) / spread if spread else 0.0
    seconds, misses = theirs.mean(0) - ours.mean(0)
    return float((seconds - slope * misses) / theirs[:, 0].mean())
