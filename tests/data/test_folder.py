"""A plain folder of photos: what is read, and an error before training that names every file that is wrong."""

import re
import unicodedata
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_contrast.data import DataError, FolderDataModule, FolderDataset, denormalize
from wsss_contrast.data.base import read_image

SIZES = {"cat 1": (40, 60), "dog.2": (50, 30), "Übung": (36, 48), "empty": (20, 20)}
TAGS = {"cat 1": "cat", "dog.2": "dog cat", "Übung": "dog", "empty": ""}
SUFFIXES = {"cat 1": ".JPG", "dog.2": ".png", "Übung": ".webp", "empty": ".tif"}
MASKED = ("cat 1", "dog.2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four photos, two of them with a mask, all in order."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, size in SIZES.items():
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}{SUFFIXES[name]}")
    for name in MASKED:
        mask = np.zeros(SIZES[name], np.uint8)
        mask[0], mask[1:5] = 255, 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    write_tags(tmp_path, TAGS)
    return tmp_path


def write_tags(root: Path, tags: dict[str, str]) -> None:
    lines = ["name,tags", *(f"{name},{of_photo}" for name, of_photo in tags.items())]
    (root / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def module(root: Path, **options: object) -> FolderDataModule:
    sizes = {"crop_size": 16, "resize_long": (16, 24), "batch_size": 2}
    return FolderDataModule(str(root), **{**sizes, **options})


# --- what is read


def test_sample_contract(root: Path) -> None:
    data = FolderDataset(root)
    assert data.class_names == ["cat", "dog"]
    samples = {sample["name"]: sample for sample in data}
    assert samples.keys() == SIZES.keys()
    for name, sample in samples.items():
        assert set(sample) == {"image", "tags", "name", "photo_size"}
        assert sample["image"].shape[1:] == SIZES[name]
        assert tuple(sample["photo_size"].tolist()) == SIZES[name]
        assert sample["tags"].tolist() == [float(tag in TAGS[name].split()) for tag in ("cat", "dog")]
    with Image.open(root / "images" / "dog.2.png") as image:
        np.testing.assert_array_equal(denormalize(samples["dog.2"]["image"]), np.asarray(image))


def test_masks(root: Path) -> None:
    data = FolderDataset(root, ["dog", "cat"], with_mask=True)
    assert [sample["name"] for sample in data] == sorted(MASKED)
    assert data[0]["mask"][:6, 0].tolist() == [255, 1, 1, 1, 1, 0]
    assert data[0]["tags"].tolist() == [0, 1]


def test_large_photos_are_reduced_and_small_ones_stay(root: Path) -> None:
    data = FolderDataset(root, with_mask=True, longest_side=50)
    cat, dog = data
    assert cat["image"].shape[1:] == cat["mask"].shape == (33, 50)
    assert set(cat["mask"].unique().tolist()) <= {0, 1, 255}
    assert cat["photo_size"].tolist() == [40, 60]
    assert dog["image"].shape[1:] == dog["mask"].shape == (50, 30)


def test_names_may_be_decomposed(root: Path) -> None:
    """macOS gives `Ü` as two characters."""
    (root / "images" / "Übung.webp").rename(root / "images" / unicodedata.normalize("NFD", "Übung.webp"))
    assert len(FolderDataset(root)) == 4


def test_exif_orientation_is_applied(root: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255  # the left half is white; a quarter turn clockwise brings it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "images" / "cat 1.JPG", exif=exif, quality=95)
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(root / "masks" / "cat 1.png")
    sample = FolderDataset(root, with_mask=True)[0]
    assert sample["image"].shape == (3, 30, 20)
    assert sample["photo_size"].tolist() == [30, 20]
    picture = denormalize(sample["image"])
    assert picture[:13].min() > 230
    assert picture[17:].max() < 25

    stored = read_image(root / "images" / "cat 1.JPG")
    assert stored.shape == (20, 30, 3)  # published masks go with the stored pixels
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "masks" / "cat 1.png")
    with pytest.raises(DataError, match=r"mask is 30x20.*is 20x30 \(upright, as its EXIF"):
        FolderDataset(root, with_mask=True)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "LA", "P", "1"])
