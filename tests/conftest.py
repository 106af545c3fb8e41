"""Settings that hold for all tests, a tiny folder in VOC layout, and the photographs where they are.

Property tests repeat the same examples and write no files.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the tests that run side by side share the cores; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

# name -> (height, width), VOC ids in the mask besides 0 and 255
IMAGES = {"a_1": ((40, 60), (8, 15)), "a_2": ((50, 30), (12,)), "a_3": ((20, 20), (1, 8))}
TAGS = {"a_1": "cat person", "a_2": "dog", "a_3": "aeroplane cat"}


@pytest.fixture(autouse=True)
def no_seed_is_left() -> Iterator[None]:
    """Lightning writes a seed into the environment, where processes that a later test starts would find it."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Three images with masks, a list `train`, tags.csv and annotations, all consistent."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    for name, ((height, width), ids) in IMAGES.items():
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_mask(tmp_path / "SegmentationClassAug" / f"{name}.png", (height, width), ids)
        objects = "".join(f"<object><name>{tag}</name></object>" for tag in TAGS[name].split())
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n".join(IMAGES) + "\n")
    lines = [f"{name},{tags}" for name, tags in TAGS.items()]
    (tmp_path / "tags.csv").write_text("\n".join(["name,tags", *lines]) + "\n")
    return tmp_path


def write_mask(path: Path, shape: tuple[int, int], ids: tuple[int, ...]) -> None:
    """Row 0 is ignored, then two rows for each id, the rest is background."""
    mask = np.zeros(shape, np.uint8)
    mask[0] = 255
    for number, label in enumerate(ids):
        mask[1 + 2 * number : 3 + 2 * number] = label
    image = Image.fromarray(mask)
    image.putpalette([value for level in range(256) for value in (level, 255 - level, level // 2)])
    image.save(path)


@pytest.fixture
def mask_writer() -> Callable[[Path, tuple[int, int], tuple[int, ...]], None]:
    return write_mask


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Three images a split in the layout of MS COCO 2014."""
    from tests.data.coco_fake import make_coco  # here: most tests do without the library's data

    return make_coco(tmp_path)


@pytest.fixture
def animals() -> Path:
    """The folder of real photographs. It is not part of the repository."""
    here = Path(os.environ.get("WSSS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    root = here / "voc_animals"
    if not root.is_dir():
        pytest.skip(f"no photographs: {root} does not exist (set WSSS_DATA to the folder that holds voc_animals)")
    return root
