"""PSA and IRN as refiners: walks over the affinities of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_contrast._digest import digest
from wsss_contrast.functional import edge_affinity, feature_affinity, random_walk
from wsss_contrast.functional.maps import EPS
from wsss_contrast.nn import AffinityNetwork, InterPixelNetwork

RADIUS = 5
"""Of the pairs in the walk, in pixels of the map; of both methods."""

Network = TypeVar("Network", AffinityNetwork, InterPixelNetwork)


class _Walk(Generic[Network]):
    """A network, and how its affinities are walked over."""

    keeps_constants = True

    def __init__(self, network: Network, beta: float, logt: int) -> None:
        if not beta > 0:
            raise ValueError(f"`beta` must be above 0, got {beta}")
        if not 0 <= logt <= 16:
            raise ValueError(f"`logt` must be in [0, 16], got {logt}")
        self.network: Network = network.eval()
        self.beta, self.logt = beta, logt
        self._weights = _digest(network)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._weights}, beta={self.beta}, logt={self.logt})"


class PSA(_Walk[AffinityNetwork]):
    """The random walk of PSA (Ahn and Kwak, CVPR 2018, Sec. 3.3), a :class:`~wsss_contrast.refine.Refiner`.

    Scores are averaged over blocks of 8 x 8 pixels, walk over the affinities of the network's features
    (:func:`~wsss_contrast.functional.random_walk`), and come back bilinearly. Only the classes present walk. The
    background walks like a class; a constant one, as that of ``predict``, stays what it is (PPC's way; PSA and SEAM
    have a power of the maps).

    All pairs of pixels near each other take part, as the paper says; the released code leaves out some at the border.
    Photos of any size are taken. The network runs where the scores are.

    Args:
        network: a trained network.
        beta: the power of each affinity, above 0.
        logt: binary logarithm of the number of steps, 0 to 16. 6 in SEAM and PPC; on photos of half the length, a map
            is crossed in a quarter of the steps.

    Raises:
        ValueError: beta or logt out of range.
    """

    def __init__(self, network: AffinityNetwork, beta: float = 8, logt: int = 8) -> None:
        super().__init__(network, beta, logt)

    @classmethod
    def from_checkpoint(cls, path: str | Path, beta: float = 8, logt: int = 8) -> PSA:
        """The same of a checkpoint of :class:`~wsss_contrast.modules.AffinityNet`.

        Raises:
            ValueError: the file is missing, damaged, or of another module or network; names it.
        """
        return cls(_from_checkpoint(AffinityNetwork, path, "affinity.", "AffinityNet"), beta, logt)

    @torch.no_grad()
    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        features = self.network.to(scores.device)(_normalized(photos.to(scores.device)))
        # Room for the pairs that start at the border. The walk leaves out those that end beyond it.
        reach = RADIUS - 1
        affinity = feature_affinity(F.pad(features, (reach, reach, 0, reach)), RADIUS)
        refined = torch.zeros_like(scores)
        for index, classes in enumerate(present.to(scores.device)):
            maps = _blocks(scores[index : index + 1, classes], self.network.stride)
            walked = random_walk(maps, affinity[index : index + 1], RADIUS, self.beta, self.logt)
            refined[index, classes] = _enlarged(walked, self.network.stride, scores)
        return refined


class IRN(_Walk[InterPixelNetwork]):
    """The random walk of IRN (Ahn et al., CVPR 2019, Sec. 5), a :class:`~wsss_contrast.refine.Refiner`.

    The scores of the classes present are averaged over blocks of 4 x 4 pixels and multiplied by one minus the
    probability of a boundary there; they walk where no boundary is on the way
    (:func:`~wsss_contrast.functional.random_walk`), come back bilinearly and are divided by the largest of them. The
    background does not walk: its score stays what it is.

    Photos of any size are taken. The network runs where the scores are.

    Args:
        network: a trained network. Its displacements are not used.
        beta: the power of each affinity, above 0.
        logt: binary logarithm of the number of steps, 0 to 16.

    Raises:
        ValueError: beta or logt out of range.
    """

    def __init__(self, network: InterPixelNetwork, beta: float = 10, logt: int = 8) -> None:
        super().__init__(network, beta, logt)

    @classmethod
    def from_checkpoint(cls, path: str | Path, beta: float = 10, logt: int = 8) -> IRN:
        """The same of a checkpoint of :class:`~wsss_contrast.modules.IRNet`.

        Raises:
            ValueError: the file is missing, damaged, or of another module or network; names it.
        """
        return cls(_from_checkpoint(InterPixelNetwork, path, "edge.", "IRNet"), beta, logt)

    @torch.no_grad()
    def __call__(self, photos: Tensor, scores: Tensor, present: Tensor) -> Tensor:
        edges = self.network.to(scores.device).edges(_normalized(photos.to(scores.device))).float()
        affinity = edge_affinity(edges, RADIUS, whole_map=True)
        refined = torch.zeros_like(scores)
        refined[:, 0] = scores[:, 0]
        for index, classes in enumerate(present.to(scores.device)):
            classes = classes.clone()
            classes[0] = False
            if not classes.any():
                continue
            maps = _blocks(scores[index : index + 1, classes], self.network.stride)
            inside = maps * (1 - edges[index : index + 1].sigmoid())
            walked = random_walk(inside, affinity[index : index + 1], RADIUS, self.beta, self.logt)
            walked = _enlarged(walked, self.network.stride, scores)
            refined[index, classes] = walked / walked.amax().clamp(min=EPS)
        return refined


def _digest(network: nn.Module) -> str:
    """Of the weights, of what they are laid out in, as strides, and of the scale of colours, which is no weight."""
    return digest([*network.named_parameters(), *network.named_buffers()], repr(network))


def _normalized(photos: Tensor) -> Tensor:
    """Photos (N, 3, H, W), uint8, as the networks take them."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = (
        photos.new_tensor(of, dtype=torch.float32)[:, None, None]
        for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (photos / 255 - mean) / std


