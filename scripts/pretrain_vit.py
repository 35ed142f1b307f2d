"""Pre-trains the small ViT that the package ships, on CIFAR-10 and half of the classes of CIFAR-100.

    python scripts/pretrain_vit.py --cifar10 cifar10.npz --cifar100 cifar100.npz --out flexkern/backbones/small
    python scripts/pretrain_vit.py --cifar10 cifar10.npz --epochs 6 --seed 1 --out other

The archives are those of flexkern.streams.image_pack. Classes 0 to 49 of CIFAR-100 (in its own, alphabetical
order) and all of CIFAR-10 make one problem of 60 classes; classes 50 to 99 are left for streams. Without
--cifar100 the problem is CIFAR-10 alone, and a study of CIFAR-100 has a backbone that has seen none of it.
Training images only. An interrupted run goes on from the last epoch. The result is a folder that transformers'
ViTModel.from_pretrained reads: config.json, model.safetensors (float16), training.json (what was run, and the
accuracy on test images).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from flexkern.files import write_json
from flexkern.streams.augment import as_float, random_resized_crop
from flexkern.streams.packs import Images, image_pack

KEPT = 50  # classes of CIFAR-100 that the backbone sees


def join(cifar10: Images, cifar100: Images | None) -> tuple[Tensor, Tensor]:
    """Images and labels of the one problem: CIFAR-10 is 0..9, the first classes of CIFAR-100 follow."""
    if cifar100 is None:
        return cifar10.images, cifar10.labels
    kept = cifar100.labels < KEPT
    images = torch.cat([cifar10.images, cifar100.images[kept]])
    return images, torch.cat([cifar10.labels, cifar100.labels[kept] + 10])


class Classifier(nn.Module):
    """The backbone and the head that is thrown away."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        # Attention in plain products: twice as fast as the fused one's backward pass on CPUs.
        config = ViTConfig(
            hidden_size=arguments.width,
            num_hidden_layers=arguments.depth,
            num_attention_heads=arguments.heads,
            intermediate_size=4 * arguments.width,
            image_size=32,
            patch_size=arguments.patch,
            attn_implementation="eager",  # type: ignore[call-arg]  # of its base class
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(arguments.width, 10 + (KEPT if arguments.cifar100 else 0))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit(images).last_hidden_state[:, 0])


def batch_of(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented: a crop of at least a third of the image, a flip, and one image in ten without colour."""
    x = random_resized_crop(as_float(images), 32, scale=(0.35, 1.0), generator=generator)
    grey = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.1
    return torch.where(grey.to(x.device), x.mean(1, keepdim=True), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--cifar100", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)

    ten = image_pack(arguments.cifar10)
    hundred = image_pack(arguments.cifar100) if arguments.cifar100 else (None, None)
    images, labels = join(ten[0], hundred[0])
    model = Classifier(arguments).to(device)
    steps = arguments.epochs * (len(images) // arguments.batch)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, arguments.lr)
    warmup = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / steps)))
    )

    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / "pretraining.pt"
    first, history = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, history = state["epoch"], state["history"]
    for epoch in range(first, arguments.epochs):
        start, total = time.time(), 0.0
        generator = torch.Generator().manual_seed(arguments.seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        model.train()
        for rows in order[: steps // arguments.epochs * arguments.batch].split(arguments.batch):
            x = batch_of(images[rows].to(device), generator)
            with torch.autocast(device, torch.bfloat16):
                logits = model(x)
            loss = functional.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        history.append(
            {"loss": round(total / (steps // arguments.epochs), 4), "seconds": round(time.time() - start)}
        )
        print(f"epoch {epoch + 1} of {arguments.epochs}: {history[-1]}", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(
            state | {"schedule": schedule.state_dict(), "epoch": epoch + 1, "history": history}, checkpoint
        )

    model.eval()
    test_images, test_labels = join(ten[1], hundred[1])
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        answers = torch.cat([model(as_float(x.to(device))).argmax(1).cpu() for x in test_images.split(500)])
    right = (answers == test_labels).float()
    accuracy = {"cifar10": right[test_labels < 10].mean().item()}
    data, classes = "CIFAR-10", 10
    if arguments.cifar100:
        accuracy["cifar100"] = right[test_labels >= 10].mean().item()
        data, classes = f"{data}, and classes 0 to {KEPT - 1} of CIFAR-100", classes + KEPT
    model.vit.config._attn_implementation = "sdpa"
    model.vit.half().save_pretrained(arguments.out)
    record = {
        "data": f"{data} (Krizhevsky, 2009); training images only",
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("cifar10", "cifar100", "out")},
        f"test_accuracy_of_{classes}_classes": {k: round(v, 4) for k, v in accuracy.items()},
        "epochs": history,
    }
    write_json(arguments.out / "training.json", record)
    checkpoint.unlink()
    print(json.dumps(accuracy))


if __name__ == "__main__":
    main()
