"""The VOC layout: tags from every source, mapped masks, and an error that names the file."""

import pickle
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from wsss_contrast.data import VOC_CLASSES, DataError, VOCDataModule, VOCDataset, denormalize
from wsss_contrast.data.voc import GET_VOC, VOC_COUNTS, add_sbd

CLASSES = ["person", "cat", "dog"]  # on purpose not in VOC order
EXPECTED = [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_voc_classes_are_in_id_order():
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)  # VOC numbers its classes alphabetically
    assert VOC_CLASSES.index("person") + 1 == 15


@pytest.mark.parametrize("tags", ["tags.csv", "xml", "masks", "absolute"])
def test_tags_from_every_source(voc_root, tags):
    if tags == "absolute":
        tags = shutil.move(voc_root / "tags.csv", voc_root / "elsewhere.csv")
    data = VOCDataset(voc_root, "train", CLASSES, tags=tags)
    assert data.class_names == CLASSES
    assert torch.stack([data[i]["tags"] for i in range(3)]).tolist() == EXPECTED


def test_sample_contract(voc_root):
    sample = VOCDataset(voc_root, "train", CLASSES, with_mask=True)[0]
    assert set(sample) == {"image", "tags", "name", "mask"}
    assert sample["image"].dtype == torch.float32
    assert sample["image"].shape == (3, 40, 60)
    assert sample["tags"].dtype == torch.float32
    assert sample["tags"].shape == (3,)
    assert sample["mask"].dtype == torch.int64
    assert sample["mask"].shape == (40, 60)
    assert sample["name"] == "a_1"
    assert set(VOCDataset(voc_root, "train", CLASSES)[0]) == {"image", "tags", "name"}
    with Image.open(voc_root / "JPEGImages" / "a_1.jpg") as image:
        np.testing.assert_array_equal(denormalize(sample["image"]), np.asarray(image))


def test_masks_are_mapped(voc_root):
    data = VOCDataset(voc_root, "train", CLASSES, with_mask=True)
    # first column: the ignored row, two rows of each class, background
    assert data[0]["mask"][:6, 0].tolist() == [255, 2, 2, 1, 1, 0]  # cat, person
    assert data[1]["mask"][:4, 0].tolist() == [255, 3, 3, 0]  # dog
    assert data[2]["mask"][:6, 0].tolist() == [255, 255, 255, 2, 2, 0]  # aeroplane is not chosen; cat
    full = VOCDataset(voc_root, "train", with_mask=True)
    assert full[2]["mask"][:6, 0].tolist() == [255, 1, 1, 8, 8, 0]


def test_a_chosen_class_beside_ignored_pixels_only(voc_root):
    data = VOCDataset(voc_root, "train", ["horse"], tags="masks", with_mask=True)
    assert data[0]["tags"].tolist() == [0]
    assert set(data[0]["mask"].unique().tolist()) == {0, 255}


def test_segmentation_class_is_the_second_choice(voc_root, mask_writer):
    (voc_root / "SegmentationClass").mkdir()
    for name in ("a_1", "a_2", "a_3"):
        with Image.open(voc_root / "JPEGImages" / f"{name}.jpg") as image:
            mask_writer(voc_root / "SegmentationClass" / f"{name}.png", image.size[::-1], (12,))
    assert 3 not in VOCDataset(voc_root, "train", CLASSES, with_mask=True)[0]["mask"]
    shutil.rmtree(voc_root / "SegmentationClassAug")
    assert 3 in VOCDataset(voc_root, "train", CLASSES, with_mask=True)[0]["mask"]


def test_split_forms(voc_root, tmp_path):
    lists = voc_root / "ImageSets/Segmentation"
    (lists / "pairs.txt").write_text(
        "/JPEGImages/a_2.jpg /SegmentationClassAug/a_2.png\n\n/JPEGImages/a_1.jpg\n", encoding="utf-8"
    )
    assert VOCDataset(voc_root, "pairs").names == ["a_2", "a_1"]
    own = tmp_path / "own.list"
    own.write_bytes(b"\xef\xbb\xbfa_3\r\na_1\r\n")  # as Windows writes it
    assert VOCDataset(voc_root, own).names == ["a_3", "a_1"]
    assert VOCDataset(voc_root, str(own)).names == ["a_3", "a_1"]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(voc_root, mode):
    path = voc_root / "JPEGImages" / "a_1.jpg"
    with Image.open(path) as image:
        image.convert(mode).save(path)
    assert VOCDataset(voc_root, "train")[0]["image"].shape == (3, 40, 60)


