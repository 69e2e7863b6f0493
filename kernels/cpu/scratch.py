"""Private scratch of attention: sizes that kernels and the runtime share (no kernel is imported).

A tile is some query tokens with all query heads of one KV head; R is its rows rounded up to 4:
    wide      keys   float32 [8 blocks of 32 tokens][2][D/2][32 tokens], even dimensions first
              values float32 [D/32][256 tokens][32 dimensions]
    queries   float32 [R], QUERY_ROW bytes apart, even dimensions first
    scores    float32 [R], SCORE_ROW bytes apart: 256 weights, then maximum and sum
    totals    float32 [R][16 + D], partial softmax of the spans so far
    partials  float32 [MAX_BLOCK_ROWS][16 + D], of one span
A single token takes scores of one span and its expanded queries, float32 [rows][8 D].
"""

SPAN_TOKENS = 256
# Floats of a partial softmax besides its D values: maximum and sum, padded to a vector.
PARTIAL_HEAD = 16
MAX_HEAD_DIM = 512

# Rows of a tile: enough that widening a span costs little beside its multiplications, few enough
# that queries, scores and totals stay in the second-level cache beside a widened span.
TILE_ROWS = 96
# Rows that one register tile holds at most.
MAX_BLOCK_ROWS = 12
# The widest row and a cache line, so that rows fall into different cache sets.
QUERY_ROW = 4 * MAX_HEAD_DIM + 64
SCORE_ROW = 4 * SPAN_TOKENS + 64


def partial_bytes(head_dim: int) -> int:
    """Bytes of a partial softmax."""
    return 4 * (PARTIAL_HEAD + head_dim)


def tile_tokens(rows: int) -> int:
    """Query tokens of a tile, where `rows` query heads share a KV head."""
    return max(1, TILE_ROWS // rows)


def attention_bytes(rows: int, head_dim: int) -> int:
    """Private scratch of a thread, where `rows` query heads share a KV head."""
    tile = (tile_tokens(rows) * rows + 3) & ~3
    tiles = 4 * SPAN_TOKENS * head_dim + tile * (QUERY_ROW + SCORE_ROW + partial_bytes(head_dim))
    token = ((rows + 3) & ~3) * (SCORE_ROW + 32 * head_dim)
    return max(tiles + MAX_BLOCK_ROWS * partial_bytes(head_dim), token)
