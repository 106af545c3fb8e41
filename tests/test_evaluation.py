"""Scores of folders of masks: what is counted, what is written, and errors that name the file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.coco_fake import SIZES, annotations
from wsss_contrast import cli, evaluation
from wsss_contrast.data import VOC_CLASSES, COCODataset, DataError
from wsss_contrast.evaluation import evaluate
from wsss_contrast.pictures import mask_image

# Two masks over the ids 0, 1, 2. All of the third row of `b` is ignored in the truth.
TRUTH = {
    "a": [[0, 0, 0, 0], [1, 1, 1, 1]],
    "b": [[0, 0, 0], [2, 2, 0], [255, 255, 255]],
}
MASKS = {
    "a": [[0, 0, 1, 1], [1, 1, 1, 0]],
    "b": [[0, 0, 0], [2, 2, 2], [1, 2, 0]],
}
# By hand. Background: 5 right, 8 true, 6 predicted. 1: 3, 4, 5. 2: 2, 2, 3.
IOU = [5 / 9, 3 / 6, 2 / 3]
PRECISION = [5 / 6, 3 / 5, 2 / 3]
RECALL = [5 / 8, 3 / 4, 2 / 2]
MEAN = sum(IOU) / 3


def write(folder: Path, masks: dict[str, list[list[int]]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, mask in masks.items():
        mask_image(np.array(mask)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write(tmp_path / "masks", MASKS)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write(tmp_path / "truth", TRUTH | {"more": [[7]]})  # there may be more of them


def run(masks: Path, truth: Path, *options: str, classes: str | None = "one two") -> list[list[str]]:
    """The rows of the csv file that the command writes."""
    out = masks.parent / "out"
    of_classes = [] if classes is None else ["--classes", *classes.split()]
    evaluation.main([str(masks), str(truth), "--out", str(out), *of_classes, *options])
    assert sorted(path.name for path in out.iterdir()) == ["scores.csv", "sheet.png"]
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.reader(file))


def percent(*values: float) -> list[str]:
    return [f"{100 * value:.2f}" for value in values]


# --- scores


def test_a_known_confusion(masks: Path, truth: Path) -> None:
    """Also: 255 in the truth is not counted, whatever the mask has there."""
    scores = evaluate(masks, truth, [0, 1, 2])
    assert scores.iou.tolist() == pytest.approx(IOU)
    assert scores.precision.tolist() == pytest.approx(PRECISION)
    assert scores.recall.tolist() == pytest.approx(RECALL)
    assert scores.miou == pytest.approx(MEAN)


def test_perfect_masks(truth: Path, tmp_path: Path) -> None:
    perfect = {name: np.where(np.array(mask) == 255, 0, mask).tolist() for name, mask in TRUTH.items()}
    scores = evaluate(write(tmp_path / "perfect", perfect), truth, [0, 1, 2])
    for column in (scores.iou, scores.precision, scores.recall):
        assert column.tolist() == [1, 1, 1]
    assert scores.miou == 1


def test_counts_are_over_all_masks_and_no_mean_over_them(masks: Path, truth: Path) -> None:
    each = [evaluate(masks, truth, [0, 1, 2], [name]).iou[0].item() for name in MASKS]
    assert each == pytest.approx([2 / 5, 3 / 4])
    assert evaluate(masks, truth, [0, 1, 2]).iou[0] == pytest.approx(5 / 9) != pytest.approx(sum(each) / 2)


def test_grey_masks_count_as_palette_masks_do(masks: Path, truth: Path) -> None:
    for name, mask in TRUTH.items():
        Image.fromarray(np.array(mask, np.uint8)).save(truth / f"{name}.png")
    assert evaluate(masks, truth, [0, 1, 2]).miou == pytest.approx(MEAN)


def test_absent_classes(masks: Path, truth: Path) -> None:
    left_out, counted = (evaluate(masks, truth, [0, 1, 2, 3, 4], count_absent=absent) for absent in (False, True))
    assert left_out.miou == pytest.approx(sum(IOU) / 3)
    assert counted.miou == pytest.approx(sum(IOU) / 5)
    assert all(math.isnan(value) for value in counted.iou.tolist()[3:])


# --- the command


def test_csv_and_table(masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(masks, truth)
    assert rows == [
        ["class", "iou", "precision", "recall"],
        *([name, *percent(IOU[k], PRECISION[k], RECALL[k])] for k, name in enumerate(("background", "one", "two"))),
        ["mean", *percent(MEAN), "", ""],
    ]
    out = masks.parent / "out"
    assert capsys.readouterr().out.splitlines() == [
        "               IoU  precision  recall",
        "background    55.6       83.3    62.5",
        "one           50.0       60.0    75.0",
        "two           66.7       66.7   100.0",
        "mean IoU      57.4",
        f"2 masks. Written: {out / 'scores.csv'}, {out / 'sheet.png'}",
    ]


@pytest.mark.parametrize(
    ("option", "mean", "said"),
    [((), MEAN, "left out of the mean"), (("--count-absent",), sum(IOU) / 4, "counted as 0")],
)
def test_absent_classes_are_named(
    option: tuple[str, ...], mean: float, said: str, masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(masks, truth, *option, classes="one two three")
    assert rows[-2:] == [["three", "", "", ""], ["mean", *percent(mean), "", ""]]
    shown = capsys.readouterr().out
    assert f"in no mask, and {said}: three\n" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("three")] == [["three", "-", "-", "-"]]


def test_without_absent_classes_nothing_is_said_of_them(
    masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(masks, truth, "--count-absent")
    assert "in no mask" not in capsys.readouterr().out


def test_a_choice_of_voc_classes(tmp_path: Path) -> None:
    """The order of the rows is that given. Truth of other classes (15, person) is not counted, nor what lies there."""
    truth = write(tmp_path / "truth", {"a": [[0, 8, 8, 12, 12, 15, 15, 15, 255]]})
    masks = write(tmp_path / "masks", {"a": [[0, 8, 12, 12, 12, 0, 8, 12, 8]]})
    rows = run(masks, truth, "--voc-ids", classes="dog cat")
    assert rows[1:] == [
        ["background", "100.00", "100.00", "100.00"],
        ["dog", *percent(2 / 3, 2 / 3, 1)],
        ["cat", *percent(1 / 2, 1, 1 / 2)],
        ["mean", *percent((1 + 2 / 3 + 1 / 2) / 3), "", ""],
    ]


def test_truth_of_no_class_of_voc(tmp_path: Path) -> None:
    folder = write(tmp_path / "masks", {"a": [[0, 8]]})
    truth = write(tmp_path / "truth", {"a": [[8, 21]]})
    with pytest.raises(SystemExit, match=r"truth/a\.png: has the ids \[21\], expected only \[0, 1, .*, 20, 255\]"):
        run(folder, truth, "--voc-ids", classes="cat")


def test_a_mask_has_ids_for_254_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "masks", {"a": [[0, 254]]})
    names = [f"class{number}" for number in range(1, 256)]
    rows = run(folder, folder, classes=" ".join(names[:254]))
    assert [row[0] for row in rows if row[1] == "100.00"] == ["background", "class254", "mean"]
    with pytest.raises(SystemExit, match=r"^wsss-contrast: --classes: 255 classes, but a mask has ids for 254"):
        run(folder, folder, classes=" ".join(names))


@pytest.mark.parametrize("options", [(), ("--voc-ids",)])
def test_without_classes_they_are_those_of_voc(options: tuple[str, ...], tmp_path: Path) -> None:
    ids = {"a": [[0, 20, 8, 8]]}
    rows = run(write(tmp_path / "masks", ids), write(tmp_path / "truth", ids), *options, classes=None)
    assert [row[0] for row in rows[1:-1]] == ["background", *VOC_CLASSES]
    assert [row[0] for row in rows[1:-1] if row[1]] == ["background", "cat", "tvmonitor"]
    assert rows[-1][1] == "100.00"


def test_a_list_chooses_masks(masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (masks / "b.png").rename(masks / "b 2.0.png")  # a photo may be called so
    (truth / "b.png").rename(truth / "b 2.0.png")
    listed = masks.parent / "list.txt"
    listed.write_text("\ufeffb 2.0\r\n\n", encoding="utf-8")
    rows = run(masks, truth, "--list", str(listed))
    assert [row[1] for row in rows[1:]] == [*percent(3 / 4), "", *percent(2 / 3), *percent((3 / 4 + 2 / 3) / 2)]
    assert "\n1 masks. Written" in capsys.readouterr().out


def test_a_list_of_pairs_as_voc_data_has_it(masks: Path, truth: Path) -> None:
    listed = masks.parent / "list.txt"
    listed.write_text("/JPEGImages/a.jpg /SegmentationClassAug/a.png\n")
    assert run(masks, truth, "--list", str(listed))[2][1:] == percent(IOU[1], PRECISION[1], RECALL[1])


def cell(sheet: Path, row: int, column: int) -> np.ndarray:
    """A picture of the sheet; pictures are 160 pixels wide."""
    left, top = 4 + 164 * column, 18 + 164 * row
    return np.asarray(Image.open(sheet).convert("RGB"))[top : top + 80, left : left + 160]


@pytest.mark.parametrize("suffix", [None, ".jpg", ".jpeg", ".png", ".JPG", ".tif", ".BMP"])
def test_the_sheet_shows_photo_truth_and_mask(suffix: str | None, masks: Path, truth: Path) -> None:
    options: list[str] = []
    if suffix is not None:
        (masks.parent / "photos").mkdir()
        for name, mask in TRUTH.items():
            photo = Image.new("RGB", (len(mask[0]), len(mask)), (250, 250, 250))
            photo.save(masks.parent / "photos" / f"{name}{suffix}")
        options = ["--photos", str(masks.parent / "photos")]
    run(masks, truth, *options)
    sheet = masks.parent / "out" / "sheet.png"
    assert Image.open(sheet).size == (3 * 164 + 4, 18 + 2 * 164 + 4)
    assert abs(int(cell(sheet, 0, 0).mean()) - (128 if suffix is None else 250)) <= 2
    # Near the corners: class 1 is dark red in VOC's palette, the background is grey.
    red = {}
    for column in (1, 2):
        picture = cell(sheet, 0, column).astype(int)
        red[column] = [bool(picture[y, x, 0] - picture[y, x, 1] > 30) for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]
    assert red == {1: [False, False, True, True], 2: [False, True, True, False]}


def test_masks_of_stored_and_of_upright_photos(tmp_path: Path) -> None:
    """VOC's masks belong to the photo as it is stored, those of a `FolderDataset` to the upright one."""
    stored = np.array([[0, 1, 1, 1], [0, 1, 1, 1]])
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.1.jpg").write_text("the photo of a.1.png")
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    Image.new("RGB", (4, 2), (250, 250, 250)).save(photos / "a.jpg", exif=on_its_side)
    for name, mask in {"stored": stored, "upright": stored.T}.items():
        folder = write(tmp_path / name, {"a": mask.tolist()})
        run(folder, folder, "--photos", str(photos), classes="one")
        assert cell(tmp_path / "out" / "sheet.png", 0, 0)[:, :80].mean() > 245


