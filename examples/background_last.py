"""PPC on a host whose maps carry a background channel, the last one, as in EPS."""

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


class WithBackground(L.LightningModule):
    """The background competes with the classes at each pixel; every photo is tagged with it."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = timm.create_model("resnet10t", num_classes=0, global_pool="", output_stride=16)
        self.cam = nn.Conv2d(self.encoder.num_features, num_classes + 1, kernel_size=1, bias=False)

    def forward(self, images):
        return self.cam(self.encoder(images))

    def training_step(self, batch, batch_idx):
        share = self(batch["image"]).softmax(dim=1).amax(dim=(2, 3))
        loss = F.binary_cross_entropy(share, F.pad(batch["tags"], (0, 1), value=1.0))
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
        PrototypeContrastCallback(features="encoder", cams="cam", background=-1, view_size=96),
        # ---
    ],
)
trainer.fit(WithBackground(data.num_classes), data)