def test_an_annotation_names_objects_not_parts(voc_root):
    (voc_root / "Annotations" / "a_2.xml").write_text(
        "<annotation><object><name>dog</name><part><name>head</name></part></object></annotation>"
    )
    assert VOCDataset(voc_root, "train", CLASSES, tags="xml")[1]["tags"].tolist() == [0, 0, 1]


def test_tags_are_not_shared_between_samples(voc_root):
    data = VOCDataset(voc_root, "train", CLASSES)
    data[0]["tags"].zero_()
    assert data[0]["tags"].tolist() == EXPECTED[0]


def _write(path: str, text: str):
    return lambda root: (root / path).write_text(text)


def _remove(path: str):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


LIST = "ImageSets/Segmentation/train.txt"
AT_INIT = {
    "missing list": (_remove(LIST), {}, r"train\.txt: no such list"),
    "empty list": (_write(LIST, "\n"), {}, r"train\.txt: lists no image"),
    "name twice": (_write(LIST, "a_1\na_1\n"), {}, r"train\.txt, line 2: a_1 is listed twice"),
    "two columns": (_write(LIST, "a_1 1\na_2 -1\n"), {}, r"train\.txt, line 1: expected one name.*'a_1 1'"),
    "missing image": (_remove("JPEGImages/a_2.jpg"), {}, r"missing image: .*JPEGImages.a_2\.jpg$"),
    "missing images": (
        lambda root: [(root / f"JPEGImages/{name}.jpg").unlink() for name in ("a_1", "a_3")],
        {},
        r"missing image: .*a_1\.jpg \(and 1 more\)$",
    ),
    "no images": (_remove("JPEGImages"), {}, r"(?s)JPEGImages: no such folder, all images are missing\. Get it:.*wget"),
    "no annotations": (
        _remove("Annotations"),
        {"tags": "xml"},
        r"(?s)Annotations: no such folder, all annotations are missing\. Get it:.*wget",
    ),
    "no tags file": (_remove("tags.csv"), {}, r"tags\.csv: no such tags file"),
    "no line": (_write("tags.csv", "name,tags\na_1,cat\na_3,\n"), {}, r"tags\.csv: has no line for a_2$"),
    "wrong header": (_write("tags.csv", "file,labels\na_1,cat\n"), {}, r"tags\.csv: the header.*'file'"),
    "empty file": (_write("tags.csv", ""), {}, r"tags\.csv: the header"),
    "unknown tag": (_write("tags.csv", "name,tags\na_1,cat unicorn\n"), {}, r"tags\.csv, line 2: 'unicorn'"),
    "tags with commas": (
        _write("tags.csv", "name,tags\na_1,cat,dog\n"),
        {},
        r"tags\.csv, line 2: expected two",
    ),
    "one column": (_write("tags.csv", "name,tags\na_1\n"), {}, r"tags\.csv, line 2: expected two"),
    "line twice": (
        _write("tags.csv", "name,tags\na_1,cat\na_1,dog\n"),
        {},
        r"line 3: a_1 has a line already",
    ),
    "no mask folder": (_remove("SegmentationClassAug"), {"with_mask": True}, r"no mask folder"),
    "no mask folder for tags": (_remove("SegmentationClassAug"), {"tags": "masks"}, r"no mask folder"),
    "missing mask": (
        _remove("SegmentationClassAug/a_3.png"),
        {"with_mask": True},
        r"missing mask: .*a_3\.png$",
    ),
    "missing annotation": (
        _remove("Annotations/a_1.xml"),
        {"tags": "xml"},
        r"missing annotation: .*a_1\.xml$",
    ),
    "broken annotation": (
        _write("Annotations/a_1.xml", "<a>"),
        {"tags": "xml"},
        r"a_1\.xml: cannot be read as XML",
    ),
    "unknown object": (
        _write("Annotations/a_1.xml", "<a><object><name>unicorn</name></object></a>"),
        {"tags": "xml"},
        r"a_1\.xml: 'unicorn' is not a VOC class",
    ),
    "no root": (lambda root: shutil.rmtree(root), {}, r"no such folder"),
}


@pytest.mark.parametrize("case", AT_INIT)
def test_what_is_wrong_shows_before_training(voc_root, case):
    VOCDataset(voc_root, "train", **AT_INIT[case][1])  # right so far
    change, arguments, message = AT_INIT[case]
    change(voc_root)
    with pytest.raises(DataError, match=message):
        VOCDataset(voc_root, "train", **arguments)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "unicorn"], "unknown class 'unicorn'"),
        (["background", "cat"], "unknown class 'background'"),
        (["cat", "dog", "cat"], "'cat' is named twice"),
        ([], "at least one class"),
    ],
)
def test_wrong_classes(voc_root, classes, message):
    with pytest.raises(ValueError, match=message):
        VOCDataset(voc_root, "train", classes)


