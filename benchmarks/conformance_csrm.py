"""Reference values of CSRM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conformance_cases import Case, Cases, checks

from wsss_contrast import functional
from wsss_contrast.refine import DenseCRF, pseudo_labels


@checks("pseudo_label.pt")
def pseudo_label_file(reference: Any, folder: Path) -> Cases:
    def check(case: Case, values: Mapping[str, Any]) -> None:
        tags, photos = values["image_labels"], values["image_uint8"].permute(0, 3, 1, 2)
        low = functional.max_normalize(functional.mask_by_tags(values["cam_features"], tags))
        cams = functional.resize(low, (photos.shape[-2], photos.shape[-1]))
        case.values({"cam_norm_lowres": low, "cam_norm_upsampled": cams}, values)
        thresholds = (values["delta_bg"], values["delta_fg"])
        ours = {"mask_no_crf": pseudo_labels(photos, cams, tags, *thresholds)}
        if find_spec("pydensecrf"):
            ours["mask_with_crf"] = pseudo_labels(photos, cams, tags, *thresholds, refine=DenseCRF("csrm"))
        case.values(ours, {name: values[name].long() for name in ours})

    return {name: partial(check, values=values) for name, values in reference.items()}
