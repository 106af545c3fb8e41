"""PPC on a LightningModule around a timm CNN. It forwards one view; the callback makes the second."""

import lightning as L
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

# --- attach PPC: imports
from wsss_contrast.callbacks import PrototypeContrastCallback

# ---
from wsss_contrast.data import ShapesDataModule


class Classifier(L.LightningModule):
    """The mean of a 1x1 convolution's maps is the score of each class."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = timm.create_model("resnet10t", num_classes=0, global_pool="", output_stride=16)
        self.cam = nn.Conv2d(self.encoder.num_features, num_classes, kernel_size=1, bias=False)

    def forward(self, images):
        return self.cam(self.encoder(images))

    def training_step(self, batch, batch_idx):
        loss = F.multilabel_soft_margin_loss(self(batch["image"]).mean(dim=(2, 3)), batch["tags"])
        self.log("tags", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


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
        PrototypeContrastCallback(features="encoder", cams="cam", view_size=96),
        # ---
    ],
)
trainer.fit(Classifier(data.num_classes), data)
