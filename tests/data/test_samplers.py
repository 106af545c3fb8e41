"""Shards: together they are the dataset."""

from itertools import chain

import pytest
from torch.utils.data import DistributedSampler

from wsss_contrast.data import EpochSampler, EvalSampler


def test_epoch_sampler_knows_its_epoch_and_shuffles_by_seed():
    def order(seed, epoch):
        sampler = EpochSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        indices = [i for _, i in keys]
        assert sorted(indices) == list(range(50))
        return indices

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(9, 3)
    assert order(0, 0) != list(range(50))


@pytest.mark.parametrize("length", [12, 13, 14])
def test_epoch_sampler_shards(length):
    shards = []
    for rank in range(3):
        sampler = EpochSampler(range(length), num_replicas=3, rank=rank, seed=1)
        sampler.set_epoch(2)
        shards.append([index for _, index in sampler])
        assert len(shards[-1]) == len(sampler)
    assert len({len(shard) for shard in shards}) == 1
    drawn = list(chain(*shards))
    assert set(drawn) == set(range(length))
    assert len(drawn) - length == -length % 3  # no more repeats than needed


@pytest.mark.parametrize("length", [12, 13, 14])
def test_eval_sampler_repeats_nothing(length):
    shards = [list(EvalSampler(range(length), 3, rank)) for rank in range(3)]
    assert sorted(chain(*shards)) == list(range(length))
    assert list(EvalSampler(range(length))) == list(range(length))


def test_eval_sampler_with_too_few_images():
    with pytest.raises(ValueError, match="2 images cannot be shared among 3 processes"):
        EvalSampler(range(2), 3, 0)


def test_eval_sampler_may_share_too_few_images():
    assert [list(EvalSampler(range(2), 5, rank, share=True)) for rank in range(5)] == [[0], [1], [0], [1], [0]]
    assert [list(EvalSampler(range(5), 2, rank, share=True)) for rank in range(2)] == [[0, 2, 4], [1, 3]]
    with pytest.raises(ValueError, match="0 images"):
        EvalSampler([], 3, 0, share=True)


@pytest.mark.parametrize("sampler", [EpochSampler, EvalSampler])
def test_lightning_leaves_it_alone(sampler):
    assert issubclass(sampler, DistributedSampler)
