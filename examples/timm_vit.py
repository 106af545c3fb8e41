"""PPC on a LightningModule around a timm ViT: the features are tokens, the class token first."""

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


class TokenClassifier(L.LightningModule):
    """The patch tokens, without the class token, are a map that a 1x1 convolution scores."""

    def __init__(self, num_classes):
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
        self.cam = nn.Conv2d(self.vit.num_features, num_classes, kernel_size=1, bias=False)

    def forward(self, images):
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.dynamic_feat_size(images.shape[-2:])
        return self.cam(tokens.transpose(1, 2).unflatten(2, grid))

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
        PrototypeContrastCallback(features="vit.norm", cams="cam", layout="NLC", view_size=96),
        # ---
    ],
)
trainer.fit(TokenClassifier(data.num_classes), data)
