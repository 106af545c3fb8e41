"""Masks on disk: a run that goes on where another ended, a folder that knows what made it, and soft maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsss_contrast.callbacks import MaskWriter, mask_writer
from wsss_contrast.data import (
    SHAPES_CLASSES,
    FolderDataModule,
    ShapesDataModule,
    ShapesDataset,
    VOCDataModule,
    WSSSDataModule,
)
from wsss_contrast.modules import CAM, SEAM
from wsss_contrast.refine import PixelAdaptiveRefinement

from ..modules.tiny import CLASSES, OPTIONS, RandomPhotos, cam, loader, trainer

NAMES = [f"val_{index:05d}" for index in range(5)]


def shapes(**options: Any) -> ShapesDataModule:
    return ShapesDataModule(train_length=1, val_length=5, size=48, **options)


def model(num_classes: int = len(SHAPES_CLASSES), seed: int = 0, kind: type[CAM] = CAM, **options: Any) -> CAM:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return kind(num_classes, **OPTIONS | options)


def predict(out: Path, module: CAM | None = None, data: WSSSDataModule | None = None, soft: bool = False) -> list[str]:
    """The names of the photos that went through the network, in order."""
    module = model() if module is None else module
    seen: list[str] = []
    passes: list[int] = []
    step = module.predict_step

    def predict_step(batch: dict[str, Any], *args: Any) -> dict[str, Any]:
        seen.extend(batch["name"])
        return step(batch, *args)

    module.predict_step = predict_step  # type: ignore[method-assign]
    hook = module.backbone.register_forward_hook(lambda *_: passes.append(1))
    host = trainer(out.parent, callbacks=[MaskWriter(str(out), soft)])
    try:
        assert not host.predict(module, datamodule=shapes() if data is None else data)
    finally:
        hook.remove()
        del module.predict_step
    assert bool(passes) == bool(seen)
    return seen


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What is in a folder, also hidden, and when it was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "masks"


# --- a run that goes on


def test_masks_are_what_the_module_gives(out: Path) -> None:
    assert predict(out) == NAMES
    assert sorted(content(out)) == ["made_by.json", *(f"{name}.png" for name in NAMES)]
    data, module = shapes(), model().eval()
    data.setup("predict")
    for batch in data.predict_dataloader():
        expected = module.predict_step(batch, 0)["mask"][0]
        found = np.asarray(Image.open(out / f"{batch['name'][0]}.png"))
        np.testing.assert_array_equal(found, expected.numpy())
    assert len(set(images(out).values())) == 5  # photos do not share a mask by chance


def test_a_second_run_computes_and_writes_nothing(out: Path) -> None:
    predict(out)
    before = content(out)
    assert predict(out) == []
    assert content(out) == before


@pytest.mark.parametrize("batch_size", [1, 2])
def test_only_masks_that_are_missing_are_made(batch_size: int, out: Path) -> None:
    predict(out, data=shapes(eval_batch_size=batch_size))
    before = content(out)
    for name in (NAMES[1], NAMES[4]):
        (out / f"{name}.png").unlink()
    assert predict(out, data=shapes(eval_batch_size=batch_size)) == [NAMES[1], NAMES[4]]
    after = content(out)
    assert {name: pixels for name, (pixels, _) in after.items()} == {
        name: pixels for name, (pixels, _) in before.items()
    }
    kept = {f"{name}.png" for name in NAMES} - {f"{NAMES[1]}.png", f"{NAMES[4]}.png"}
    assert {name for name, file in after.items() if file == before[name]} >= kept


class Killed(Exception):
    pass


def test_a_killed_run_is_completed(out: Path) -> None:
    predict(out.parent / "undisturbed")
    module = model()
    step = module.predict_step

    def killed(batch: dict[str, Any], *args: Any) -> dict[str, Any]:
        if batch["name"] == [NAMES[2]]:
            raise Killed
        return step(batch, *args)

    module.predict_step = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer(out, callbacks=[MaskWriter(str(out))]).predict(module, datamodule=shapes())
    assert sorted(images(out)) == [f"{name}.png" for name in NAMES[:2]]
    assert predict(out) == NAMES[2:]
    assert sorted(content(out)) == ["made_by.json", *(f"{name}.png" for name in NAMES)]  # and nothing temporary
    assert images(out) == images(out.parent / "undisturbed")


def test_half_a_file_is_no_mask(out: Path) -> None:
    """A process that is killed while it writes leaves its temporary file."""
    predict(out)
    whole = (out / f"{NAMES[3]}.png").read_bytes()
    (out / f"{NAMES[3]}.png").unlink()
    (out / f".{NAMES[3]}.png.123.tmp").write_bytes(whole[:50])
    assert predict(out) == [NAMES[3]]
    assert (out / f"{NAMES[3]}.png").read_bytes() == whole


def test_only_a_temporary_file_is_no_folder_of_another_model(out: Path) -> None:
    out.mkdir()
    (out / f".{NAMES[3]}.png.123.tmp").write_bytes(b"half")
    assert predict(out) == NAMES


def test_nothing_is_returned_and_without_a_data_module_all_is_made(out: Path) -> None:
    for _ in range(2):
        host = trainer(out.parent, callbacks=[MaskWriter(str(out))])
        assert not host.predict(model(CLASSES), loader())
        assert sorted(images(out)) == [f"photo_{index}.png" for index in range(4)]
        for path in out.glob("*.png"):
            path.write_bytes(b"")  # is written anew


# --- a folder that knows what made it


def other_threshold() -> CAM:
    module = model()
    module.threshold_index.fill_(40)
    return module


def refined(steps: int) -> CAM:
    module = model()
    module.refine = PixelAdaptiveRefinement(steps=steps)
    return module


OTHERS: dict[str, tuple[Callable[[], CAM], str]] = {
    "weights": (lambda: model(seed=1), "weights"),
    "threshold": (other_threshold, "weights"),
    "scales": (lambda: model(scales=(0.5, 1.0)), "settings"),
    "without a refiner": (model, "refine"),
    "refiner of other settings": (lambda: refined(2), "refine"),
    "module": (lambda: model(kind=SEAM), "module, weights, settings"),
}


@pytest.mark.parametrize("done", ["some", "all"])
@pytest.mark.parametrize("case", [*OTHERS, "soft"])
def test_masks_of_another_origin_are_not_mixed(case: str, done: str, out: Path) -> None:
    """Also where there is nothing left to do: else the old masks would be taken for new ones."""
    make, differs = OTHERS.get(case, (model, "soft"))
    predict(out, refined(1) if "refiner" in case else model())
    if done == "some":
        (out / f"{NAMES[0]}.png").unlink()
    before = content(out)
    with pytest.raises(FileExistsError, match=rf"masks: has masks of another model or of other settings: {differs};"):
        predict(out, make(), soft=case == "soft")
    assert content(out) == before


@pytest.mark.parametrize("name", ["holiday", NAMES[2]])
def test_a_folder_of_something_else_is_refused(name: str, out: Path) -> None:
    out.mkdir()
    (out / f"{name}.png").write_bytes(b"a picture")
    before = content(out)
    with pytest.raises(FileExistsError, match=r"masks: has masks of another model or of other settings; give another"):
        predict(out)
    assert content(out) == before


def test_other_ids_are_not_mixed(voc_root: Path, out: Path) -> None:
    """The same three classes in another order."""
    predict(out, model(3), voc(voc_root))
    before = content(out)
    with pytest.raises(FileExistsError, match=r": ids;"):
        predict(out, model(3), voc(voc_root, classes=["dog", "cat", "person"]))
    assert content(out) == before


def test_photos_of_another_folder_are_not_mixed(voc_root: Path, photos: Path, out: Path) -> None:
    """They may have the same names."""
    makers: list[Callable[[Path], WSSSDataModule]] = [voc, folder]
    for make, root in zip(makers, (voc_root, photos), strict=True):
        other, link = root.with_name("other"), root.with_name("link")
        shutil.copytree(root, other)
        link.symlink_to(root)
        module = model(make(root).num_classes)
        predict(out, module, make(root))
        before = content(out)
        with pytest.raises(FileExistsError, match=r": data;"):
            predict(out, module, make(other))
        assert predict(out, module, make(link)) == []
        assert content(out) == before
        for path in (other, out):
            shutil.rmtree(path)
        link.unlink()


def test_other_drawings_are_not_mixed(out: Path) -> None:
    predict(out)
    for options in ({"seed": 1}, {"size": 64}):
        with pytest.raises(FileExistsError, match=r": data;"):
            predict(out, data=ShapesDataModule(train_length=1, val_length=5, **{"size": 48} | options))


@pytest.mark.parametrize("damaged", ['{"module": "CA', "[]", "\ud800"])
def test_a_damaged_record(damaged: str, out: Path) -> None:
    predict(out)
    (out / "made_by.json").write_text(damaged, errors="surrogatepass")
    with pytest.raises(FileExistsError, match=r"masks/made_by\.json: is damaged; give another folder"):
        predict(out)
    for path in out.glob("*.png"):
        path.unlink()
    assert predict(out) == NAMES


def test_the_record(out: Path) -> None:
    predict(out, refined(3))
    record = json.loads((out / "made_by.json").read_text())
    assert record.keys() == {"module", "weights", "settings", "refine", "soft", "ids", "data"}
    assert record["module"] == "CAM"
    assert "'backbone': 'test_resnet'" in record["settings"]
    assert record["refine"].startswith("PixelAdaptiveRefinement(steps=3")
    assert (record["soft"], record["ids"]) == ("False", str(list(range(len(SHAPES_CLASSES) + 1))))
    for path in out.glob("*.png"):
        path.unlink()
    assert predict(out) == NAMES  # without masks, the record counts for nothing
    assert json.loads((out / "made_by.json").read_text())["refine"] == "None"


class Plain:
    """A refiner of one's own, with the `repr` that Python gives it."""

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        return scores


