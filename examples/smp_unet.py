"""PPC on an smp segmenter with a CAM head on its encoder: one stage, from tags to masks."""

import lightning as L
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

# --- attach PPC: imports
from wsss_contrast.callbacks import PrototypeContrastCallback

# ---
from wsss_contrast.data import ShapesDataModule


class OneStage(L.LightningModule):
    """Tags train the CAM head; where its maps are sure, they train the decoder."""

    def __init__(self, num_classes):
        super().__init__()
        self.unet = smp.Unet("resnet18", encoder_weights=None, classes=num_classes + 1)
        self.cam = nn.Conv2d(self.unet.encoder.out_channels[-1], num_classes, kernel_size=1, bias=False)

    def forward(self, images):
        features = self.unet.encoder(images)
        return self.cam(features[-1]), self.unet.segmentation_head(self.unet.decoder(features))

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
data = ShapesDataModule(train_length=16, batch_size=4)
trainer = L.Trainer(
    accelerator="cpu",
    max_epochs=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[
        LambdaCallback(on_train_batch_end=show),
        # --- attach PPC: callback
        PrototypeContrastCallback(features=("unet.encoder", -1), cams="cam", view_size=96),
        # ---
    ],
)
trainer.fit(OneStage(data.num_classes), data)
