"""PPC in a plain PyTorch loop around a torchvision ResNet."""

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from wsss_contrast.data import ShapesDataModule

# --- attach PPC: imports
from wsss_contrast.losses import PrototypeContrast
from wsss_contrast.nn import Projector

# ---

torch.manual_seed(0)
data = ShapesDataModule(train_length=16, batch_size=4)
data.setup("fit")
model = resnet18(num_classes=data.num_classes)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

# --- attach PPC: parts
maps = []
model.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
projector, contrast = Projector(in_channels=512), PrototypeContrast()
optimizer.add_param_group({"params": projector.parameters()})
# ---

for batch in data.train_dataloader():
    losses = {"tags": F.multilabel_soft_margin_loss(model(batch["image"]), batch["tags"])}
    # --- attach PPC: step
    model(F.interpolate(batch["image"], size=(96, 96), mode="bilinear", align_corners=True))
    cams = [F.conv2d(view, model.fc.weight[:, :, None, None]) for view in maps]
    losses |= contrast(projector(maps[0]), cams[0], projector(maps[1]), cams[1], batch["tags"])
    maps.clear()
    # ---
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    print({name: round(loss.item(), 4) for name, loss in losses.items()})