class Other(Plain):
    pass


def test_a_refiner_without_a_repr_is_known_again(out: Path) -> None:
    """Its address is another in each process."""
    first, second, third = model(), model(), model()
    first.refine, second.refine, third.refine = Plain(), Plain(), Other()
    assert repr(first.refine) != repr(second.refine)
    predict(out, first)
    (out / f"{NAMES[0]}.png").unlink()
    assert predict(out, second) == NAMES[:1]
    with pytest.raises(FileExistsError, match=r": refine;"):
        predict(out, third)


@pytest.mark.parametrize("refine", [PixelAdaptiveRefinement(steps=2), Plain()], ids=["module", "callable"])
def test_a_refiner_works_and_is_no_part_of_the_network(refine: Any, out: Path) -> None:
    """A module that is set on a module would be a submodule, with its weights in checkpoints."""
    module = model()
    keys = list(module.state_dict())
    calls = []

    def spied(*args: Tensor) -> Tensor:
        calls.append(args)
        scores: Tensor = refine(*args)
        return scores

    for value in (refine, spied, refine, None):  # one after the other, of whatever kind
        module.refine = value
        assert module.refine is value
        assert list(module.state_dict()) == keys
    module.refine = spied
    predict(out, module)
    assert len(calls) == 5
    assert all(photos.dtype == torch.uint8 for photos, _, _ in calls)
    predict(out.parent / "plain")
    assert (images(out) == images(out.parent / "plain")) == isinstance(refine, Plain)


