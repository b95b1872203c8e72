"""The order of clips: a function of seed and step, whatever the number of workers."""

from hypothesis import given
from hypothesis import strategies as st

from prospect.training.sampler import ClipSampler

lengths = st.lists(st.integers(1, 500), min_size=1, max_size=40)
sizes = st.integers(1, 12)


@given(lengths, sizes, st.integers(0, 5), st.integers(0, 3))
def test_every_clip_comes_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    sampler = ClipSampler(lengths, batch_size, seed)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [sampler.batch(step) for step in steps]
    assert sorted(clip for batch in batches for clip in batch) == list(range(len(lengths)))
    assert all(sampler.epoch(step) == epoch for step in steps)
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1, "no batch is a small remainder"


@given(lengths, sizes, st.integers(0, 30))
def test_any_step_can_be_asked_for_alone(lengths: list[int], batch_size: int, step: int) -> None:
    running = ClipSampler(lengths, batch_size, seed=1)
    for earlier in range(step):
        running.batch(earlier)
    assert ClipSampler(lengths, batch_size, seed=1).batch(step) == running.batch(step)


@given(lengths, sizes, sizes, st.integers(1, 5), st.integers(0, 10))
def test_the_workers_share_the_global_batch(
    lengths: list[int], batch_size: int, micro_batch_size: int, world_size: int, step: int
) -> None:
    sampler = ClipSampler(lengths, batch_size, seed=2)
    ranks = [sampler.shares(step, micro_batch_size, rank, world_size) for rank in range(world_size)]
    counted = [clip for shares in ranks for share in shares if share.counts for clip in share.clips]
    assert sorted(counted) == sorted(sampler.batch(step)), "each clip of the global batch counts on one rank"
    assert len({len(shares) for shares in ranks}) == 1, "all ranks take part in the same reductions"
    assert all(1 <= len(share.clips) <= micro_batch_size for shares in ranks for share in shares)


def test_another_epoch_and_another_seed_have_another_order() -> None:
    sampler = ClipSampler([1] * 50, 5, seed=0)
    assert [sampler.batch(step) for step in range(10)] != [sampler.batch(step) for step in range(10, 20)]
    assert sampler.batch(0) != ClipSampler([1] * 50, 5, seed=1).batch(0)


def test_the_number_of_workers_does_not_say_what_a_micro_batch_holds() -> None:
    sampler = ClipSampler([10, 200, 12, 190], 4, seed=0)
    assert [share.clips for share in sampler.shares(0, 2)] == [(1, 0), (3, 2)]
    assert [share.clips for rank in (0, 1) for share in sampler.shares(0, 2, rank, 2)] == [(1, 0), (3, 2)]


@given(lengths, sizes, sizes, st.integers(1, 5), st.integers(0, 10))
def test_micro_batches_take_nearly_equally_long(
    lengths: list[int], batch_size: int, micro_batch_size: int, world_size: int, step: int
) -> None:
    sampler = ClipSampler(lengths, batch_size, seed=2)
    ranks = [sampler.shares(step, micro_batch_size, rank, world_size) for rank in range(world_size)]
    loads = [sum(lengths[clip] for clip in share.clips) * share.counts for shares in ranks for share in shares]
    clips = [lengths[clip] for clip in sampler.batch(step)]
    least = 0 if len(clips) % len(loads) else min(clips)
    assert max(loads) - min(loads) <= max(clips) - least


budgets = st.integers(500, 2000)


@given(lengths, sizes, budgets, st.integers(1, 5), st.integers(0, 10))
def test_a_token_budget_shares_the_same_global_batch(
    lengths: list[int], batch_size: int, budget: int, world_size: int, step: int
) -> None:
    sampler = ClipSampler(lengths, batch_size, seed=2)
    ranks = [sampler.packed_shares(step, budget, rank, world_size) for rank in range(world_size)]
    counted = [clip for shares in ranks for share in shares if share.counts for clip in share.clips]
    assert sorted(counted) == sorted(sampler.batch(step)), "each clip of the global batch counts on one rank"
    assert len({len(shares) for shares in ranks}) == 1, "all ranks take part in the same reductions"
    assert all(sum(lengths[clip] for clip in share.clips) <= budget for shares in ranks for share in shares)
    idle = [share for shares in ranks for share in shares if not share.counts]
    assert len(idle) < world_size, "no rank idles twice"


def test_a_token_budget_is_filled() -> None:
    sampler = ClipSampler([100, 900, 400, 600, 500, 500], 6, seed=0)
    assert [sum(sampler.lengths[clip] for clip in share.clips) for share in sampler.packed_shares(0, 1000)] == [
        1000
    ] * 3
