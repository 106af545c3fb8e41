"""The augmentation depends on (seed, epoch, index) and on nothing else."""

import doctest
import importlib
import os
import subprocess
import sys

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import wsss_contrast.data as public
from wsss_contrast.data import DataError, EpochSampler, ShapesDataset, TaggedImageDataset, train_transform
from wsss_contrast.data.base import sample_seed


def dataset(seed=0):
    data = ShapesDataset("train", size=32, length=8, transform=train_transform(32, (24, 48)), with_mask=True)
    data.seed = seed  # of the augmentation; the drawings stay
    data.read = lambda index, read=data.read, pictures={}: pictures.setdefault(index, read(index))
    return data


def test_a_key_gives_the_same_pixels_in_any_order():
    data = dataset()
    first = data[3, 5]
    for key in ((0, 1), (7, 2), 5):
        data[key]
    again, other = data[3, 5], dataset()[3, 5]
    for key in ("image", "mask", "tags"):
        assert torch.equal(first[key], again[key])
        assert torch.equal(first[key], other[key])


def test_epoch_seed_and_index_change_the_pixels():
    data = dataset()
    assert torch.equal(data[5]["image"], data[0, 5]["image"])  # an index alone means epoch 0
    assert not torch.equal(data[0, 5]["image"], data[1, 5]["image"])
    assert not torch.equal(data[0, 5]["image"], dataset(seed=1)[0, 5]["image"])
    picture = data.read(0)
    data.read = lambda index: picture
    assert not torch.equal(data[0, 0]["image"], data[0, 1]["image"])


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent):
    def epochs(**kwargs):
        data = ShapesDataset("train", 32, 8, transform=train_transform(32, (24, 48)))
        sampler = EpochSampler(data, seed=1)
        loader = DataLoader(data, batch_size=2, sampler=sampler, **kwargs)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            yield from ((batch["name"], batch["image"]) for batch in loader)

    alone, helped = list(epochs()), list(epochs(num_workers=2, persistent_workers=persistent))
    assert [names for names, _ in alone] == [names for names, _ in helped]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, helped, strict=True))
    pixels = [{}, {}]  # of each epoch, by name
    for number, (names, images) in enumerate(alone):
        pixels[number // 4].update(zip(names, images, strict=True))
    assert len(pixels[0]) == 8
    assert pixels[0].keys() == pixels[1].keys()
    assert not any(torch.equal(pixels[0][name], pixels[1][name]) for name in pixels[0])


def test_the_draws_of_one_sample_are_independent():
    """No two steps of a pipeline start from one random state: size and brightness would be one draw."""
    drawn = []

    class Spy(A.ImageOnlyTransform):
        def apply(self, img, **params):
            return img

        def get_params(self):
            drawn.append(self.py_random.random())
            return {}

    data = dataset()
    data.transform = A.Compose([Spy(p=1), Spy(p=1), A.Normalize()])
    for epoch in range(200):
        data[epoch, 0]
    first, second = np.array(drawn).reshape(-1, 2).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25
    assert first.std() > 0.2


def test_sample_seeds_do_not_collide():
    keys = [(s, e, i) for s in range(8) for e in range(8) for i in range(64)]
    assert len({sample_seed(*key) for key in keys}) == len(keys)


def test_the_base_serves_other_datasets():
    class Plain(TaggedImageDataset):
        def __len__(self):
            return 2

        def read(self, index):
            return np.zeros((4, 6, 3), np.uint8), np.ones(1, np.float32), None, f"n{index}"

    sample = Plain(["thing"])[1]
    assert sample["image"].shape == (3, 4, 6)
    assert sample["name"] == "n1"
    with pytest.raises(DataError, match="n1: has no mask"):
        Plain(["thing"], with_mask=True)[1]
    with pytest.raises(TypeError, match="abstract"):
        TaggedImageDataset(["thing"])


def test_public_names():
    assert public.__all__ == sorted(public.__all__, key=lambda n: (not n.isupper(), n))
    assert all(hasattr(public, name) for name in public.__all__)


@pytest.mark.parametrize("module", ["base", "datamodule", "samplers", "shapes", "transforms", "voc"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"wsss_contrast.data.{module}"))
    assert result.failed == 0
    assert result.attempted > 0 or module in ("voc", "datamodule")  # these need files or a trainer


def test_import_asks_no_server():
    code = (
        "import socket; socket.socket.connect = lambda *a: (_ for _ in ()).throw(SystemExit('network'))\n"
        "import wsss_contrast.data"
    )
    env = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
