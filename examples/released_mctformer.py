"""PPC on a host of the shape of the released MCTformer: a token for each class, before those of the patches."""

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


class MCTformerShaped(L.LightningModule):
    """A class is scored by its own token, and by the patches, whose scores are maps."""

    def __init__(self, num_classes):
        super().__init__()
        # timm calls further tokens registers.
        tokens = {"class_token": False, "reg_tokens": num_classes, "no_embed_class": True, "global_pool": ""}
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=4, dynamic_img_size=True, **tokens)
        self.head = nn.Conv2d(self.vit.num_features, num_classes, kernel_size=3, padding=1)
        self.num_classes = num_classes

    def forward(self, images):
        tokens = self.vit.forward_features(images)
        of_classes, patches = tokens[:, : self.num_classes], tokens[:, self.num_classes :]
        grid = self.vit.patch_embed.dynamic_feat_size(images.shape[-2:])
        return of_classes.mean(dim=2), self.head(patches.transpose(1, 2).unflatten(2, grid))

    def training_step(self, batch, batch_idx):
        of_classes, maps = self(batch["image"])
        tags = sum(F.multilabel_soft_margin_loss(x, batch["tags"]) for x in (of_classes, maps.mean(dim=(2, 3))))
        self.log("tags", tags)
        return tags

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
            features=lambda outputs: outputs["vit.norm"][:, data.num_classes :],  # the patches' tokens
            cams="head",
            layout="NLC",
            view_size=96,
        ),
        # ---
    ],
)
trainer.fit(MCTformerShaped(data.num_classes), data)
