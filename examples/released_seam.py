"""PPC on a host of the shape of the released SEAM: two views, refined maps of no submodule, background first."""

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


class SEAMShaped(L.LightningModule):
    """The network is the module. Its forward pass gives raw maps and refined ones, which a method makes of both."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = timm.create_model("resnet10t", num_classes=0, global_pool="", output_stride=16)
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(self.encoder.num_features, num_classes + 1, kernel_size=1, bias=False)
        self.f9 = nn.Conv2d(self.encoder.num_features, 64, kernel_size=1, bias=False)

    def forward(self, images):
        features = self.encoder(images)
        cam = self.fc8(self.dropout7(features))
        return cam, self.pcm(cam.detach(), self.f9(features.detach()))

    def pcm(self, cam, embedding):
        embedding = F.normalize(embedding.flatten(2), dim=1)
        affinity = (embedding.transpose(1, 2) @ embedding).relu()
        refined = cam.relu().flatten(2) @ (affinity / affinity.sum(dim=1, keepdim=True))
        return refined.view_as(cam)

    def training_step(self, batch, batch_idx):
        small = F.interpolate(batch["image"], scale_factor=0.5, mode="bilinear")
        (cam1, refined1), (cam2, refined2) = self(batch["image"]), self(small)
        tags = sum(F.multilabel_soft_margin_loss(x[:, 1:].mean(dim=(2, 3)), batch["tags"]) for x in (cam1, cam2))
        self.log("tags", tags)
        same_size = F.interpolate(refined1, refined2.shape[2:], mode="bilinear")
        return tags + (same_size - refined2).abs().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def show(trainer, *_):
    print({name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()})


L.seed_everything(0)
data = ShapesDataModule(train_length=16, batch_size=4)
host = SEAMShaped(data.num_classes)
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
            features="dropout7",
            cams=lambda outputs: host.pcm(outputs["fc8"].detach(), outputs["f9"]),
            background=0,
            in_channels=host.encoder.num_features,
        ),
        # ---
    ],
)
trainer.fit(host, data)
