"""The diagonal of a classifier's Fisher information, exactly, without a gradient for each input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexkern.learners.mlp.network import linear_layers
from flexkern.ops.checks import exact_dtype

__all__ = ["diagonal_fisher", "draw_labels", "mean_squared_gradients"]


def diagonal_fisher(model: nn.Sequential, x: Tensor, u: Tensor) -> list[Tensor]:
    """Mean over inputs of the squared gradient of ``log p(y | x)``, with y drawn from the model's own answer.

    That is the Fisher information itself (Kirkpatrick et al. 2017, arXiv 1612.00796), not the "empirical" one,
    which has training labels in place of y.

    Args:
        model: linear layers with ReLU between them, as :func:`flexkern.learners.mlp.network.build` makes.
        x: [n, in], the dtype of the model, n at least 1.
        u: [n], uniform on [0, 1): they draw the labels, one for each input.

    Returns:
        A tensor for each parameter, in the order of ``model.parameters()``, in its shape and dtype; float32 of
        a low-precision model, and all of it computed in float32.
    """
    with torch.no_grad():
        logits = _entered(model, x)[-1]
    return mean_squared_gradients(model, x, draw_labels(logits, u))


@torch.no_grad()
def mean_squared_gradients(model: nn.Sequential, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Mean over inputs of the squared gradient of ``log p(label | x)``; the rest as :func:`diagonal_fisher`.

    For one input, a linear layer's weight has the gradient ``delta a^T``, with ``a`` the layer's input and
    ``delta`` the derivative of log p by its output. So the squares, summed over a batch of inputs, are one
    product, ``(delta^2)^T (a^2)``, and those of the bias are the sum of ``delta^2``.
    """
    layers = linear_layers(model)
    *entered, logits = _entered(model, x)
    delta = nn.functional.one_hot(labels, logits.shape[1]) - logits.softmax(1)
    squares: list[Tensor] = []
    for i in reversed(range(len(layers))):
        squared = delta.square() / len(labels)
        squares = [squared.T @ entered[i].square(), squared.sum(0), *squares]
        if i:
            # The derivative of ReLU is 1 where its output is over 0, and 0 at 0, as autograd has it.
            delta = (delta @ layers[i].weight.to(delta.dtype)) * (entered[i] > 0)
    return squares


def _entered(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Each layer's input, and the logits. 1 - p of a likely class would be lost in bfloat16."""
    found: list[Tensor] = []
    for layer in linear_layers(model):
        found.append(x.relu() if found else x)
        exact = exact_dtype(layer.weight)
        x = nn.functional.linear(found[-1], layer.weight.to(exact), layer.bias.to(exact))
    return [*found, x]


@torch.no_grad()
def draw_labels(logits: Tensor, u: Tensor) -> Tensor:
    """A class for each row, int64 [n], from its softmax: the inverse of its distribution function at ``u``."""
    cumulative = logits.double().softmax(1).cumsum(1)
    drawn = torch.searchsorted(cumulative, u.double().unsqueeze(1), right=True).squeeze(1)
    return drawn.clamp_(max=logits.shape[1] - 1)  # rounding can leave the last sum under u
