"""PPC on a host of the shape of the released EPS: a network with a tuple of outputs, the background last."""

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


class Network(nn.Module):
    """Scores of the photo, and its maps."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = timm.create_model("resnet10t", num_classes=0, global_pool="", output_stride=16)
        self.fc8 = nn.Conv2d(self.encoder.num_features, num_classes + 1, kernel_size=1, bias=False)

    def forward(self, images):
        cam = self.fc8(self.encoder(images))
        return cam.mean(dim=(2, 3)), cam


class EPSShaped(L.LightningModule):
    """The maps' probabilities add up to a saliency map; here the mean brightness stands in for one."""

    def __init__(self, num_classes):
        super().__init__()
        self.model = Network(num_classes)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        score, cam = self.model(batch["image"])
        tags = F.multilabel_soft_margin_loss(score[:, :-1], batch["tags"])
        self.log("tags", tags)
        saliency = F.interpolate(batch["image"].mean(dim=1, keepdim=True), cam.shape[2:]).sigmoid()
        return tags + F.mse_loss(1 - cam.softmax(dim=1)[:, -1:], saliency)

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
        PrototypeContrastCallback(
            features="model.encoder", cams=("model", 1), background=-1, in_channels=512, view_size=96
        ),
        # ---
    ],
)
trainer.fit(EPSShaped(data.num_classes), data)
