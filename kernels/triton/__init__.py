"""CUDA kernels in Triton, and the decode step and prefill that call them; torch holds the buffers.

Nothing here imports Numba, and nothing outside is imported at start that needs torch or Triton.
"""
