"""Layers and networks of low rank to factorize."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

import dualprox as dp

quick: dict[str, Any] = {"batch_sizes": (2,), "seconds": 0.01}


def factorize(*args: Any, **kwargs: Any) -> Any:
    """Of a type that lets a test look into the layers."""
    return dp.factorize(*args, **kwargs)


def factorize_like(*args: Any) -> Any:
    return dp.factorize_like(*args)


def lower_rank_(layer: Any, rank, rows="out", seed=0) -> Any:
    """Give a layer a weight of this rank, made in its own dtype from random factors."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight.data
    shape = weight.shape if rows == "out" else (weight.shape[1], weight.shape[0], *weight.shape[2:])
    matrix = weight.new_empty(shape).flatten(1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    left = torch.randn(matrix.shape[0], rank, generator=generator).to(wide)
    right = torch.randn(rank, matrix.shape[1], generator=generator).to(wide)
    product = (left @ right / matrix.shape[1] ** 0.5).view(shape)
    weight.copy_(product if rows == "out" else product.transpose(0, 1))
    return layer


def lenet() -> Any:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding="valid"),
            norm=nn.BatchNorm2d(16),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 9, 60),
            relu3=nn.ReLU(),
            fc2=nn.Linear(60, 10),
        )
    )