def test_masks_are_not_needed_for_training(voc_root):
    shutil.rmtree(voc_root / "SegmentationClassAug")
    assert VOCDataset(voc_root, "train")[0]["name"] == "a_1"


def _truncate(root: Path) -> None:
    path = root / "JPEGImages" / "a_1.jpg"
    path.write_bytes(path.read_bytes()[:-400])


def _mask(pixels: np.ndarray):
    return lambda root: Image.fromarray(pixels).save(root / "SegmentationClassAug" / "a_1.png")


AT_READ = {
    "truncated image": (_truncate, r"a_1\.jpg: cannot be read as an image"),
    "no image": (_write("JPEGImages/a_1.jpg", "<html>"), r"a_1\.jpg: cannot be read as an image"),
    "broken mask": (_write("SegmentationClassAug/a_1.png", ""), r"a_1\.png: cannot be read as an image"),
    "mask of another size": (
        _mask(np.zeros((60, 40), np.uint8)),
        r"a_1\.png: the mask is 40x60.*a_1\.jpg is 60x40",
    ),
    "unknown id": (_mask(np.full((40, 60), 21, np.uint8)), r"a_1\.png: ids \[21\] are neither 0-20 nor 255"),
    "colours": (_mask(np.zeros((40, 60, 3), np.uint8)), r"a_1\.png: a mask must be an 8-bit.*mode RGB"),
}


@pytest.mark.parametrize("case", AT_READ)
def test_what_is_wrong_inside_a_file(voc_root, case):
    change, message = AT_READ[case]
    change(voc_root)
    data = VOCDataset(voc_root, "train", with_mask=True)
    with pytest.raises(DataError, match=message):
        data[0]
    assert data[1]["name"] == "a_2"


def test_an_error_in_a_worker_names_the_file(voc_root):
    _truncate(voc_root)
    loader = DataLoader(VOCDataset(voc_root, "train"), num_workers=1)
    with pytest.raises(DataError, match=r"a_1\.jpg"):
        list(loader)


def test_index_and_pickle(voc_root):
    data = VOCDataset(voc_root, "train")
    assert data[-1]["name"] == "a_3"
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]
    assert [sample["name"] for sample in data] == ["a_1", "a_2", "a_3"]
    assert torch.equal(pickle.loads(pickle.dumps(data))[0]["image"], data[0]["image"])


