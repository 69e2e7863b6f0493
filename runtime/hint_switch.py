"""HintSwitch: read experts ahead only while that is measured to help.

Decoded tokens are timed in phases with and without hints, in turns; the faster way is kept for a
while, then both are measured again. The first token of a phase is not counted: its experts were
asked for by the phase before. Hints change no token, only when its experts are read.
"""

from statistics import fmean

# Tokens of a phase, phases of each way in a trial, tokens until the next trial.
_PHASE = 9
_TURNS = 3
_HOLD = 512
# Hints cost reads of experts that are not used: they have to gain more than noise does.
_LEAST_GAIN = 0.01


class HintSwitch:
    """Ask `on` before a token, tell `note` its seconds."""

    def __init__(self) -> None:
        self.on = True
        self.trials = 0
        self._kept = True
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._token = 0

    def note(self, seconds: float) -> None:
        """A token took so long; `on` may change for the next."""
        self._token += 1
        trial = 2 * _PHASE * _TURNS
        if self._token <= trial:
            if self._token % _PHASE != 1:
                self._seconds[self.on].append(seconds)
            self.on = self._token // _PHASE % 2 == 0
            if self._token == trial:
                with_hints, without = (fmean(self._seconds[way]) for way in (True, False))
                self._kept = with_hints < (1 - _LEAST_GAIN) * without
                self._seconds = {True: [], False: []}
                self.trials += 1
                self.on = self._kept
        elif self._token == trial + _HOLD:
            self._token, self.on = 0, True
