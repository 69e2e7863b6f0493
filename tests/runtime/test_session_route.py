"""What a routed token reads: the groups that the reference would choose, and only those."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference import attention, sketch
from hga.kernels.reference.model import Reference
from hga.kvstore.route import Route
from hga.runtime.container import ModelFile
from hga.runtime.engine import Engine, Session
from hga.runtime.rope import inverse_frequencies

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

SINKS, WINDOW = 4, 16
# 16 groups of 16 and sinks leave 5 groups to choose.
BUDGET, SELECTED = "400", 5


@pytest.fixture(scope="module")
def routed(packed_tiny: Packed, open_engine: Opened) -> Iterator[Engine]:
    """Two routed layers, three query heads a KV head, a context of 2,000."""
    path = packed_tiny("qwen3", num_attention_heads=6, head_dim=64)
    with open_engine(path, attention="hga", budget=BUDGET, ctx=2000) as engine:
        yield engine


def queries(session: Session) -> np.ndarray:
    """Rotated, scaled queries [H, D] of the last layer of the last call."""
    plan = session._engine.plan.layers[-1].attention
    forward = session._engine.forward_pass
    address = int(forward._call[0]["q"])
    return forward._buffers.view(address, (plan.n_heads, plan.head_dim)).copy()


def keys(session: Session, layer: int = -1) -> np.ndarray:
    """Keys [S, G, D] of a layer as the store holds them."""
    layer %= len(session._layers)
    plan, n_tokens = session._engine.plan.layers[layer].attention, len(session.tokens)
    heads = []
    for head in range(plan.n_kv_heads):
        records = [session._arena.record(layer, head, g) for g in range(-(-n_tokens // 8))]
        halves = [r[: len(r) // 2].reshape(plan.head_dim, 8).T for r in records]
        heads.append(np.concatenate(halves)[:n_tokens])
    return np.stack(heads, 1).astype(np.float32)


def blocks(groups: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks of 16 tokens that a list of whole blocks' groups is made of."""
    assert groups == tuple(g for g in range(groups[-1] + 1) if g // 2 in {h // 2 for h in groups})
    return tuple(sorted({g // 2 for g in groups}))


def check(session: Session, route: Route | None) -> None:
    """The route is what the reference chooses from the keys in the store."""
    assert route is not None
    k = keys(session)
    pooled = sketch.pooled_shares(sketch.log_masses(queries(session), k, 16), k.shape[1])
    expected = sketch.select(pooled, SELECTED, SINKS, WINDOW)
    n_groups = pooled.shape[1]
    for got, wanted, shares in zip(map(blocks, route.groups), expected, pooled, strict=True):
        assert got == tuple(sorted(set(got))) and len(got) == SINKS + WINDOW + SELECTED
        assert got[:SINKS] == tuple(range(SINKS))
        assert got[-WINDOW:] == tuple(range(n_groups - WINDOW, n_groups))
        # The store keeps float16, sketches were made before: only groups of nearly the same share
        # may change places.
        swapped = sorted(set(got) ^ set(wanted))
        threshold = min(shares[list(wanted[SINKS:-WINDOW])])
        np.testing.assert_allclose(shares[swapped], threshold, rtol=0.1)


def test_routes_are_the_references(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(1200))
    for token in token_ids(40, seed=1):
        session.step(token)
        check(session, session.last_route())


def test_routing_starts_where_the_budget_ends(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(390))
    for token in token_ids(20, seed=1):
        session.step(token)
        route = session.last_route()
        assert (route is not None) == (len(session.tokens) > 400)
        if route is not None:
            check(session, route)


def test_a_route_is_forgotten(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(700))
    session.step(1)
    assert session.last_route() is not None
    session.feed([1, 2])
    assert session.last_route() is None, "a prompt is exact"
    session.step(1)
    assert session.last_route() is not None
    session.attention = "dense"
    session.step(1)
    assert session.last_route() is None
    session.attention = "hga"
    session.truncate(100)
    session.step(1)
    assert session.last_route() is None, "a short context is read whole"


def test_a_new_budget_takes_effect_at_once(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(1000))
    for budget, n_groups in (("400", 25), ("1", 21), ("50%", 32), ("640", 40)):
        session.budget = budget
        session.step(1)
        route = session.last_route()
        assert route is not None and {len(blocks(g)) for g in route.groups} == {n_groups}
        assert route.attended_tokens == 8 * len(route.groups[0])
    session.budget = "auto"
    session.step(1)
    assert session.last_route() is None


def test_attended_is_what_was_read(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(999))
    for token in token_ids(20, seed=1):
        session.reset_stats()
        session.step(token)
        # 24 full groups and what the last one holds.
        assert session.stats.attended_mean == 24 * 16 + (len(session.tokens) - 1) % 16 + 1


def test_only_full_layers_are_routed(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    with open_engine(packed_tiny("gemma3"), attention="hga", budget="1") as engine:
        session = engine.session()
        session.feed(token_ids(479))
        session.step(1)
        route = session.last_route()
        assert route is not None and len(route.groups) == 1 and len(blocks(route.groups[0])) == 21
        assert session.stats.attended_mean == pytest.approx((5 * 32 + 21 * 16) / 6)


def test_logits_are_those_of_the_chosen_groups(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer, so that the route of the last layer is all there is to know."""
    path = packed_tiny("qwen3", num_hidden_layers=1, num_attention_heads=6)
    ids = token_ids(501)
    with open_engine(path, attention="hga", budget=BUDGET) as engine, engine.session() as session:
        session.feed(ids[:-1])
        got = session.step(ids[-1])
        route = session.last_route()
    assert route is not None
    plain = attention.attend

    def chosen(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
        half = [x.astype(np.float16).astype(np.float32) for x in (k, v)]
        groups = np.arange(len(k)) // 8
        seen = np.stack([np.isin(groups, route.groups[h // 3]) for h in range(6)])
        return plain(q, *half, np.where(np.arange(len(q))[:, None, None] == 500, seen, True)
                     & visible[:, None])  # fmt: skip

    monkeypatch.setattr(attention, "attend", chosen)
    with ModelFile.open(path) as model:
        reference = Reference(
            model.plan, lambda role: model.tensor(role).values(), model.has, inverse_frequencies
        )
        expected = reference.forward(ids)[-1]
    assert np.abs(got - expected).max() <= 1e-3 * expected.std()


def test_a_route_is_a_value() -> None:
    route = Route(((0, 1), (0, 5)))
    assert route == Route(((0, 1), (0, 5))) and hash(route) == hash(Route(((0, 1), (0, 5))))
    assert route.attended_tokens == 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        route.groups = ()  # type: ignore[misc]
