"""Batches of whole photos."""

from collections.abc import Collection

from torch.utils.data import Dataset, default_collate

from wsss_contrast.data.base import Sample, TaggedImageDataset


class SameSizeBatches(Dataset[Sample]):
    """A data set of batches: photos of one size together, each of them once.

    Photos are neither padded nor resized, so a batch gives what its photos give one at a time. Load it with
    ``DataLoader(batches, batch_size=None)``.

    Args:
        dataset: the photos.
        batch_size: most photos a batch.
        skip: names of photos to leave out.

    >>> from wsss_contrast.data import ShapesDataset
    >>> batches = SameSizeBatches(ShapesDataset("val", length=5), 2)
    >>> [len(batches[i]["name"]) for i in range(len(batches))]
    [2, 2, 1]
    """

    def __init__(self, dataset: TaggedImageDataset, batch_size: int, skip: Collection[str] = ()) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.batches: list[list[int]] = []
        open_batches: dict[tuple[int, int], list[int]] = {}
        for index in range(len(dataset)):
            if skip and dataset.image_name(index) in skip:
                continue
            size = dataset.image_size(index) if batch_size > 1 else (0, 0)
            batch = open_batches.setdefault(size, [])
            if not batch:
                self.batches.append(batch)
            batch.append(index)
            if len(batch) == batch_size:
                del open_batches[size]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Sample:
        batch: Sample = default_collate([self.dataset[photo] for photo in self.batches[index]])
        return batch
