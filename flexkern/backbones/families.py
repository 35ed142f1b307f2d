"""The families of vision transformers that are known, and how each is taken apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.backbones.parts import (
    AdapterPoint,
    FirstToken,
    InDtype,
    Interpolated,
    MeanToken,
    Parts,
    SquareOnly,
    Then,
    grid_side,
)

__all__ = ["FAMILIES", "family_of", "interpolates", "own_features", "parts_of", "vision_part"]

FAMILIES = (
    "of Hugging Face ViT, DeiT, DINOv2, DINOv3, I-JEPA, BEiT, ViT-MSN, SigLIP and CLIP; of timm "
    "VisionTransformer, Eva and Beit"
)
# Names, and not classes: neither library is imported to look at a module.
_HUGGING_FACE = {
    "ViTModel": "ViT",
    "ViTMSNModel": "ViT-MSN",
    "DeiTModel": "DeiT",
    "Dinov2Model": "DINOv2",
    "Dinov2WithRegistersModel": "DINOv2 with registers",
    "DINOv3ViTModel": "DINOv3",
    "IJepaModel": "I-JEPA",
    "BeitModel": "BEiT",
    "SiglipVisionModel": "SigLIP",
    "SiglipVisionTransformer": "SigLIP",  # of transformers 4
    "CLIPVisionModel": "CLIP",
    "CLIPVisionTransformer": "CLIP",
}
_TIMM = {"VisionTransformer": "timm VisionTransformer", "Eva": "timm Eva", "Beit": "timm Beit"}
# Blocks whose norm2 is before the MLP, within a residual connection: others have no place for an adapter there.
_TIMM_BLOCKS = ("Block", "EvaBlock")


def family_of(model: nn.Module) -> str | None:
    """Name of the family of a model; None if it is of none that is known."""
    for parent in type(model).__mro__:
        name = parent.__name__
        if name in _HUGGING_FACE and hasattr(model, "config"):
            return _HUGGING_FACE[name]
        if name in _TIMM and hasattr(model, "patch_embed") and hasattr(model, "forward_head"):
            return _TIMM[name]
    return None


def vision_part(model: nn.Module) -> nn.Module:
    """The vision transformer in a model that has more: the base of a classifier, the images' side of CLIP, what
    torch.compile was given.

    A model that is one, or has none of a known family, is returned as it is.
    """
    model = getattr(model, "_orig_mod", model)
    if family_of(model) is not None:
        return model
    # Classifiers of these two do not read what their base pools, and so are of no known family.
    classifies = type(model).__name__.endswith("ForImageClassification")
    for name in ("base_model",) if classifies else ("base_model", "vision_model"):
        try:
            part = getattr(model, name, None)
        except Exception:  # a property of somebody's module
            continue
        if isinstance(part, nn.Module) and part is not model and family_of(part) is not None:
            return part
    return model


def interpolates(model: nn.Module) -> bool:
    """Whether a Hugging Face model can be asked to fit its positions to images of another size."""
    return family_of(model) in _HUGGING_FACE.values() and (
        "interpolate_pos_encoding" in inspect.signature(model.embeddings.forward).parameters  # type: ignore[union-attr]
    )


def parts_of(network: nn.Module, *, interpolate: bool = False) -> Parts | None:
    """A model of a known family (``FAMILIES``) in parts; None of others.

    Args:
        network: the model; classifiers and CLIP give their vision transformer.
        interpolate: fit the positions to images of another size, of a model that :func:`interpolates`.

    Raises:
        ValueError: if it is of a known family, with something in it that is not supported.
    """
    model: Any = vision_part(network)  # of no class that is known here
    family = family_of(model)
    if family is None:
        return None
    return _timm(model) if family in _TIMM.values() else _hugging_face(model, family, interpolate)


def own_features(network: nn.Module, images: Tensor, *, interpolate: bool = False) -> Tensor | None:
    """What the model itself pools from images, [n, width], by its own forward; None: it does not pool.

    Args:
        network: of a known family.
        images: as the network takes them, normalised.
        interpolate: as in :func:`parts_of`.
    """
    model: Any = vision_part(network)
    family = family_of(model)
    if family in _TIMM.values():
        return model.forward_head(model.forward_features(images), pre_logits=True)
    output = model(images, interpolate_pos_encoding=True) if interpolate else model(images)
    if family in ("ViT", "DeiT", "ViT-MSN"):  # their poolers, where there are any, are a part of no classifier
        return output.last_hidden_state[:, 0]
    if family == "I-JEPA":
        return output.last_hidden_state.mean(1)
    return output.pooler_output


# ------------------------------------------------------------------ timm


def _timm(model: Any) -> Parts:
    kind = type(model).__name__
    others = sorted({type(b).__name__ for b in model.blocks if not _is_a(b, _TIMM_BLOCKS)})
    if others or not len(model.blocks):
        what = f"blocks of the kind {', '.join(others)}" if others else "no blocks"
        raise ValueError(f"{kind} has {what}; adapters fit blocks with a norm before their MLP")
    pool = getattr(model, "global_pool", None)
    if not pool:
        raise ValueError(
            f"{kind} pools nothing (global_pool={pool!r}); make it with global_pool='token' or 'avg'"
        )
    if getattr(model, "rope_mixed", False):
        raise ValueError(
            f"{kind} has other rotary positions in each block (rope_mixed), which is not supported"
        )
    distilled = getattr(model, "dist_token", None) is not None
    words = {
        "token": "class token",
        "avg": "mean of the patch tokens",
        "map": "attention pooling of the tokens",
    }
    feature = "mean of class and distillation token" if distilled else words.get(pool, f"global_pool={pool!r}")
    if getattr(model, "pool_include_prefix", False) and pool == "avg":
        feature = "mean of all tokens"
    if not isinstance(model.fc_norm, nn.Identity):
        feature += ", then fc_norm"
    points = [AdapterPoint(block, block.norm2) for block in model.blocks]
    embed: Callable[[Tensor], Tensor] = _TimmEmbedding(model)
    arguments = None
    if _is_a(model, ("Eva", "Beit")):
        embed, arguments = SquareOnly(embed), _TimmArguments(model)
    return Parts(
        embed, points, model.norm, pool=_TimmPool(model), prefix=model.num_prefix_tokens, last=model.fc_norm,
        arguments=arguments, feature=feature,
    )  # fmt: skip


def _is_a(module: nn.Module, names: Sequence[str]) -> bool:
    return any(parent.__name__ in names for parent in type(module).__mro__)


@dataclass(frozen=True)
class _TimmEmbedding:
    """What comes before a timm model's blocks."""

    model: Any

    def __call__(self, images: Tensor) -> Tensor:
        model = self.model
        x = model.patch_embed(images.to(next(model.patch_embed.parameters()).dtype))
        if _is_a(model, ("Eva",)):
            return model.norm_pre(model._pos_embed(x)[0])
        if _is_a(model, ("Beit",)):
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
            return model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)
        return model.norm_pre(model._pos_embed(x))