@pytest.mark.parametrize(("split", "length"), [("train_aug", 2000), ("train_mini", 500), ("val", 222)])
def test_photographs(animals, split, length):
    classes = ["cat", "cow", "dog", "horse", "person", "sheep"]
    data = VOCDataset(animals, split, classes, with_mask=True)
    assert len(data) == length
    by_mask = VOCDataset(animals, split, classes, tags="masks")
    for index in range(0, length, length // 20):
        sample = data[index]
        assert max(sample["image"].shape) == 320
        assert set(sample["mask"].unique().tolist()) <= {0, 1, 2, 3, 4, 5, 6, 255}
        assert sample["tags"].sum() >= 1
        # Every class in the mask is tagged. (Not the other way round: small objects may be 255.)
        assert (by_mask[index]["tags"] <= sample["tags"]).all()


def test_list_that_is_no_text(voc_root: Path) -> None:
    path = voc_root / "ImageSets/Segmentation/train.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"train\.txt.*UTF-8"):
        VOCDataset(voc_root, "train")


def test_official_counts(voc_root: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)train has 3 images, the field's list 1464 .*Get it:.*wget .*SBD"):
        VOCDataset(voc_root, "train", official=True)
    (voc_root / "ImageSets/Segmentation/mine.txt").write_text("a_1\n")
    assert len(VOCDataset(voc_root, "mine", official=True)) == 1  # a list of one's own has no number to have


@pytest.mark.parametrize("split", ["train_aug", "train", "val", "trainval", "test"])
@pytest.mark.parametrize("options", [{}, {"tags": "xml"}, {"tags": "masks"}, {"tags": "none", "classes": ["dog"]}])
def test_the_number_is_of_the_list(voc_root: Path, split: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the list lies, and wherever tags, masks and labels come from."""
    data = VOCDataModule(str(voc_root), split, split, predict_split=split, crop_size=16, official=True, **options)
    (voc_root / "lists").mkdir()
    for folder in ("ImageSets/Segmentation", "lists"):
        (voc_root / folder / f"{split}.txt").write_text("a_1\na_2\n")
    data.labels = str(voc_root / "SegmentationClassAug")
    for stage in ("fit", "validate", "predict"):
        with pytest.raises(DataError, match=rf"{split} has 2 images, the field's list {VOC_COUNTS[split]} "):
            data.setup(stage)
    with pytest.raises(DataError, match=r"has 2 images, the field's list"):
        VOCDataset(voc_root, voc_root / f"lists/{split}.txt", official=True, **options)
    monkeypatch.setitem(VOC_COUNTS, split, 2)
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.predict_set)) == (2, 2, 2)
    assert len(VOCDataset(voc_root, voc_root / f"lists/{split}.txt", official=True, **options)) == 2


def test_how_to_get_what_is_missing(voc_root: Path) -> None:
    for root, split in ((voc_root / "nowhere", "train"), (voc_root, "train_aug")):
        with pytest.raises(DataError, match=r"(?s)no such (folder|list).*wget http.*wget http.*add_sbd"):
            VOCDataset(root, split)
    with pytest.raises(DataError, match=r"(?s)test\.txt: no such list, .*VOC2012test\.tar"):
        VOCDataset(voc_root, "test")
    (voc_root / "ImageSets/Segmentation/test.txt").write_text("a_1\n")
    with pytest.raises(DataError, match=r"(?s)test has 1 images, the field's list 1456 .*VOC2012test\.tar"):
        VOCDataset(voc_root, "test", official=True)


@pytest.fixture
def sbd(voc_root: Path) -> Path:
    """SBD beside VOC: it has a mask of `a_1`, which VOC has too, and of `a_3`; VOC's masks are of `a_1` and `a_2`."""
    (voc_root / "SegmentationClassAug").rename(voc_root / "SegmentationClass")
    (voc_root / "SegmentationClass/a_3.png").unlink()
    for split, names in {"train": "a_1", "val": "a_2"}.items():
        (voc_root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{names}\n")
    folder = voc_root / "benchmark_RELEASE/dataset"
    (folder / "cls").mkdir(parents=True)
    (folder / "train.txt").write_text("a_3\na_2\n")
    (folder / "val.txt").write_text("a_1\n")
    for name in ("a_1", "a_2", "a_3"):
        mask = np.full((20, 20), 9, np.uint8)
        mask[:5] = 0
        savemat(folder / f"cls/{name}.mat", {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": mask}})
    return folder.parent


def test_sbd_is_added_by_the_command(sbd: Path, voc_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = shlex.split(GET_VOC.splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    (voc_root / "VOC2012").symlink_to(voc_root)
    monkeypatch.chdir(voc_root)
    exec(command[2], {})
    data = VOCDataset(voc_root, "train_aug", tags="masks", with_mask=True)
    assert data.names == ["a_1", "a_3"]  # of SBD and of `train`; `a_2` is of `val`
    assert data[0]["mask"][:6, 0].tolist() == [255, 8, 8, 15, 15, 0]  # VOC's own mask where it has one
    assert data[1]["mask"][4:6].unique().tolist() == [0, 9]
    assert VOCDataset(voc_root, "val", tags="masks", with_mask=True)[0]["mask"].unique().tolist() == [0, 12, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("benchmark_RELEASE/dataset/val.txt"), r"(?s)dataset/val\.txt: no such list\. Get it:.*benchmark\.tgz"),
        (_remove("ImageSets/Segmentation/val.txt"), r"Segmentation/val\.txt: no such list"),
        (_remove("benchmark_RELEASE/dataset/cls/a_3.mat"), r"a_3\.mat: cannot be read as a mask of SBD"),
        (_remove("SegmentationClass/a_1.png"), r"missing mask: .*SegmentationClass/a_1\.png$"),
        (_remove("SegmentationClass/a_2.png"), r"missing mask: .*SegmentationClass/a_2\.png$"),
        (_remove("SegmentationClass"), r"SegmentationClass: no such folder, all masks are missing\."),
        (_write("benchmark_RELEASE/dataset/cls/a_3.mat", ""), r"a_3\.mat: cannot be read as a mask of SBD"),
        (_write("benchmark_RELEASE/dataset/cls/a_3.mat", "<html>" * 99), r"a_3\.mat: cannot be read as a mask of SBD"),
        (
            lambda root: savemat(root / "benchmark_RELEASE/dataset/cls/a_3.mat", {"GTinst": 1}),
            r"a_3\.mat: cannot be read as a mask of SBD.*GTcls",
        ),
    ],
)
def test_what_sbd_lacks_is_named(change, message: str, sbd: Path, voc_root: Path) -> None:
    change(voc_root)
    with pytest.raises(DataError, match=message):
        add_sbd(sbd, voc_root)
    assert not (voc_root / "ImageSets/Segmentation/train_aug.txt").exists()
