"""Fully connected conditional random field (dense CRF, Krähenbühl and Koltun, NIPS 2011), as a refiner."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_contrast import functional
from wsss_contrast.distributed import world_size

from .processes import ProcessPool

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CRFSettings:
    """A set of parameters.

    Attributes:
        bilateral: of the appearance kernel, standard deviations in pixels and in colour (0 to 255), and weight.
        gaussian: of the smoothness kernel, standard deviation in pixels, and weight.
        iterations: of mean field.
        confidence: in (0, 1): the unaries are hard, the best class of a pixel has this probability and the others
            share the rest. ``None``: the unaries are soft, the logarithms of the scores, clipped at 1e-5.
        rows_first: order of the axes, rows before columns. The lattice under the filter is an approximation that
            depends on it: this is the order of ``pydensecrf.utils``, the other that of ``DenseCRF2D``.
    """

    bilateral: tuple[float, float, float]
    gaussian: tuple[float, float] = (3, 3)
    iterations: int = 10
    confidence: float | None = None
    rows_first: bool = False

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` must be in (0, 1), got {self.confidence}")
        if self.iterations < 1:
            raise ValueError(f"`iterations` must be at least 1, got {self.iterations}")


CRF_SETTINGS = {
    "ppc": CRFSettings((50, 5, 10), confidence=0.7),
    "irn": CRFSettings((50, 5, 10), confidence=0.7),
    "csrm": CRFSettings((50, 5, 10), confidence=0.7),
    "psa": CRFSettings((80, 13, 10)),
    "ppc_affinity": CRFSettings((80, 13, 10), confidence=0.7, rows_first=True),
    "eps": CRFSettings((80, 13, 10), iterations=5),
    "deeplab": CRFSettings((67, 3, 4), gaussian=(1, 3)),
    "seam_segmenter": CRFSettings((32, 13, 10), iterations=1),
}
"""The field's sets: "seed + CRF" of PPC; the pseudo-labels of IRN and CSRM (the same numbers); the affinity labels of
PSA and SEAM, and of PPC; seeds of EPS; DeepLabV2, also EPS's comparison; the segmenter of SEAM's code."""


def crf_settings(settings: str | CRFSettings) -> CRFSettings:
    """The set of a name; a set of one's own as it is."""
    if isinstance(settings, CRFSettings):
        return settings
    if settings not in CRF_SETTINGS:
        raise ValueError(f"unknown CRF settings {settings!r}; there are {', '.join(CRF_SETTINGS)}")
    return CRF_SETTINGS[settings]


def soft_unaries(scores: Floats) -> Floats:
    """Energies (C, H, W) of scores (C, H, W), which need not add up to 1: ``-log`` of the score, clipped at 1e-5."""
    # NumPy's logarithm, not PyTorch's: with it the recorded values come out to the last bit.
    energies: Floats = -np.log(np.clip(scores, 1e-5, None, dtype=np.float32))
    return energies


def hard_unaries(labels: NDArray[np.integer], num_classes: int, confidence: float) -> Floats:
    """Energies (C, H, W) of labels (H, W) from 0 to C - 1, which are right with this probability.

    Raises:
        ValueError: fewer than two classes, or a label that is no class, as 255.
    """
    copy = torch.from_numpy(np.array(labels, np.int64, order="C"))
    return functional.hard_unaries(copy[None], num_classes, confidence)[0].numpy()


def mean_field(photo: NDArray[np.uint8], unaries: Floats, settings: str | CRFSettings = "ppc") -> Floats:
    """Inference on one photo.

    Args:
        photo: (H, W, 3) RGB, 0 to 255.
        unaries: (C, H, W) energies, at least two classes.
        settings: the name of a set in ``CRF_SETTINGS``, or one of your own. Its ``confidence`` counts for nothing here.

    Returns:
        (C, H, W), the probabilities.

    Raises:
        ImportError: the extra ``crf`` is not installed.
        ValueError: a photo that is no uint8 (H, W, 3), or unaries of another size.
    """
    pydensecrf = _pydensecrf()
    settings = crf_settings(settings)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise ValueError(f"`photo` must be uint8 of shape (H, W, 3), got {photo.dtype} {photo.shape}")
    if unaries.ndim != 3 or unaries.shape[1:] != photo.shape[:2] or len(unaries) < 2:
        raise ValueError(f"`unaries` must be (C, H, W) with C > 1, got {unaries.shape} for a photo {photo.shape}")
    classes, height, width = unaries.shape
    crf = pydensecrf.DenseCRF(height * width, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unaries.reshape(classes, -1), np.float32))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    position = np.stack([rows, columns] if settings.rows_first else [columns, rows])
    color = photo.transpose(2, 0, 1).astype(np.float32)
    smoothness, (width_xy, width_rgb, appearance) = settings.gaussian, settings.bilateral
    for features, weight in (
        (position / np.float32(smoothness[0]), smoothness[1]),
        (np.concatenate([position / np.float32(width_xy), color / np.float32(width_rgb)]), appearance),
    ):
        crf.addPairwiseEnergy(np.ascontiguousarray(features.reshape(len(features), -1)), compat=weight)
    return np.array(crf.inference(settings.iterations), np.float32).reshape(unaries.shape)


