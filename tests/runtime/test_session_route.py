"""What a routed token reads: the groups that the reference would choose, and only those."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference import attention, sketch
from hga.kernels.reference.model import Reference
from hga.kvstore.route import Budget, Limits, Route, Router
from hga.runtime.container import ModelFile
from hga.runtime.engine import Engine, Session
from hga.runtime.rope import inverse_frequencies

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

BUDGET = "400"
LIMITS = Router("hga", Budget(tokens=400)).limits(2000)


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


def check(session: Session, route: Route | None, bits: int = 2) -> None:
    """The route is what the reference chooses from the keys in the store."""
    assert route is not None
    k = keys(session)
    masses = sketch.log_masses(queries(session), k, 8, bits=bits)
    part = sketch.shares(masses, k.shape[1])
    limits = (LIMITS.sinks, LIMITS.window, LIMITS.least, LIMITS.most)
    expected = sketch.select(part, *limits)
    n_groups = part.shape[2]
    for got, wanted, shares in zip(route.groups, expected, part.max(1), strict=True):
        assert got == tuple(sorted(set(got))) and len(got) == sum((*limits[:2], limits[3]))
        assert got[: LIMITS.sinks] == tuple(range(LIMITS.sinks))
        assert got[-LIMITS.window :] == tuple(range(n_groups - LIMITS.window, n_groups))
        # The store keeps float16, sketches were made before: only groups of nearly the same share
        # may change places.
        swapped = sorted(set(got) ^ set(wanted))
        threshold = min(shares[list(wanted[LIMITS.sinks : -LIMITS.window])])
        np.testing.assert_allclose(shares[swapped], threshold, rtol=0.1)


def test_routes_are_the_references(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(1200))
    for token in token_ids(40, seed=1):
        session.step(token)
        check(session, session.last_route())


def test_one_bit_sketches_route(packed_tiny: Packed, open_engine: Opened, token_ids: Ids) -> None:
    path = packed_tiny("qwen3", num_attention_heads=6, head_dim=64)
    with open_engine(path, attention="hga", budget=BUDGET, ctx=2000, sketch_bits=1) as engine:
        session = engine.session()
        session.feed(token_ids(1200))
        for token in token_ids(20, seed=1):
            session.step(token)
            check(session, session.last_route(), bits=1)
        # 9 bytes a key of 64 dimensions.
        assert engine.geometry.sketch_bytes(128) == 2 * 2 * 128 * 9


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
    for budget, n_groups in (("400", 50), ("50%", 63), ("640", 80)):
        session.budget = budget
        session.step(1)
        route = session.last_route()
        assert route is not None and {len(g) for g in route.groups} == {n_groups}
        assert route.attended_tokens == 8 * n_groups
    session.budget = "2k"
    session.step(1)
    assert session.last_route() is None


def test_attended_is_what_was_read(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.feed(token_ids(999))
    for token in token_ids(20, seed=1):
        session.reset_stats()
        session.step(token)
        # 49 full groups and what the last one holds; two layers of two KV heads.
        assert session.stats.attended_mean == 49 * 8 + (len(session.tokens) - 1) % 8 + 1
        assert session.stats.read_bytes == 2 * 2 * 50 * 8 * 64 * 4
        # Blocks of 128 tokens are scanned, 17 bytes a key of 64 dimensions.
        n_blocks = -(-len(session.tokens) // 128)
        assert session.stats.index_bytes == 2 * 2 * n_blocks * 128 * 17


@pytest.mark.parametrize(("rule", "budget"), [("hga", "400"), ("hga", "55%"), ("hga-paper", "400")])
def test_the_records_of_a_route_are_read_and_counted_and_no_others(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, rule: str, budget: str
) -> None:
    path = packed_tiny("qwen3", num_hidden_layers=1, num_attention_heads=6)
    ids = token_ids(901)
    with open_engine(path, attention=rule, budget=budget, ctx=1000) as engine:
        session = engine.session()
        session.feed(ids[:-1])
        expected = session.step(ids[-1])
        route, arena = session.last_route(), session._arena
        assert route is not None
        per_kv_head = len(route.groups) // 2
        read = [(i // per_kv_head, g) for i, groups in enumerate(route.groups) for g in groups]
        n_bytes = sum(arena.record(0, head, g).nbytes for head, g in read)
        assert session.stats.read_bytes == n_bytes
        others = {(head, g) for head in range(2) for g in range(113)} - set(read)
        assert len(others) > 10
        session.truncate(900)
        for head, g in others:
            arena.record(0, head, g)[:] = np.nan
        np.testing.assert_array_equal(session.step(ids[-1]), expected)
        for head, g in ((0, 0), (1, route.groups[-1][len(route.groups[-1]) // 2])):
            session.truncate(900)
            record = arena.record(0, head, g)
            kept = record.copy()
            record[:] = np.nan
            assert not np.isfinite(session.step(ids[-1])).any(), "a record was counted, not read"
            session.truncate(900)
            record[:] = kept


def test_everything_read_is_counted(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.attention = "dense"
    session.feed(token_ids(999))
    session.step(1)
    assert session.stats.attended_mean == 1000 and session.stats.index_bytes == 0
    assert session.stats.read_bytes == 2 * 2 * 125 * 8 * 64 * 4


@pytest.mark.parametrize(
    ("rule", "budget"),
    [(r, b) for r in ("hga", "hga-paper", "oracle") for b in ("200", "30%")] + [("hga", "auto")],
)
def test_recall_is_the_mass_that_was_read(
    routed: Engine, token_ids: Ids, rule: str, budget: str
) -> None:
    session = routed.session()
    session.attention, session.budget, session.measure_recall = rule, budget, True
    session.feed(token_ids(1500))
    for token in token_ids(5, seed=1):
        session.reset_stats()
        session.step(token)
        route = session.last_route()
        assert route is not None
        logits = np.einsum("hd,shd->hs", queries(session), np.repeat(keys(session), 3, 1))
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        share = 6 // len(route.groups)
        groups = np.arange(p.shape[1]) // 8
        read = [p[h][np.isin(groups, route.groups[h // share])].sum() for h in range(6)]
        # The last of two layers.
        np.testing.assert_allclose(session._recalls[1, :6], read, rtol=2e-3)
        assert session.stats.mass_recall == pytest.approx(session._recalls[:, :6].mean())


def test_the_oracle_reads_the_largest_true_shares(routed: Engine, token_ids: Ids) -> None:
    session = routed.session()
    session.attention = "oracle"
    session.feed(token_ids(1200))
    for token in token_ids(5, seed=1):
        session.step(token)
        logits = np.einsum("hd,shd->hs", queries(session), np.repeat(keys(session), 3, 1))
        logits = np.pad(logits, ((0, 0), (0, -logits.shape[1] % 8)), constant_values=-1e30)
        masses = np.log(np.exp(logits.reshape(6, -1, 8)).sum(2))
        part = sketch.shares(masses.astype(np.float64), 2)
        limits = (LIMITS.sinks, LIMITS.window, LIMITS.least, LIMITS.most)
        route = session.last_route()
        assert route is not None
        for got, wanted, shares in zip(
            route.groups, sketch.select(part, *limits), part.max(1), strict=True
        ):
            swapped = sorted(set(got) ^ set(wanted))
            threshold = min(shares[list(wanted[LIMITS.sinks : -LIMITS.window])])
            np.testing.assert_allclose(shares[swapped], threshold, rtol=0.02)


def published(session: Session, limits: Limits) -> list[tuple[int, ...]]:
    """Groups of each query head under the published rule, from keys and queries, in numpy."""
    k, q = keys(session).astype(np.float64), queries(session)
    plan = session._engine.plan.layers[-1].attention
    frequencies = inverse_frequencies(plan.rope, plan.head_dim)
    n_closed, n_groups = len(k) // 64, -(-len(k) // 8)
    first, last = limits.sinks // 8, n_closed - limits.window // 8

    def summary(start: int, size: int, head: int) -> np.ndarray:
        a, b = np.split(k[start : start + size, head], 2, 1)
        angle = ((size - 1) // 2 - np.arange(size))[:, None] * frequencies
        angle[:, 63 * frequencies > 0.5] = 0
        turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        return np.concatenate(turned, 1).sum(0)

    routes = []
    for h, query in enumerate(q):

        def best(spans: list[int], size: int, count: int) -> list[int]:
            scores = [summary(s, size, h // 3) @ query for s in spans]  # noqa: B023
            return [spans[i] for i in np.argsort(-np.array(scores), kind="stable")[:count]]

        chunks = best([64 * c for c in range(first, last)], 64, limits.chunks)
        inside = [start + 16 * i for start in chunks for i in range(4)]
        chosen = {s // 8 + i for s in best(inside, 16, limits.most) for i in range(2)}
        chosen |= set(range(8 * first)) | set(range(8 * last, n_groups))
        routes.append(tuple(sorted(chosen)))
    return routes


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_published_rule_is_the_published_rule(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, theta: float
) -> None:
    path = packed_tiny("qwen3", num_attention_heads=6, head_dim=64, rope_theta=theta)
    with open_engine(path, attention="hga-paper", budget="900", ctx=2500) as engine:
        session = engine.session()
        limits = Router("hga-paper", Budget(tokens=900)).limits(2000)
        session.feed(token_ids(1900))
        for i, token in enumerate(token_ids(200, seed=1)):
            session.step(token)
            if i % 50 == 0:
                route, expected = session.last_route(), published(session, limits)
                assert route is not None
                same = [a == b for a, b in zip(route.groups, expected, strict=True)]
                # Sums of float16 keys in another order: a near tie may fall to either side.
                assert sum(same) >= 5
        # Forgotten and fed anew: summaries of chunks that changed are made again.
        session.truncate(1000)
        session.feed(token_ids(1000, seed=5))
        session.step(1)
        route, expected = session.last_route(), published(session, limits)
        assert route is not None
        assert sum(a == b for a, b in zip(route.groups, expected, strict=True)) >= 5


def test_only_full_layers_are_routed(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    with open_engine(packed_tiny("gemma3"), attention="hga", budget="1") as engine:
        session = engine.session()
        session.feed(token_ids(479))
        session.step(1)
        route = session.last_route()
        n_groups = Router("hga", Budget(tokens=1)).least_tokens(480) // 8
        assert route is not None and list(map(len, route.groups)) == [n_groups]
        assert session.stats.attended_mean == pytest.approx((5 * 32 + n_groups * 8) / 6)


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


def test_the_index_is_on_the_bill(packed_tiny: Packed, open_engine: Opened) -> None:
    path, bills = packed_tiny("qwen3", num_attention_heads=6, head_dim=64), {}
    for rule, bits in (("hga", 2), ("hga", 1), ("hga-paper", 2)):
        with open_engine(path, attention=rule, sketch_bits=bits, ctx=1280) as engine:
            bills[rule, bits] = {line.name: line.n_bytes for line in engine.bill()}
    # Two layers of two KV heads; a key has 17 or 9 bytes, a chunk 5 vectors of 64 floats.
    assert bills["hga", 2]["key sketches"] == 2 * 2 * 1280 * 17
    assert bills["hga", 1]["key sketches"] == 2 * 2 * 1280 * 9
    assert bills["hga-paper", 2]["chunk summaries"] == 2 * 2 * 20 * 5 * 64 * 4
    assert "chunk summaries" not in bills["hga", 2]
