"""Parameter blocks of the forward kernel: structured dtypes filled by the runtime.

Every field is 8 bytes: a count, a code, or the int64 address of a buffer. A block and everything
it points to must stay alive while the kernel runs. T is the number of tokens of the call.
"""

from typing import Any

import numpy as np

_I, _F = np.int64, np.float64


def _fields(kind: type, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# A tiled matrix: address of the tiles, format code, bytes per row group, rows, columns.
MATRIX = np.dtype(_fields(_I, "tiles code step rows cols"))

# Activation rows: float32 [T, K], their int8 codes, scales and sums (kernels/cpu/tiles.py).
ROWS = np.dtype(_fields(_I, "values codes scales sums"))

LAYER = np.dtype(
    [(name, MATRIX) for name in ("q", "k", "v", "o", "gate", "up", "down", "router")]
    # float32 vectors, 0 where the layer has none
    + _fields(_I, "attn_norm mlp_norm post_attn_norm post_mlp_norm q_norm k_norm")
    + _fields(_I, "q_bias k_bias v_bias o_bias")
    # head_dim is rounded up to 32 (kernels/cpu/layer_attention.py), true_dim the model's own
    + _fields(_I, "n_heads n_kv_heads head_dim true_dim window rope_index activation")
    # experts: int64 [n_experts][3] tile addresses (gate, up, down); n_experts 0: dense
    + _fields(_I, "experts n_experts n_used norm_topk")
    # cells: int64 address by cell of 16 tokens, cell_row bytes apart per KV head; sketches: of the
    # keys, head_bytes apart per KV head (0: this layer is never routed); summaries: of chunks
    # (kernels/cpu/published.py), 0: none; recall: float32 [H], 0: not measured; scales: of int8
    # keys and values, scale_row bytes apart per KV head, 0: they are float16
    + _fields(_I, "cells cell_row sketches head_bytes summaries summary_bytes recall")
    + _fields(_I, "scales scale_row")
    # RESIDENCY of a layer whose cells lie on disk, 0: every cell is in memory
    + _fields(_I, "residency")
    # EXPERTS of a layer whose experts lie on disk, 0: all are in memory; the number of the layer;
    # where gate, up and down begin in a blob, and its bytes without what fills its last page
    + _fields(_I, "cache layer_number gate_at up_at down_at blob_bytes")
    + _fields(_F, "scale")
)

# Cells on disk and their frames (kernels/cpu/residency.py). frames: [G][n_frames][cell_bytes];
# stamps, owners, tickets: int64 [G][n_frames]: the last token that read a frame, its cell (-1:
# none), its read; hands, counters: int64 [G] and [G][8]; overflow…: [G][n_overflow], and int64
# [G] how many are taken; problem: what a read failed by; places: int64 [blocks][3]: file, offset
# of the layer's pages, seed of their first cell; sums: uint32 [blocks][8 G]
RESIDENCY = np.dtype(
    _fields(_I, "n_heads cell_bytes n_frames frames stamps owners tickets hands counters")
    + _fields(_I, "n_overflow overflow overflow_tickets overflow_owners overflow_counts")
    + _fields(_I, "problem places sums")
)

# The cache of experts, one for all layers (kernels/cpu/expert_cache.py). slots: [n_slots] of
# slot_bytes, stamps, owners, tickets: int64 [n_slots]: the last wave that used a slot, its expert
# (layer_number * n_experts + expert, -1: none), its read. By expert: table int64: slot + 1 or 0;
# scores float64; places int64 [2]: offset in the file, XXH3. counters: int64 [L][8].
# addresses: int64 [n_experts][3] and landings: int64 [n_experts], of the layer at hand: parts of
# the blobs and addresses of tickets. ends: int64 [2]. time: of the call, in tokens times `rate`;
# weight: what a token of the call counts.
EXPERTS = np.dtype(
    _fields(_I, "n_slots slots slot_bytes stamps owners tickets table scores places file n_experts")
    + _fields(_I, "counters addresses landings ends wave in_use kept last_layer problem stall_ns")
    # guesses about the next layer: ranks asked for (0: none), int64 [n_experts] slots that were,
    # experts expected; scratch: a row of activations as of the next layer, logits, choice
    + _fields(_I, "hints hinted n_hinted expected n_expected expected_layer")
    + [("guess", ROWS)]
    + _fields(_I, "guess_logits guess_weights")
    + _fields(_F, "time weight")
)

CALL = np.dtype(
    [(name, MATRIX) for name in ("embed", "head")]
    + [(name, ROWS) for name in ("normed", "mixed", "hidden_act")]
    # layers first_layer..last_layer run; tokens: int64 [T] at positions position..position + T
    + _fields(_I, "layers first_layer last_layer hidden final_norm tokens n_tokens position")
    # the last n_logits tokens go through the head into logits float32 [n_logits, V]
    + _fields(_I, "n_logits logits embed_first")
    # two int64 counters, 0 at the start of a call
    + _fields(_I, "barrier next_item")
    # cells on disk: the reader's queue, what a read failed by (0 at the start of a call), and a
    # number that grows from token to token
    + _fields(_I, "io_queue io_problem now")
    # cos, sin: float32 [n_ropes][T][half], rope_bytes per RoPE, half_bytes per token
    + _fields(_I, "cos sin rope_bytes half_bytes")
    # routing of a single token (kernels/cpu/layer_route.py): rule (0: none), groups always read at
    # the start and at the end, fewest and most groups chosen between them
    + _fields(_I, "rule n_sinks n_window n_least n_most")
    # bits per dimension of key sketches, 1 or 2
    + _fields(_I, "sketch_bits")
    # published rule: chunks opened, chunks summed up before this call; cos and sin of turns by
    # -63..63 positions: float32 [n_ropes][127][half], turn_bytes per RoPE
    + _fields(_I, "n_chunks summed_chunks turn_cos turn_sin turn_bytes")
    # routing of a prompt (kernels/cpu/block_route.py), unit_share 0: none: groups always read at
    # the start, tokens before a unit, fewest groups chosen, tokens up to which everything is
    # read, and the offset of its private scratch
    + _fields(_I, "unit_sinks unit_window unit_least unit_exact unit_private")
    # counted by a single token, summed over layers: groups and bytes of keys and values read (a
    # group of one KV head is one), layers that routed
    + _fields(_I, "n_read_groups n_read_bytes n_routed")
    # float32 buffers: residual [T, hidden], projections, router logits [T, E16], up [T, F]
    # raw_q, raw_k, raw_v: heads as the model has them, where they are not of whole 32 dimensions
    + _fields(_I, "residual q k v raw_q raw_k raw_v proj up router_logits")
    # expert choice: int32 [T, used], float32 [T, used], int32 [E + 1] starts, int32 [T * used]
    + _fields(_I, "chosen weights starts order")
    # routing scratch: sketched queries, float32 rows of score_bytes, int32 rows of group_bytes,
    # int64 counts
    + _fields(_I, "queries query_bytes scores score_bytes groups group_bytes counts partials")
    # private scratch: address of thread 0's, bytes per thread, offset of a list of experts
    + _fields(_I, "private private_bytes list_private")
    # least_share: of the mass, that a group must have where the number of groups is open;
    # n_attended: tokens attended, summed over layers, mean over heads; unit_share: of the past,
    # chosen for a unit of a prompt
    + _fields(_F, "eps embed_scale least_share n_attended unit_share")
)
