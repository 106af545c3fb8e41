"""CSRM's s2c and memory-bank contrast on an smp segmenter with a CAM head, with an EMA teacher."""

import lightning as L
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

# --- attach CSRM: imports
from wsss_contrast.callbacks import (
    ActivationConsistencyCallback,
    EMATeacherCallback,
    UnreliablePixelContrastCallback,
)

# ---
from wsss_contrast.data import ShapesDataModule

# --- attach CSRM: imports
from wsss_contrast.losses import CSRMSchedule, UnreliablePixelContrast

# ---


class Network(nn.Module):
    """What the teacher is a copy of: maps of a CAM head on the encoder, and the decoder's segmentation."""

    def __init__(self, num_classes):
        super().__init__()
        self.unet = smp.Unet("resnet18", encoder_weights=None, classes=num_classes + 1)
        self.cam = nn.Conv2d(self.unet.encoder.out_channels[-1], num_classes, kernel_size=1, bias=False)

    def forward(self, images):
        features = self.unet.encoder(images)
        return self.cam(features[-1]), self.unet.segmentation_head(self.unet.decoder(features))


class OneStage(L.LightningModule):
    """Tags train the CAM head; where its maps are sure, they train the decoder."""

    def __init__(self, num_classes):
        super().__init__()
        self.network = Network(num_classes)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        cams, logits = self(batch["image"])
        loss = F.multilabel_soft_margin_loss(cams.mean(dim=(2, 3)), batch["tags"])
        self.log("tags", loss)
        masks = F.cross_entropy(logits, pseudo_masks(cams.detach(), batch["tags"], logits.shape[-2:]), ignore_index=255)
        self.log("masks", masks)
        return loss + masks

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def pseudo_masks(cams, tags, size):
    """Background below a score of 0.2, the best tagged class above 0.4, 255 between them."""
    scores = F.interpolate(cams.relu(), size=size, mode="bilinear", align_corners=True) * tags[:, :, None, None]
    score, label = (scores / scores.amax(dim=(2, 3), keepdim=True).clamp_min(1e-5)).max(dim=1)
    return torch.where(score > 0.4, label + 1, torch.where(score < 0.2, 0, 255))


def show(trainer, *_):
    print({name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()})


L.seed_everything(0)
# Each batch has two labelled images and then two unlabelled ones; all have tags.
data = ShapesDataModule(
    train_length=16, size=64, crop_size=64, resize_long=(56, 80), batch_size=2, unlabeled_batch_size=2
)
# --- attach CSRM: callbacks
schedule = CSRMSchedule(warmup=0.25)  # of the eight steps below
taps = {"cams": "network.cam", "segmentation": "network.unet.segmentation_head"}
contrast = UnreliablePixelContrast(data.num_classes + 1, 32, query_confidence=0.0, negative_confidence=1.0)
callbacks = [
    EMATeacherCallback("network"),
    ActivationConsistencyCallback(**taps, schedule=schedule),
    UnreliablePixelContrastCallback(
        contrast, features="network.unet.decoder", in_channels=16, **taps, schedule=schedule
    ),
]
# ---
trainer = L.Trainer(
    accelerator="cpu",
    max_epochs=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[*callbacks, LambdaCallback(on_train_batch_end=show)],
)
trainer.fit(OneStage(data.num_classes), data)
