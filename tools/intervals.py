"""Confidence intervals of a mean: over segments, or over batches of one autocorrelated series.

Losses of neighbouring tokens are correlated, so tokens are never taken as independent. Batch
means: Law and Kelton, Simulation Modeling and Analysis, section 9.5.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# 0.975 quantiles of Student's t for 1, 2, … degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# Few and long batches: 64 tokens each in the default tail of 1,024, beyond which losses of prose
# are hardly correlated; Student's t pays for the small number.
_BATCHES = 16


def student_t(degrees: int) -> float:
    """The 0.975 quantile of Student's t (within 0.001 beyond 30 degrees of freedom)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return 1.959964 + 2.3723 / degrees + 2.82 / degrees**2


def over_segments(means: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean of independent segments' means (two or more)."""
    n = len(means)
    return student_t(n - 1) * float(np.std(means, ddof=1)) / math.sqrt(n)


def over_batches(series: npt.NDArray[np.float64]) -> float:
    """Half width of the 95 % interval of the mean of one series [n] of correlated values, n from 2,
    by means of up to 16 batches of equal length."""
    n = min(_BATCHES, len(series) // 2) if len(series) > 3 else len(series)
    length = len(series) // n
    return over_segments([float(batch.mean()) for batch in np.split(series[-n * length :], n)])
