"""The sampler against a plain transcription of llama.cpp's chain, and what it must refuse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.runtime.sampler import Sampler, SamplerError, SamplerOptions, defaults


def chain(logits, options, recent=()):
    """Ids and probabilities that remain, by sorting everything, one filter after another."""
    values = [float(x) for x in logits]
    last = list(recent)[-options.repeat_last_n :] if options.repeat_last_n else []
    for token in set(last):
        value = values[token]
        value = value / options.repeat_penalty if value > 0 else value * options.repeat_penalty
        value -= last.count(token) * options.frequency_penalty + options.presence_penalty
        values[token] = float(np.float32(value))
    kept = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if options.top_k:
        kept = kept[: options.top_k]
    best = values[kept[0]]
    if options.top_p < 1.0:
        weights = [math.exp(values[i] - best) for i in kept]
        total, mass, n = sum(weights), 0.0, 0
        for weight in weights:
            mass += weight
            n += 1
            if mass >= options.top_p * total:
                break
        kept = kept[:n]
    if options.min_p > 0.0:
        kept = [i for i in kept if values[i] >= best + math.log(options.min_p)] or kept[:1]
    weights = [math.exp((values[i] - best) / options.temperature) for i in kept]
    return kept, [weight / sum(weights) for weight in weights]


def kept_ids(logits, options, recent=()):
    sampler = Sampler(options)
    ids, _ = sampler._candidates(sampler._penalised(logits, recent))
    return sorted(ids.tolist())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 7, 300, 1024, 5000]),
    top_k=st.sampled_from([0, 1, 3, 40, 10_000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_filters_keep_what_the_plain_chain_keeps(seed, size, top_k, top_p, min_p, spread, penalty):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=size) * spread).astype(np.float32)
    recent = rng.integers(0, size, 100).tolist()
    options = SamplerOptions(
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=penalty,
        frequency_penalty=0.0 if penalty == 1.0 else 0.1,
        presence_penalty=0.0 if penalty == 1.0 else 0.2,
        seed=0,
    )
    expected, _ = chain(logits, options, recent)
    found = kept_ids(logits, options, recent)
    # Sums of thousands of weights differ in the last digits: one candidate at the edge may too.
    assert abs(len(found) - len(expected)) <= 1
    assert len(set(found) ^ set(expected)) <= 1


def test_ties_are_cut_by_id():
    logits = np.zeros(5000, dtype=np.float32)
    logits[[7, 4000]] = 1.0
    assert kept_ids(logits, SamplerOptions(top_k=4, top_p=1.0, min_p=0.0)) == [0, 1, 7, 4000]


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], dtype=np.float32))
    options = SamplerOptions(temperature=0.7, top_k=4, top_p=0.99, min_p=0.05, seed=3)
    ids, probabilities = chain(logits, options)
    sampler = Sampler(options)
    n = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=5)
    expected = np.zeros(5)
    expected[ids] = probabilities
    assert np.abs(counts / n - expected).max() < 4 * math.sqrt(0.25 / n)


def test_same_seed_same_tokens():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 1000)).astype(np.float32)

    def tokens(seed):
        sampler = Sampler(SamplerOptions(seed=seed))
        return [sampler.sample(row) for row in rows]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    first = Sampler(SamplerOptions())
    assert tokens(first.seed) == [first.sample(row) for row in rows]


def test_temperature_zero_is_the_best_token_of_lowest_id():
    logits = np.zeros(1000, dtype=np.float32)
    logits[[30, 500]] = 2.0
    sampler = Sampler(SamplerOptions(temperature=0.0, seed=1))
    assert sampler.sample(logits) == 30
    punished = Sampler(SamplerOptions(temperature=0.0, repeat_penalty=1.5, repeat_last_n=2))
    assert punished.sample(logits, [1, 2, 30, 3]) == 500
    assert punished.sample(logits, [30, 1, 2, 3]) == 30
    assert logits[30] == 2.0


def test_tiny_temperature_and_huge_logits_stay_finite():
    logits = np.array([3e38, -3e38, 2.9e38], dtype=np.float32)
    for top_p, min_p in ((1.0, 0.0), (0.9, 0.0), (0.9, 0.1)):
        options = SamplerOptions(temperature=1e-6, top_k=0, top_p=top_p, min_p=min_p, seed=0)
        sampler = Sampler(options)
        assert {sampler.sample(logits) for _ in range(10)} == {0}


def test_penalties_that_overflow_are_an_error():
    logits = np.array([3e38, 0.0], dtype=np.float32)
    with pytest.raises(SamplerError, match="penalties"):
        Sampler(SamplerOptions(repeat_penalty=0.1)).sample(logits, [0])


def test_recent_tokens_out_of_the_vocabulary_do_not_matter():
    logits = np.array([1.0, 0.9], dtype=np.float32)
    sampler = Sampler(SamplerOptions(temperature=0.0, repeat_penalty=2.0))
    assert sampler.sample(logits, [5, -1]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    logits = np.zeros(10, dtype=np.float32)
    logits[4] = bad
    for temperature in (0.0, 0.8):
        with pytest.raises(SamplerError, match=r"finite numbers, found .* at 4"):
            Sampler(SamplerOptions(temperature=temperature)).sample(logits)


def test_logits_need_one_axis():
    with pytest.raises(SamplerError, match="shape"):
        Sampler(SamplerOptions()).sample(np.zeros((1, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("min_p", -1.0),
        ("min_p", True),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -1),
        ("presence_penalty", math.inf),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(SamplerError, match=name):
        SamplerOptions(**{name: value})


def test_defaults_take_what_the_model_states():
    assert defaults({}) == SamplerOptions(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    stated = {"temperature": 0.6, "top_k": 20, "top_p": None, "repetition_penalty": 1.05, "x": 1}
    expected = SamplerOptions(temperature=0.6, top_k=20, repeat_penalty=1.05)
    assert defaults(stated) == expected
    assert defaults({"temp": 0.5, "penalty_last_n": 8}) == SamplerOptions(0.5, repeat_last_n=8)
    assert defaults({"do_sample": False, "temperature": 0.6}).temperature == 0.0
    with pytest.raises(SamplerError, match="top_p"):
        defaults({"top_p": 7})
