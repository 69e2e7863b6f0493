"""A long context without reading one: keys and values at random, for benches of decoding."""

import numpy as np

from hga.kvstore.arena import RamArena
from hga.kvstore.geometry import BLOCK_TOKENS, n_blocks
from hga.runtime import Session

_NOISE_BYTES = 1 << 21
# Octaves by which groups' keys differ in length: so that of a token's groups (2,048 tokens of 32K)
# two thirds served the token before too, as in a trained model (needle-moe-64k, 3.1 % of 16K).
SPREAD = 0.75


def fill(session: Session, n_tokens: int) -> None:
    """Let an empty session hold n_tokens whose keys, values and sketches are random, in memory or
    on disk as its engine keeps them. A token's cost does not depend on what they say, but for how
    many `auto` reads: attention over them is diffuse."""
    arena, rng = session._arena, np.random.default_rng(0)
    noise = rng.standard_normal(_NOISE_BYTES // 2).astype(np.float16).view(np.uint8)

    def some(size: int) -> np.ndarray:
        return np.resize(np.roll(noise, 2 * int(rng.integers(_NOISE_BYTES // 2))), size)

    for i, sketches in enumerate(arena.sketches):
        if sketches is not None:
            sketches[:] = rng.integers(0, 256, sketches.shape, dtype=np.uint8)
            # Scales, at the end of a block: sixteen steps an octave, alike within a group.
            size = arena.geometry.sketch_head_bytes(i, BLOCK_TOKENS)
            blocks = sketches.reshape(len(sketches), -1, size)
            spread = 16 * SPREAD * rng.standard_normal((*blocks.shape[:2], 1, 16))
            scales = blocks[:, :, -BLOCK_TOKENS:].reshape(*blocks.shape[:2], 8, 16)
            blocks[:, :, -BLOCK_TOKENS:] = np.broadcast_to(
                np.clip(128 + spread, 16, 240).astype(np.uint8), scales.shape
            ).reshape(*blocks.shape[:2], BLOCK_TOKENS)
    if isinstance(arena, RamArena):
        arena.reserve(n_tokens + 2 * BLOCK_TOKENS)
        for slab in arena._slabs:
            slab[:] = some(slab.nbytes)
    else:
        for block in range(n_blocks(n_tokens)):
            arena.reserve((block + 1) * BLOCK_TOKENS)
            for layer in range(len(arena.cells)):
                pages = arena.recent(layer, block)
                pages[:] = some(pages.nbytes)
    session.tokens = [1] * n_tokens