def test_the_sheet_has_eight_rows_spread_over_all_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    real = evaluation.read_mask
    many = {f"{number:02d}": [[0, 1]] for number in range(20)}
    masks, truth = write(tmp_path / "masks", many), write(tmp_path / "truth", many)
    monkeypatch.setattr(evaluation, "read_mask", lambda path: shown.append(path) or real(path))
    run(masks, truth)
    rows = [int(path.stem) for path in shown[40:] if path.parent == masks]  # after those that are scored
    assert len(rows) == 8
    assert (rows[0], rows[-1]) == (0, 19)
    assert set(np.diff(rows)) == {2, 3}
    assert Image.open(tmp_path / "out" / "sheet.png").size[1] == 18 + 8 * 164 + 4


def test_is_a_command_of_the_program(masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(masks.parent / "elsewhere" / "out")
    cli.main(["evaluate", str(masks), str(truth), "--classes", "one", "two", "--out", out])
    assert "mean IoU      57.4" in capsys.readouterr().out
    assert (Path(out) / "scores.csv").is_file()
    with pytest.raises(SystemExit, match=r"^wsss-contrast: .*nowhere: no such folder"):
        cli.main(["evaluate", str(masks.parent / "nowhere"), str(truth)])


# --- annotations of COCO


@pytest.fixture
def coco_masks(coco_root: Path) -> Path:
    """Masks of the fake: of the image 9, person and cat are right, the lower half of all is background."""
    pytest.importorskip("pycocotools")
    mask = np.zeros(SIZES[9], int)
    mask[4:20, 4:20] = 1
    mask[10:14, 10:14] = 2
    mask[12:] = 0
    of_image = {f"COCO_val2014_{9:012d}": mask, f"COCO_val2014_{4:012d}": np.zeros(SIZES[4], int)}
    return write(coco_root / "masks", {name: mask.tolist() for name, mask in of_image.items()})


# Of the image 9 (24x32): the crowd, 8 columns, is not counted but where the person (columns 4 to 20) lies. Of the image
# 4 (20x20), 8 pixels are dog. The fake's classes are person, cat, dog.
PERSON, CAT, DOG = 16 * 16 - 16, 16, 8
COUNTED = 24 * 32 - 8 * 24 + 4 * 16
BACKGROUND = COUNTED - PERSON - CAT + 400 - DOG
MISSED = 8 * 16 - 8 + 8 + DOG  # of person, cat and dog
COCO_IOU = [BACKGROUND / (BACKGROUND + MISSED), (PERSON / 2) / PERSON, (CAT / 2) / CAT, 0]


def test_truth_of_annotations(coco_masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as of a folder with these masks."""
    path = annotations(coco_masks.parent, "val2014")
    rows = run(coco_masks, path, classes=None)
    assert [row[0] for row in rows[1:]] == ["background", "person", "cat", "dog", "mean"]
    assert [row[1] for row in rows[1:]] == percent(*COCO_IOU, sum(COCO_IOU) / 4)
    data = COCODataset(coco_masks.parent, "val2014", with_mask=True)
    true = {sample["name"]: sample["mask"].tolist() for sample in (data[0], data[2])}
    assert run(coco_masks, write(coco_masks.parent / "true", true), classes="person cat dog") == rows


def test_the_sheet_of_annotations(coco_masks: Path) -> None:
    root = coco_masks.parent
    run(coco_masks, annotations(root, "val2014"), "--photos", str(root / "val2014"), classes=None)
    with Image.open(root / "out/sheet.png") as sheet:
        assert sheet.height == 18 + 2 * 164 + 4
    row = np.asarray(Image.open(root / "out/sheet.png").convert("RGB"))[18 + 164 :, 4:].astype(int)
    picture = row[:120, 164:324]  # the truth of the image 9, 5 pixels for each
    assert picture[60, 15].min() > 160  # the crowd is whitish
    assert picture[30, 60, 0] - picture[30, 60, 1] > 30  # a person is dark red
    assert picture[60, 60, 1] - picture[60, 60, 0] > 30  # a cat is dark green


def test_a_choice_of_classes_of_annotations(coco_masks: Path) -> None:
    """As a data module with these `classes` predicts them: their ids are of this order, and the others not counted."""
    rows = run(coco_masks, annotations(coco_masks.parent, "val2014"), classes="dog person cat")
    assert [row[1] for row in rows[1:4]] == percent(COCO_IOU[0], 0, 0)
    (coco_masks / f"COCO_val2014_{4:012d}.png").unlink()
    with pytest.raises(SystemExit, match=r"000009\.png: has the ids \[2\], expected only \[0, 1\]"):
        run(coco_masks, annotations(coco_masks.parent, "val2014"), classes="person")
    path = coco_masks / f"COCO_val2014_{9:012d}.png"
    with Image.open(path) as image:
        mask = np.asarray(image).copy()
    mask[mask == 2] = 1
    mask_image(mask).save(path)
    rows = run(coco_masks, annotations(coco_masks.parent, "val2014"), classes="person")
    assert rows[2][1] == percent((PERSON / 2) / PERSON)[0]  # what lies on the cat is not counted


COCO_PROBLEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "ids of VOC": (("--voc-ids",), r"--voc-ids: .*instances_val2014\.json has other ids"),
    "unknown class": (("--classes", "sheep"), "--classes: unknown class 'sheep'; known classes: person, cat, dog"),
    "no image": (("--list", "list.txt"), r"instances_val2014\.json: has no image other \(and 1 more\)"),
}


@pytest.mark.parametrize("case", COCO_PROBLEMS)
def test_problem_with_annotations(case: str, coco_masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(coco_masks.parent)
    write(coco_masks, {"other": [[0]], "more": [[0]]})
    Path("list.txt").write_text(f"COCO_val2014_{9:012d}\nother\nmore\n")
    options, message = COCO_PROBLEMS[case]
    with pytest.raises(SystemExit, match=rf"^wsss-contrast: .*{message}"):
        run(coco_masks, annotations(coco_masks.parent, "val2014"), *options, classes=None)
    assert not Path("out").exists()


def test_annotations_that_are_not_in_order(coco_masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = annotations(coco_masks.parent, "val2014")

    def refused(message: str) -> None:
        with pytest.raises(SystemExit, match=rf"^wsss-contrast: .*{message}"):
            run(coco_masks, path, classes=None)

    name = f"COCO_val2014_{4:012d}"
    write(coco_masks, {name: [[0] * 19] * 20})
    refused(rf"masks/{name}\.png: the mask is 19x20 pixels, its image .*val2014\.json/{name} is 20x20")
    write(coco_masks, {name: [[4] * 20] * 20})
    refused(rf"masks/{name}\.png: has the ids \[4\]")
    monkeypatch.setattr("wsss_contrast.data.coco.find_spec", lambda _: None)
    refused(r"masks of COCO need the extra: .*\[coco\]")
    monkeypatch.undo()
    path.write_text("{")
    refused(r"instances_val2014\.json: cannot be read as json")
    path.unlink()
    refused(r"instances_val2014\.json: no such annotations\. Get it:")


# --- errors


def _mask(path: str, mask: list[list[int]]) -> Callable[[Path], None]:
    return lambda root: mask_image(np.array(mask)).save(root / path)


def _truncate(root: Path) -> None:
    rng = np.random.default_rng(0)
    mask_image(rng.integers(0, 3, (64, 64))).save(root / "masks/b.png")
    (root / "masks/b.png").write_bytes((root / "masks/b.png").read_bytes()[:400])


def _list(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "list.txt").write_text(text, encoding="latin-1") and None


def _photos(*names: str, size: tuple[int, int] = (4, 2)) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / "photos").mkdir()
        for name in names:
            Image.new("RGB", size).save(root / "photos" / name)

    return make


def _empty(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()


LIST, PHOTOS = ("--list", "list.txt"), ("--photos", "photos")
PROBLEMS: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no masks folder": (lambda root: (root / "masks").rename(root / "other"), (), r"masks: no such folder"),
    "no truth folder": (lambda root: (root / "truth").rename(root / "other"), (), r"truth: no such folder"),
    "empty folder": (_empty, (), r"masks: has no masks"),
    "no truth of a mask": (lambda root: (root / "truth/b.png").unlink(), (), r"truth/b\.png: no such mask"),
    "no mask of the list": (_list("a\nc\nd\n"), LIST, r"masks/c\.png \(and 1 more\): no such mask"),
    "no list": (lambda root: None, LIST, r"No such file.*list\.txt"),
    "empty list": (_list("\n"), LIST, r"list\.txt: lists no image"),
    "name twice": (_list("a\nb\na\n"), LIST, r"list\.txt, line 3: a is listed twice"),
    "list of another encoding": (_list("\xe9"), LIST, r"list\.txt: is no UTF-8 text"),
    "other ids": (_mask("masks/b.png", [[0, 3, 7]] * 3), (), r"masks/b\.png: has the ids \[3, 7\].*only \[0, 1, 2\]"),
    "255": (_mask("masks/b.png", [[0, 255, 1]] * 3), (), r"masks/b\.png: has the ids \[255\]"),
    "other ids where the truth is 255": (
        _mask("masks/b.png", [[0, 0, 0], [0, 0, 0], [9, 0, 0]]),
        (),
        r"masks/b\.png: has the ids \[9\]",
    ),
    "other ids in the truth": (
        _mask("truth/b.png", [[0, 77, 255], [0, 3, 1], [2, 0, 0]]),
        (),
        r"truth/b\.png: has the ids \[3, 77\], expected only \[0, 1, 2, 255\]",
    ),
    "another size": (_mask("masks/b.png", [[0, 1, 1]] * 2), (), r"masks/b\.png: .* 3x2 pixels.*truth/b\.png is 3x3"),
    "another size of the truth": (_mask("truth/a.png", [[0] * 5] * 2), (), r"masks/a\.png: .* 4x2 .*a\.png is 5x2"),
    "corrupt mask": (_truncate, (), r"masks/b\.png: cannot be read"),
    "no image": (lambda root: (root / "truth/b.png").write_text("mask"), (), r"truth/b\.png: cannot be read"),
    "RGB mask": (lambda root: Image.new("RGB", (3, 3)).save(root / "masks/b.png"), (), r"masks/b\.png: .*mode RGB"),
    "RGB truth": (lambda root: Image.new("RGB", (3, 3)).save(root / "truth/b.png"), (), r"truth/b\.png: .*mode RGB"),
    "unknown class": (
        lambda root: None,
        ("--voc-ids",),
        r"--classes: unknown class 'one'; known classes: .*boat",
    ),
    "class twice": (lambda root: None, ("--classes", "one", "one"), r"--classes: class 'one' is named twice"),
    "background as a class": (lambda root: None, ("--classes", "background", "one"), r"'background' is named twice"),
    "sheet among the masks": (lambda root: None, ("--out", "./masks"), r"--out masks: sheet\.png would lie among the"),
    "sheet among the truth": (lambda root: None, ("--out", "truth"), r"--out truth: sheet\.png would lie among the"),
    "no photos": (lambda root: None, PHOTOS, r"photos: has no photo a"),
    "no photo": (_photos("a.png"), PHOTOS, r"photos: has no photo b"),
    "other files": (_photos("a.png", "b.gif"), PHOTOS, r"photos: has no photo b"),
    "photo of another size": (_photos("a.jpg", "b.jpg"), PHOTOS, r"b\.png: .* 3x3 pixels, .*photos/b\.jpg is 4x2"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_is_named_and_nothing_is_written(
    case: str,
    masks: Path,
    truth: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, options, message = PROBLEMS[case]
    change(masks.parent)
    monkeypatch.chdir(masks.parent)
    with pytest.raises(SystemExit, match=rf"^wsss-contrast: .*{message}"):
        run(masks, truth, *options)
    assert not (masks.parent / "out").exists()
    assert capsys.readouterr().out == ""


def test_what_was_not_written_is_not_said_to_be(masks: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (masks.parent / "out").write_text("a file")
    with pytest.raises(SystemExit, match=r"^wsss-contrast: .*File exists: '.*out'"):
        run(masks, truth)
    shown = capsys.readouterr().out
    assert "mean IoU      57.4" in shown
    assert "Written" not in shown


def test_the_function_raises_a_data_error(masks: Path, truth: Path) -> None:
    with pytest.raises(DataError, match=r"b\.png: has the ids \[2\]"):
        evaluate(masks, truth, [0, 1])
    with pytest.raises(DataError, match=r"masks/c\.png: cannot be read .*No such file"):
        evaluate(masks, truth, [0, 1, 2], ["a", "c"])
    with pytest.raises(DataError, match=r"truth/b\.png: has the ids \[2\]"):
        evaluate(write(masks.parent / "zeros", {"b": np.zeros((3, 3), int).tolist()}), truth, [0, 1])


def test_nothing_to_count_is_an_error(tmp_path: Path) -> None:
    for folder, value in (("masks", 0), ("truth", 255)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match="truth: no pixel to count"):
        evaluate(tmp_path / "masks", tmp_path / "truth", [0, 1])