def test_colour_modes_become_rgb(root: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    source = Image.new("RGB", (8, 6), (204, 204, 204) if mode != "1" else (255, 255, 255))
    source.convert(mode).save(root / f"photo{suffix}")
    image = read_image(root / f"photo{suffix}")
    assert image.shape == (6, 8, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, np.asarray(source), atol=1)


def test_cmyk_jpeg(root: Path) -> None:
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(root / "red.jpg", quality=95)
    np.testing.assert_allclose(read_image(root / "red.jpg")[3, 4], [255, 0, 0], atol=6)


def test_transparent_pixels_lie_on_white(root: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(root / "cut.png")
    assert read_image(root / "cut.png")[:, 0, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(root: Path, suffix: str, channels: int) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)  # PIL's own conversion of grey clips at 255
    picture = np.repeat(levels.reshape(16, 16, 1), channels, axis=2)
    cv2.imwrite(str(root / f"deep.{suffix}"), picture)
    image = read_image(root / f"deep.{suffix}")
    np.testing.assert_array_equal(image, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_floating_point_is_refused(root: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "images" / "empty.tif")
    with pytest.raises(DataError, match=r"empty\.tif.*floating-point"):
        FolderDataset(root)


# --- what is wrong


def _truncate(root: Path) -> None:
    path = root / "images" / "cat 1.JPG"
    path.write_bytes(path.read_bytes()[:-400])


def _tag(name: str, tags: str | None):
    changed = {key: value for key, value in (TAGS | {name: tags}).items() if value is not None}
    return lambda root: write_tags(root, changed)


def _line(text: str):
    def add(root: Path) -> None:
        with (root / "tags.csv").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    return add


def _mask(name: str, pixels: np.ndarray):
    return lambda root: Image.fromarray(pixels).save(root / "masks" / name)


# change, message, and the photo that is left out (None where no photo is)
PROBLEMS = {
    "missing image": (lambda root: (root / "images" / "dog.2.png").unlink(), r"no photo dog\.2 in .*images", "dog.2"),
    "image without a line": (_tag("Übung", None), r"tags\.csv: has no line for Übung", "Übung"),
    "line twice": (_line("cat 1,cat"), r"tags\.csv, line 6: cat 1 has a line already", "cat 1"),
    "line with the extension": (
        lambda root: write_tags(root, {**{k: v for k, v in TAGS.items() if k != "cat 1"}, "cat 1.JPG": "cat"}),
        r"no photo cat 1\.JPG in .*without the extension",
        "cat 1",
    ),
    "unknown tag": (_tag("Übung", "dog unicorn"), r"tags\.csv, line 4: unknown tags \['unicorn'\].*cat, dog", "Übung"),
    "truncated JPEG": (_truncate, r"cat 1\.JPG: cannot be read as an image", "cat 1"),
    "no image at all": (
        lambda root: (root / "images" / "dog.2.png").write_text("<html>"),
        r"dog\.2\.png: cannot be read as an image",
        "dog.2",
    ),
    "two photos of one name": (
        lambda root: Image.new("RGB", (4, 4)).save(root / "images" / "cat 1.png"),
        r"cat 1\.JPG and .*cat 1\.png: two photos of one name",
        "cat 1",
    ),
    "mask of another size": (
        _mask("cat 1.png", np.zeros((60, 41), np.uint8)),
        r"cat 1\.png: the mask is 41x60 pixels, its image .*cat 1\.JPG is 60x40$",
        "cat 1",
    ),
    "unknown id": (_mask("cat 1.png", np.full((40, 60), 3, np.uint8)), r"ids \[3\] are neither 0-2 nor 255", "cat 1"),
    "mask in colours": (
        _mask("cat 1.png", np.zeros((40, 60, 3), np.uint8)),
        r"cat 1\.png: a mask must be an 8-bit.*mode RGB",
        "cat 1",
    ),
    "mask of no photo": (
        _mask("cow.png", np.zeros((4, 4), np.uint8)),
        r"cow\.png: there is no photo of that name",
        None,
    ),
    "mask as JPEG": (_mask("Übung.jpg", np.zeros((36, 48), np.uint8)), r"Übung\.jpg: a mask must be a PNG", "Übung"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_shows_before_training(root: Path, case: str) -> None:
    change, message, _ = PROBLEMS[case]
    data = module(root, classes=["cat", "dog"])
    data.setup("fit")  # right so far
    change(root)
    with pytest.raises(DataError, match=message):
        data.setup("fit")


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_is_skipped_with_a_warning(root: Path, case: str) -> None:
    change, message, name = PROBLEMS[case]
    change(root)
    data = module(root, classes=["cat", "dog"], on_error="skip")
    with pytest.warns(UserWarning, match="(?s)These photos are left out") as warned:
        data.setup("fit")
    assert re.search(message, str(warned[0].message), re.MULTILINE)
    assert {photo.name for photo in data.train_set.photos} == SIZES.keys() - {name}
    assert {photo.name for photo in data.val_sets["train"].photos} == set(MASKED) - {name}
    assert all(sample["image"].shape == (3, 16, 16) for sample in data.train_set)


def test_all_problems_are_named_at_once(root: Path) -> None:
    for case in ("truncated JPEG", "missing image", "unknown id"):
        PROBLEMS[case][0](root)
    _tag("Übung", None)(root)
    with pytest.raises(DataError) as raised:
        FolderDataset(root, with_mask=True)
    for case in ("truncated JPEG", "missing image", "image without a line"):
        assert re.search(PROBLEMS[case][1], str(raised.value))


def test_ten_problems_are_named_and_the_others_counted(root: Path) -> None:
    for number in range(13):
        Image.new("RGB", (4, 4)).save(root / "images" / f"x{number:02d}.png")
    with pytest.raises(DataError, match=r"(?s)x00.*x09 \(and 3 more\)$") as raised:
        FolderDataset(root)
    assert "x10" not in str(raised.value)


def test_files_that_are_no_photos(root: Path) -> None:
    (root / "images" / ".DS_Store").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderDataset(root)
    (root / "images" / "IMG_1.HEIC").write_text("")
    with pytest.warns(UserWarning, match=r"left out, as their names do not end.*IMG_1\.HEIC"):
        assert len(FolderDataset(root)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "tags.csv").unlink(), r"tags\.csv: no such tags file"),
        (lambda root: (root / "tags.csv").write_bytes(b"name,tags\ncaf\xe9,cat\n"), r"tags\.csv: is no UTF-8"),
        (lambda root: (root / "tags.csv").write_text("name,tags\na,cat,dog\n"), r"tags\.csv, line 2: expected two"),
        (lambda root: (root / "tags.csv").write_text("file,tags\na,cat\n"), r"tags\.csv: the header"),
        (lambda root: (root / "tags.csv").write_text("name,tags\na,\n"), r"tags\.csv: has no tag"),
        (lambda root: write_tags(root, {"a": " ".join(f"t{i}" for i in range(255))}), "255 classes.*at most 254"),
        (lambda root: (root / "images").rename(root / "photos"), r"images: no such folder"),
        (lambda root: [path.unlink() for path in (root / "images").iterdir()], r"images: has no photo"),
        (lambda root: root.rename(root.with_name("away")), "no such folder"),
    ],
)
def test_what_no_photo_can_be_blamed_for(root: Path, change, message: str) -> None:
    change(root)
    with pytest.raises(DataError, match=message):
        module(root, on_error="skip").setup("fit")


def test_wrong_arguments(root: Path) -> None:
    with pytest.raises(ValueError, match="'ignore'"):
        FolderDataset(root, on_error="ignore")
    with pytest.raises(ValueError, match="got 0"):
        FolderDataset(root, longest_side=0)
    with pytest.raises(ValueError, match="'cat' is named twice"):
        FolderDataset(root, ["cat", "cat"])


# --- the data module


def test_loaders(root: Path) -> None:
    data = module(root, longest_side=30)
    assert (data.num_classes, data.mask_ids) == (2, [0, 1, 2])
    data.setup()
    assert len(data.train_set) == 4
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 16, 16)
    assert "mask" not in data.train_set[0]
    (scored,) = data.val_dataloader()
    assert [(b["name"][0], tuple(b["mask"].shape)) for b in scored] == [("cat 1", (1, 20, 30)), ("dog.2", (1, 30, 18))]
    predicted = list(data.predict_dataloader())
    assert [b["photo_size"].tolist() for b in predicted] == [[list(SIZES[b["name"][0]])] for b in predicted]
    assert all("mask" not in b for b in predicted)


@pytest.mark.parametrize("empty", [False, True])
def test_without_masks_nothing_is_validated(root: Path, empty: bool) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()
    if not empty:
        (root / "masks").rmdir()
    data = module(root)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match="masks: has no masks, so there is nothing to score"):
        data.setup("validate")


