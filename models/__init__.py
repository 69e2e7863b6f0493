"""Checkpoint configurations -> ModelPlan; pure data, no I/O, no arrays.

The runtime imports `plan` alone; `registry` knows the architectures, one file and one line each.
"""
