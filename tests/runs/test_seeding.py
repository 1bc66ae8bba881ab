"""Seeds are named streams: fixed for ever, different for different names."""

import hashlib

import pytest
import torch

from torchmpo.runs.seeding import derive_seed, generator

KNOWN = (5621864261735219286, 7364062749820218835)


def test_seeds_never_change():
    """A different value here makes every recorded run irreproducible. (Python's own ``hash`` of a
    string differs from process to process.)"""
    assert derive_seed(0) == KNOWN[0]
    assert derive_seed(0, "minibatches", 3) == KNOWN[1]


def test_seeds_follow_the_definition():
    digest = hashlib.blake2b(b'[0, "minibatches", 3]', digest_size=8).digest()
    assert derive_seed(0, "minibatches", 3) == int.from_bytes(digest, "little") // 2


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), ("a", 0)),
        ((0, "a"), (0, "b")),
        ((1, 23), (12, 3)),
        ((1,), ("1",)),
        (("a", "b"), ("ab",)),
        ((0,), (0, 0)),
        ((-1,), (1,)),
        (("a", "b"), ('a", "b',)),
    ],
)
def test_different_names_are_different_streams(one, two):
    assert derive_seed(*one) != derive_seed(*two)


def test_many_seeds_are_distinct_and_in_range():
    seeds = {derive_seed(run, "member", i) for run in range(20) for i in range(500)}
    assert len(seeds) == 10_000
    assert 0 <= min(seeds) < max(seeds) < 2**63
    # Uniform: each of the 16 top nibbles of [0, 2⁶³) gets its share (625 ± 5 s.d.).
    counts = [0] * 16
    for seed in seeds:
        counts[seed >> 59] += 1
    assert 500 < min(counts) <= max(counts) < 750


def test_generator_starts_at_the_seed_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    expected = torch.Generator().manual_seed(derive_seed(4, "noise"))
    draws = torch.rand(5, generator=generator(4, "noise"))
    assert torch.equal(draws, torch.rand(5, generator=expected))
    assert torch.equal(torch.get_rng_state(), before)
