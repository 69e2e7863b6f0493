"""Which experts a model chooses on tokens that it generates.

    python bench/expert_trace.py MODEL.hga [--tokens 256] [--mem SIZE] [--save TRACE.npz]

Prints which share of a token's experts the token before also had, which share the hottest take, and
which share the next layer's router foretells from this layer's state.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hga.models.plan import MoePlan
from hga.runtime import Engine, Options, Session
from hga.runtime.options import parse_size


def generate(session: Session, prompt: list[int], n_tokens: int, seed: int = 0) -> list[int]:
    """The prompt and n_tokens sampled after it at temperature 1."""
    random, tokens = np.random.default_rng(seed), list(prompt)
    session.feed(prompt)
    for _ in range(n_tokens):
        noise = random.gumbel(size=len(session.logits))
        tokens.append(int(np.argmax(session.logits + noise)))
        session.step(tokens[-1])
    return tokens


def _values(engine: Engine, address: int, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    view = engine.forward_pass._buffers.view(address, shape)
    return view.view(kind).copy()


def trace(engine: Engine, tokens: list[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Experts chosen for a text, int32 [layers, T, used], and those that every next layer's router
    would choose for this layer's state, [layers - 1, T, used]. Every layer has experts."""
    plan, forward, model = engine.plan, engine.forward_pass, engine.model
    mlp = plan.layers[0].mlp
    assert isinstance(mlp, MoePlan)
    n, used = len(plan.layers), mlp.n_experts_used
    routers = [model.tensor(f"layers.{i}.router").values() for i in range(n)]
    norms = [model.tensor(f"layers.{i}.mlp_norm").vector() for i in range(n)]
    chosen = np.zeros((n, len(tokens), used), np.int32)
    foretold = np.zeros((n - 1, len(tokens), used), np.int32)
    call, step = forward._call[0], forward.block_tokens
    with engine.session() as session:
        session._arena.reserve(len(tokens))
        for a in range(0, len(tokens), step):
            part = np.asarray(tokens[a : a + step], np.int64)
            residual = np.empty((len(part), plan.hidden), np.float32)
            forward.embed(session._layers, part, residual)
            for i in range(n):
                forward.run_layer(session._layers, i, residual, a)
                rows = (len(part), used)
                chosen[i, a : a + step] = _values(engine, int(call["chosen"]), rows, np.int32)
                if i + 1 < n:
                    shape = (len(part), plan.hidden)
                    state = _values(engine, int(call["normed"]["values"]), shape, np.float32)
                    logits = state / norms[i] * norms[i + 1] @ routers[i + 1].T
                    best = np.argpartition(-logits, used - 1, 1)[:, :used]
                    foretold[i, a : a + step] = best
    return chosen, foretold


def masks(experts: NDArray[np.int32], n_experts: int) -> NDArray[np.bool_]:
    """bool [..., n_experts] of experts int32 [..., used]."""
    out = np.zeros((*experts.shape[:-1], n_experts), bool)
    np.put_along_axis(out, experts.astype(np.int64), True, -1)
    return out


def statistics(
    chosen: NDArray[np.int32], foretold: NDArray[np.int32], n_experts: int
) -> dict[str, float]:
    """Shares: repeated from the token before, of the hottest `used`, foretold by the last layer."""
    used, now = chosen.shape[-1], masks(chosen, n_experts)
    hot = np.sort(now.sum(1), -1)[:, -used:].sum() / now.sum()
    return {
        "tokens": chosen.shape[1],
        "repeated": float((now[:, 1:] & now[:, :-1]).sum() / now[:, 1:].sum()),
        "hottest": float(hot),
        "foretold": float((now[1:] & masks(foretold, n_experts)).sum() / now[1:].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="which experts a model chooses")
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--mem", type=parse_size)
    parser.add_argument("--save", type=Path)
    values = parser.parse_args()
    options = Options(ctx=values.tokens + 64, mem=values.mem)
    with Engine.open(values.model, options) as engine:
        with engine.session() as session:
            tokens = generate(session, [100], values.tokens)
        mlp = engine.plan.layers[0].mlp
        assert isinstance(mlp, MoePlan)
        chosen, foretold = trace(engine, tokens)
    if values.save:
        np.savez(values.save, tokens=tokens, chosen=chosen, foretold=foretold)
    print(json.dumps(statistics(chosen, foretold, mlp.n_experts)))


if __name__ == "__main__":
    main()