# --- soft maps


def soft_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"classes", "scores"}
        assert np.issubdtype(file["classes"].dtype, np.integer)
        assert file["scores"].dtype == np.float16
        return file["classes"], file["scores"]


def test_soft_maps_are_the_seeds_of_the_tagged_classes(out: Path) -> None:
    predict(out, soft=True)
    plain = out.parent / "plain"
    predict(plain)
    assert images(out) == images(plain)
    assert not list(plain.glob("*.npz"))
    assert sorted(path.stem for path in out.glob("*.npz")) == NAMES
    module, some_left_out, highest = model().eval().to(memory_format=torch.channels_last), False, 0.0
    for sample in shapes().dataset("val"):
        tags = sample["tags"]
        some_left_out |= bool((tags == 0).any())
        with torch.no_grad():
            seeds = module.seeds(sample["image"][None], tags[None])[0][tags > 0]
        classes, scores = soft_of(out / f"{sample['name']}.npz")
        assert classes.tolist() == (1 + tags.nonzero().flatten()).tolist()
        assert scores.shape == seeds.shape
        np.testing.assert_array_equal(scores, seeds.clamp(min=0).half().numpy())
        highest = max(highest, scores.max())
    assert some_left_out
    assert highest > 0.99  # normalised


def test_a_second_run_with_soft_maps(out: Path) -> None:
    predict(out, soft=True)
    before = content(out)
    assert predict(out, soft=True) == []
    assert content(out) == before
    with pytest.raises(FileExistsError, match=r": soft;"):
        predict(out)