def _blocks(scores: Tensor, side: int) -> Tensor:
    """Means of blocks of pixels; at the lower and the right border, of what of them is in the photo."""
    return F.avg_pool2d(scores, side, ceil_mode=True)


def _enlarged(walked: Tensor, side: int, like: Tensor) -> Tensor:
    """Maps (1, C, h, w) of blocks as (C, H, W), the size of ``like``."""
    # To the size of whole blocks, then cut: a block stays where it was.
    large = F.interpolate(walked, scale_factor=side, mode="bilinear", align_corners=False)
    return large[0, :, : like.shape[2], : like.shape[3]]


def _from_checkpoint(kind: type[Network], path: str | Path, part: str, module: str) -> Network:
    """The network of a training module's checkpoint, without that module. ``part`` is what only this kind has."""
    # Here: they need Lightning and timm, which other refiners do not.
    from wsss_contrast.checkpoints import read_checkpoint
    from wsss_contrast.nn import TimmBackbone

    checkpoint = read_checkpoint(path)
    weights, options = checkpoint["state_dict"], checkpoint.get("hyper_parameters") or {}
    weights = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
    needed = ("backbone", "weights", "output_stride", "low_strides")
    if not any(key.startswith(part) for key in weights) or any(name not in options for name in needed):
        found = f", it is one of {options['_class_path'].split('.')[-1]}" if "_class_path" in options else ""
        raise ValueError(f"{path}: is no checkpoint of {module}{found}")
    try:
        # The checkpoint has the weights; nothing is downloaded. Only the wheel's have a scale of colours of their own.
        source = "offline" if options["weights"] == "offline" else None
        backbone = TimmBackbone(
            options["backbone"], source, options["output_stride"], low_strides=options["low_strides"]
        )
        network = kind(backbone)
        network.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: its network can't be built again: {error}") from error
    return network
