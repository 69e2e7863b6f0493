"""The numpy oracle of each operation: float32 (sums in float64 where it matters), no cleverness."""