def test_a_mask_says_that_its_soft_map_is_there(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends between the two must do the photo again."""
    real = mask_writer.write_atomically

    def killed(file: bytes, path: Path) -> None:
        if path.name == f"{NAMES[1]}.png":
            raise Killed
        real(file, path)

    monkeypatch.setattr(mask_writer, "write_atomically", killed)
    with pytest.raises(Killed):
        predict(out, soft=True)
    files = {f"{NAMES[0]}.npz", f"{NAMES[0]}.png", f"{NAMES[1]}.npz"}
    assert content(out).keys() == {"made_by.json"} | files
    monkeypatch.undo()
    assert predict(out, soft=True) == NAMES[1:]
    assert {path.stem for path in out.glob("*.npz")} == {path.stem for path in out.glob("*.png")} == set(NAMES)


# --- data of all kinds


def voc(root: Path, **options: Any) -> VOCDataModule:
    chosen = {"train_split": "train", "val_split": "train", "classes": ["person", "cat", "dog"]}
    return VOCDataModule(str(root), **chosen | options)


def test_ids_of_voc(voc_root: Path, out: Path) -> None:
    predict(out, model(3), voc(voc_root), soft=True)
    tagged = {"a_1": [15, 8], "a_2": [12], "a_3": [8]}  # a_3 has an aeroplane, which was not chosen
    for name, ids in tagged.items():
        assert soft_of(out / f"{name}.npz")[0].tolist() == ids
        assert set(np.unique(np.asarray(Image.open(out / f"{name}.png"))).tolist()) == {0, *ids}


SIZES = {"wide": (40, 60), "tall": (50, 30), "none": (20, 24)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A plain folder. The photo `none` has no tag."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(root / "images" / f"{name}.jpg")
    (root / "tags.csv").write_text("name,tags\nwide,fox owl\ntall,owl\nnone,\n")
    return root


def folder(root: Path, **options: Any) -> FolderDataModule:
    return FolderDataModule(str(root), classes=["fox", "owl"], **options)


def test_a_photo_without_tags_has_no_soft_map(photos: Path, out: Path) -> None:
    """Soft maps have the size of the network's photo, masks that of the photo."""
    predict(out, model(2), folder(photos, longest_side=30), soft=True)
    shapes_of = {"wide": ([1, 2], (20, 30)), "tall": ([2], (30, 18)), "none": ([], (20, 24))}
    for name, (ids, size) in shapes_of.items():
        classes, scores = soft_of(out / f"{name}.npz")
        assert classes.tolist() == ids
        assert scores.shape == (len(ids), *size)
        assert np.asarray(Image.open(out / f"{name}.png")).shape == SIZES[name]
    assert not np.asarray(Image.open(out / "none.png")).any()


@pytest.mark.parametrize("change", ["size", "source of the tags"])
def test_masks_of_other_data_options_are_not_mixed(change: str, photos: Path, out: Path) -> None:
    predict(out, model(2), folder(photos, longest_side=30))
    before = content(out)
    if change == "source of the tags":
        (photos / "tags.csv").unlink()
    with pytest.raises(FileExistsError, match=r": data;"):
        predict(out, model(2), folder(photos, longest_side=40 if change == "size" else 30))
    assert content(out) == before


@pytest.mark.parametrize("tag_threshold", [0.0, 0.99])
def test_photos_without_a_tags_file(tag_threshold: float, photos: Path, out: Path) -> None:
    """The classes are those that the classifier sees, in soft maps as well."""
    (photos / "tags.csv").unlink()
    module = model(2, tag_threshold=tag_threshold)
    assert sorted(predict(out, module, folder(photos), soft=True)) == sorted(SIZES)
    for name in SIZES:
        assert soft_of(out / f"{name}.npz")[0].tolist() == ([1, 2] if tag_threshold == 0 else [])
    (out / "wide.png").unlink()
    assert predict(out, module, folder(photos), soft=True) == ["wide"]


def test_predictions_carry_seeds_only_when_asked() -> None:
    module = cam().eval()
    batch = {**RandomPhotos().__getitem__(0), "name": ["photo"]}
    batch = {key: value[None] if isinstance(value, Tensor) else value for key, value in batch.items()}
    assert module.predict_step(batch, 0).keys() == {"name", "mask"}
    module.keep_seeds = True
    prediction = module.predict_step(batch, 0)
    assert prediction.keys() == {"name", "mask", "seeds", "tags"}
    assert prediction["seeds"].shape == (1, CLASSES, 64, 64)


# --- modules and loaders of one's own


class Host(L.LightningModule):
    """Gives what it is told to."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return {"name": batch["name"]} | self.given if isinstance(self.given, dict) else self.given


def square(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)[None]


def test_ignored_pixels_stay_ignored(voc_root: Path, out: Path) -> None:
    host = Host({"mask": square([0, 1, 255], [2, 3, 255])})
    trainer(out.parent, callbacks=[MaskWriter(str(out))]).predict(host, datamodule=voc(voc_root))
    assert np.asarray(Image.open(out / "a_1.png")).tolist() == [[0, 15, 255], [8, 12, 255]]


@pytest.mark.parametrize("unknown", [4, 254, 256, -1])
def test_a_class_that_the_data_does_not_have(unknown: int, voc_root: Path, out: Path) -> None:
    host = trainer(out.parent, callbacks=[MaskWriter(str(out))])
    with pytest.raises(ValueError, match=rf"a_1: the mask has the class {unknown}, the data has 0 to 3"):
        host.predict(Host({"mask": square([0, unknown])}), datamodule=voc(voc_root))
    assert images(out) == {}


@pytest.mark.parametrize(
    ("given", "soft", "message"),
    [
        (torch.zeros(1, 2, 2), False, "a dict with name, mask; it has no name, mask"),
        ({}, False, "a dict with name, mask; it has no mask"),
        ({"mask": square([0])}, True, "a dict with name, mask, seeds, tags; it has no seeds, tags"),
    ],
)
def test_a_prediction_without_what_is_written(given: Any, soft: bool, message: str, out: Path) -> None:
    host = trainer(out.parent, callbacks=[MaskWriter(str(out), soft)])
    with pytest.raises(ValueError, match=rf"Host\.predict_step must give {message}"):
        host.predict(Host(given), loader(1))


def test_loaders_given_after_a_data_module_have_no_ids_of_it(voc_root: Path, out: Path) -> None:
    """The trainer keeps the data module."""
    module, host = model(CLASSES), trainer(out.parent, callbacks=[MaskWriter(str(out))])
    host.predict(module, datamodule=voc(voc_root))
    shutil.rmtree(out)
    host.predict(module, loader())
    mask = module.eval().predict_step(next(iter(loader())), 0)["mask"][1]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "photo_1.png")), mask.numpy())
    record = json.loads((out / "made_by.json").read_text())
    assert (record["ids"], record["data"]) == ("None", "{}")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(fails: bool, before: bool, out: Path) -> None:
    module = model()
    module.keep_seeds = before
    if fails:
        out.mkdir()
        (out / "holiday.png").write_bytes(b"a picture")
        with pytest.raises(FileExistsError):
            predict(out, module, soft=True)
    else:
        assert predict(out, module, soft=True) == NAMES
    assert module.keep_seeds is before


class InFolders(ShapesDataModule):
    """Names have slashes."""

    def dataset(self, split: str, *args: Any, **kwargs: Any) -> ShapesDataset:
        data = super().dataset(split, *args, **kwargs)
        plain = data.image_name
        data.image_name = lambda index: f"day.{index % 2}/{plain(index)}"  # type: ignore[method-assign]
        return data


def test_names_with_slashes(out: Path) -> None:
    data = InFolders(train_length=1, val_length=3, size=48)
    names = [f"day.{index % 2}/{NAMES[index]}" for index in range(3)]
    assert predict(out, data=data) == names
    (out / f"{names[1]}.png").unlink()
    assert predict(out, data=data) == [names[1]]
    with pytest.raises(FileExistsError, match=r": weights;"):
        predict(out, model(seed=1), data)


# --- numbers


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision(precision: Any, out: Path) -> None:
    """Other scales, soft maps and a refiner."""
    module = model(scales=(0.5, 1.0), flip=True)
    module.refine = PixelAdaptiveRefinement(steps=1)
    host = trainer(out.parent, precision=precision, callbacks=[MaskWriter(str(out), soft=True)])
    host.predict(module, datamodule=shapes())
    assert sorted(images(out)) == [f"{name}.png" for name in NAMES]
    exact = out.parent / "exact"
    predict(exact, model(scales=(0.5, 1.0), flip=True), soft=True)
    for name in NAMES:
        classes, scores = soft_of(out / f"{name}.npz")
        expected_classes, expected = soft_of(exact / f"{name}.npz")
        assert classes.tolist() == expected_classes.tolist()
        assert np.abs(scores.astype(float) - expected).mean() < 0.05


def test_a_network_that_gives_nan(out: Path) -> None:
    module = model()
    torch.nn.init.constant_(module.classifier.weight, float("nan"))
    with pytest.raises(ValueError, match=f"the maps of {NAMES[0]} have NaN"):
        predict(out, module)
    assert images(out) == {}