class DenseCRF:
    """A refiner: moves the borders of masks to those of the photo. See :class:`~wsss_contrast.refine.Refiner`.

    Only the classes present take part. A photo of none is all background.

    With the extra ``crf`` it is ``pydensecrf2``, on the CPU. Without, :func:`~wsss_contrast.functional.dense_crf`, on
    the device of the scores, and ``processes`` counts for nothing.

    With ``processes``, photos are refined side by side in processes that live until :meth:`close`; use it as a context
    manager. The photos of a batch share them, and so do batches of several threads: ``predict`` with a
    :class:`~wsss_contrast.callbacks.MaskWriter` goes on to the next batches meanwhile. A process that dies costs its
    photo a second try. As with all Python processes, a script must guard its own start with
    ``if __name__ == "__main__"``.

    Args:
        settings: the name of a set in ``CRF_SETTINGS``, or one of your own.
        processes: how many; 0 works in this process. ``None`` takes one for each CPU that this process may use; where
            several ranks predict on one machine, they share them.

    Raises:
        ValueError: an unknown name, or a negative number of processes.
        WorkerError: when called: a photo ended its process twice. Names its place in the batch.
    """

    def __init__(self, settings: str | CRFSettings = "ppc", processes: int | None = 0) -> None:
        self.settings = crf_settings(settings)
        if processes is not None and processes < 0:
            raise ValueError(f"`processes` must not be negative, got {processes}")
        self.processes = processes

    def __repr__(self) -> str:
        return f"DenseCRF({self.settings})"

    @property
    def concurrency(self) -> int:
        """How many batches, each in a thread, are worth refining at once."""
        return 1 if self._pool is None else self._pool.processes

    @cached_property
    def _pool(self) -> ProcessPool | None:
        # Not before it is needed: how many ranks there are is known once they have started.
        if not _has_extra():
            return None
        count = _cpus() if self.processes is None else self.processes
        return ProcessPool(_refine, count) if count else None

    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        device, scores = scores.device, scores.detach().float()
        if not len(scores):
            return scores
        if not _has_extra():
            refined = torch.zeros_like(scores)
            for photo, of_photo, classes, out in zip(photos, scores, present.to(device), refined, strict=True):
                out[classes] = _refine_tensor(photo, of_photo[classes], self.settings)
            return refined
        arrays = zip(photos.permute(0, 2, 3, 1).cpu().numpy(), scores.cpu().numpy(), present.cpu().numpy(), strict=True)
        return torch.from_numpy(np.stack(list(self.stream(arrays)))).to(device)

    def stream(self, inputs: Iterable[tuple[NDArray[np.uint8], Floats, NDArray[np.bool_]]]) -> Iterator[Floats]:
        """Refine photo after photo, in order, while the next ones are being read.

        Args:
            inputs: for each a photo (H, W, 3), scores (C, H, W) with the background first, and the classes present
                (C,). Sizes may differ.

        Yields:
            (C, H, W), the probabilities; 0 for absent classes.
        """
        shapes: deque[tuple[tuple[int, ...], NDArray[np.bool_]]] = deque()

        def tasks() -> Iterator[tuple[NDArray[np.uint8], Floats, CRFSettings]]:
            for photo, scores, present in inputs:
                shapes.append((scores.shape, present))
                yield photo, scores[present], self.settings

        refined = (_refine(*task) for task in tasks()) if self._pool is None else self._pool.map(tasks())
        for of_present in refined:
            shape, present = shapes.popleft()
            out = np.zeros(shape, np.float32)
            out[present] = of_present
            yield out

    def close(self) -> None:
        """End the processes. A later call starts new ones."""
        pool: ProcessPool | None = vars(self).pop("_pool", None)
        if pool is not None:
            pool.close()

    def __enter__(self) -> DenseCRF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cpus() -> int:
    """This process's share of the CPUs. All ranks are on this machine, where no launcher says how many are."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return max(1, usable // ranks)


def _refine(photo: NDArray[np.uint8], scores: Floats, settings: CRFSettings) -> Floats:
    if not _has_extra():
        own = torch.from_numpy(np.array(photo, order="C")).permute(2, 0, 1)
        refined: Floats = _refine_tensor(own, torch.from_numpy(np.array(scores, order="C")), settings).numpy()
        return refined
    if len(scores) < 2:  # of the background alone
        return np.ones_like(scores)
    if settings.confidence is None:
        return mean_field(photo, soft_unaries(scores), settings)
    return mean_field(photo, hard_unaries(scores.argmax(axis=0), len(scores), settings.confidence), settings)


@torch.no_grad()
def _refine_tensor(photo: Tensor, scores: Tensor, settings: CRFSettings) -> Tensor:
    """The same in PyTorch, on the device of the scores: a photo (3, H, W) and scores (C, H, W)."""
    if photo.dtype != torch.uint8:
        raise ValueError(f"`photo` must be uint8, got {photo.dtype}")
    if len(scores) < 2:
        return torch.ones_like(scores)
    if settings.confidence is None:
        unaries = functional.soft_unaries(scores[None])
    else:
        unaries = functional.hard_unaries(scores.argmax(dim=0)[None], len(scores), settings.confidence)
    kernels = settings.bilateral, settings.gaussian
    return functional.dense_crf(photo[None], unaries, *kernels, settings.iterations, settings.rows_first)[0]


def _has_extra() -> bool:
    return find_spec("pydensecrf") is not None


def _pydensecrf():  # type: ignore[no-untyped-def]
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise ImportError("`mean_field` needs `pip install 'wsss-contrast[crf]'`") from error
    return densecrf