@dataclass(frozen=True)
class _TimmArguments:
    """Positions that Eva and Beit hand to each block."""

    model: Any

    def __call__(self, tokens: Tensor) -> dict[str, Any]:
        model = self.model
        if _is_a(model, ("Beit",)):
            return {"shared_rel_pos_bias": None if model.rel_pos_bias is None else model.rel_pos_bias()}
        rope = getattr(model, "rope", None)
        if rope is None:
            return {"rope": None}
        if not model.dynamic_img_size and hasattr(rope, "feat_shape"):
            return {"rope": rope.get_embed()}
        side = grid_side(tokens, model.num_prefix_tokens)
        return {"rope": rope.get_embed(shape=(side, side))}


@dataclass(frozen=True)
class _TimmPool:
    """All of a timm model's head but its last layer."""

    model: Any

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.model.forward_head(tokens, pre_logits=True)


# ------------------------------------------------------------------ Hugging Face


def _hugging_face(model: Any, family: str, interpolate: bool) -> Parts:
    layers = _layers(model)
    names = (
        "layernorm_after",
        "norm2",
        "layer_norm2",
    )  # before the MLP: in ViT and DeiT, DINO, SigLIP and CLIP
    points = [AdapterPoint(layer, getattr(layer, n)) for layer in layers for n in names if hasattr(layer, n)]
    if not points or len(points) != len(layers):
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} blocks, {len(points)} with a norm before their MLP"
        )
    embed: Any = Interpolated(model.embeddings) if interpolate else model.embeddings
    embed = InDtype(embed, next(m for m in model.embeddings.modules() if isinstance(m, nn.Conv2d)))
    if family in ("ViT", "ViT-MSN"):
        return Parts(embed, points, model.layernorm)
    if family == "DeiT":
        return Parts(embed, points, model.layernorm, prefix=2)
    if family in ("DINOv2", "DINOv2 with registers"):
        registers = getattr(model.config, "num_register_tokens", 0) if family != "DINOv2" else 0
        return Parts(embed, points, model.layernorm, prefix=1 + registers)
    if family == "DINOv3":
        prefix = 1 + model.config.num_register_tokens
        return Parts(
            SquareOnly(embed), points, model.norm, prefix=prefix, arguments=_DINOv3Arguments(model, prefix)
        )
    if family == "I-JEPA":
        return Parts(
            embed, points, model.layernorm, pool=MeanToken(0), prefix=0, feature="mean of the patch tokens"
        )
    if family == "BEiT":
        return _beit(model, embed, points)
    arguments = _NoMask()
    if family == "SigLIP":
        if getattr(model, "head", None) is None:
            raise ValueError(f"{type(model).__name__} has no pooling head (vision_use_head is off)")
        return Parts(
            embed, points, model.post_layernorm, pool=model.head, prefix=0, arguments=arguments,
            feature="attention pooling of the tokens",
        )  # fmt: skip
    return Parts(
        Then(embed, model.pre_layrnorm), points, nn.Identity(), pool=FirstToken(model.post_layernorm),
        last=model.post_layernorm, arguments=arguments,
    )  # fmt: skip