def test_prediction_needs_neither_tags_nor_good_masks(root: Path) -> None:
    PROBLEMS["unknown id"][0](root)
    (root / "tags.csv").unlink()
    data = module(root, classes=["cat", "dog", "cow"])
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert len(batches) == 4
    assert all(set(batch) == {"image", "name", "photo_size"} for batch in batches)


def test_index_and_view(root: Path) -> None:
    data = FolderDataset(root, with_mask=True, seed=3)
    assert data[-1]["photo_size"].tolist() == [50, 30]
    with pytest.raises(IndexError):
        data[2]
    everything = data.view()
    assert (len(data), len(everything), everything.seed) == (2, 4, 3)
    assert torch.equal(everything[-1]["image"], FolderDataset(root)[-1]["image"])


def test_photographs(animals: Path, tmp_path: Path) -> None:
    lines = (animals / "tags.csv").read_text().splitlines()[1:7]
    for folder, source in (("images", "JPEGImages"), ("masks", "SegmentationClassAug")):
        (tmp_path / folder).mkdir()
        for line in lines:
            (file,) = (animals / source).glob(line.split(",")[0] + ".*")
            (tmp_path / folder / file.name).symlink_to(file)
    (tmp_path / "tags.csv").write_text("\n".join(["name,tags", *lines]))
    tags = sorted({tag for line in lines for tag in line.split(",")[1].split()})
    data = FolderDataset(tmp_path, longest_side=160)
    assert data.class_names == tags
    for sample in data:
        assert max(sample["image"].shape) == 160
        assert sample["photo_size"].max() == 320
        assert sample["tags"].sum() >= 1
    # These masks have VOC's ids, which are not those of this folder.
    with pytest.raises(DataError, match=r"masks.*ids \[\d+.*are neither"):
        FolderDataset(tmp_path, with_mask=True)


def test_tags_of_a_single_photo_are_pointed_out(root: Path) -> None:
    write_tags(root, TAGS | {"empty": "catt"})
    with pytest.warns(UserWarning, match=r"tags\.csv: tags of a single photo, are they meant\? catt"):
        module(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(root, classes=["cat", "dog", "catt"])


@pytest.mark.parametrize("tag", ["cat;dog", "cat|dog"])
def test_tags_joined_by_another_sign_are_refused(root: Path, tag: str) -> None:
    write_tags(root, TAGS | {"empty": tag})
    with pytest.raises(DataError, match=r"tags\.csv: tags are separated by spaces, but there are.*" + re.escape(tag)):
        module(root)


def test_without_a_good_mask_skipping_goes_on_without_validation(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks" / "notes.txt").write_text("to do")
    data = module(root, on_error="skip")
    with pytest.warns(UserWarning, match=r"notes\.txt"):
        data.setup("fit")
    assert len(data.train_set) == 4
    assert data.val_dataloader() == []
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="nothing to score"):
        data.setup("validate")


def test_masks_that_were_not_checked_are_not_given(root: Path) -> None:
    with pytest.raises(ValueError, match="with_mask"):
        FolderDataset(root).view(with_mask=True)