def _layers(model: Any) -> Any:
    """The list of blocks, which versions of transformers keep in different places."""
    for holder in (model, getattr(model, "encoder", None), getattr(model, "model", None)):
        for name in ("layers", "layer"):
            layers = getattr(holder, name, None)
            if isinstance(layers, nn.ModuleList):
                return layers
    raise ValueError(f"{type(model).__name__} has no list of blocks")


def _beit(model: Any, embed: Any, points: list[AdapterPoint]) -> Parts:
    if model.pooler is None:
        raise ValueError(
            f"{type(model).__name__} was made without its pooler; make it with add_pooling_layer=True"
        )
    mean = model.pooler.layernorm is not None
    return Parts(
        SquareOnly(embed), points, model.layernorm, pool=model.pooler, last=model.pooler.layernorm,
        arguments=_BeitArguments(model),
        feature="mean of the patch tokens, then a norm" if mean else "class token",
    )  # fmt: skip


@dataclass(frozen=True)
class _NoMask:
    """SigLIP's and CLIP's blocks want to be told that there is no mask."""

    def __call__(self, tokens: Tensor) -> dict[str, Any]:
        return {"attention_mask": None}


@dataclass(frozen=True)
class _DINOv3Arguments:
    """Rotary positions."""

    model: Any
    prefix: int

    def __call__(self, tokens: Tensor) -> dict[str, Any]:
        side = grid_side(tokens, self.prefix) * _whole(self.model.config.patch_size)
        return {"position_embeddings": self.model.rope_embeddings(tokens.new_empty((1, 1, side, side)))}


@dataclass(frozen=True)
class _BeitArguments:
    """Relative positions, of each block or shared."""

    model: Any

    def __call__(self, tokens: Tensor) -> dict[str, Any]:
        side = grid_side(tokens, 1)
        shared, pixels = self.model.shared_position_bias, side * _whole(self.model.config.patch_size)
        mask = None if shared is None else shared((side, side), dim_size=tokens.shape[1])
        return {"attention_mask": mask, "resolution": (pixels, pixels)}


def _whole(patch: Any) -> int:
    return int(patch if isinstance(patch, int) else patch[0])
