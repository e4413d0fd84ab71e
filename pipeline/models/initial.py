"""Fresh weights as a recipe specifies them: whitening filters first, identities after that.

The first convolution has K filters and sees P pixels of C channels, D = C P numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pipeline.data import Images, sample
from pipeline.errors import UserError
from pipeline.models import network
from pipeline.models.network import ModelState
from pipeline.models.spec import NetworkSpec
from pipeline.sweep import Recipe

IMAGES = 2000  # that the filters are made of
AT_ONCE = 50
SMALLEST = 5e-4  # added to each variance, with pixels of variance one: what is less is noise


def fresh(spec: NetworkSpec, seed: int, recipe: Recipe, images: Images) -> ModelState:
    """A fresh network; the same for the same seed, recipe and training images. Raises UserError for
    a network that cannot have what the recipe requests."""
    state = network.new(spec, seed)
    if recipe.whitening:
        whiten(state, sample(images, IMAGES, 0).pixels.cpu())  # of all classes: they lie sorted
    if recipe.dirac:
        hand_on(state)
    return state


@torch.no_grad()
def whiten(state: ModelState, pixels: torch.Tensor) -> None:
    """The convolutions that read the image give what it varies in, each with variance one, and its
    negative beside it, which a rectifier would lose: the eigenvectors of the pixels' covariance,
    those of the most variance first, as far as there are filters (Jordan 2024, arXiv 2404.00498,
    "patch-whitening", with kernels of 2x2). Filters beyond that stay as they are."""
    layers = list(image_layers(state))
    if not layers:
        raise UserError(
            "training.whitening: expected a convolution without groups that reads the image, "
            f"{state.spec.model} has none; leave it out"
        )
    images = state.network.normalize(pixels)
    for layer in layers:
        filters = _eigenfilters(images, layer)
        count = min(len(filters), len(layer.weight) // 2)
        layer.weight[:count] = filters[:count]
        layer.weight[count : 2 * count] = -filters[:count]


@torch.no_grad()
def hand_on(state: ModelState) -> None:
    """The first filters of each further convolution without stride, one for each of its channels,
    hand them on as they are (Zagoruyko and Komodakis 2017, arXiv 1706.00388)."""
    first = set(image_layers(state))
    for layer in state.network.modules():
        if isinstance(layer, nn.Conv2d) and layer not in first and _has_a_middle(layer):
            nn.init.dirac_(layer.weight[: layer.in_channels])


def image_layers(state: ModelState) -> Iterator[nn.Conv2d]:
    """The convolutions that read the image itself."""
    for name in network.graph_of(state.spec).image:
        layer = state.network.module.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            yield layer


def _has_a_middle(layer: nn.Conv2d) -> bool:
    """Whether a filter can hand on the pixel that it is at, and reads more than that."""
    odd = all(side % 2 for side in layer.kernel_size) and max(layer.kernel_size) > 1
    return odd and layer.groups == 1 and layer.stride == (1, 1)


def _eigenfilters(images: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """[D, C, h, w]: eigenvectors of what the layer's kernel sees, each divided by the deviation
    along it, the largest first."""
    variances, vectors = torch.linalg.eigh(_covariance(images, layer))
    scaled = vectors / (variances + SMALLEST).sqrt()
    return scaled.t().flip(0).reshape(-1, images.shape[1], *layer.kernel_size).float()


def _covariance(images: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """[D, D], float64; a few images at a time, since each pixel is seen h w times."""
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in images.split(AT_ONCE):
        seen = nn.functional.unfold(part, layer.kernel_size).double()  # [n, D, P]
        seen = seen.transpose(0, 1).flatten(1)
        count += seen.shape[1]
        total = total + seen.sum(1)
        products = products + seen @ seen.t()
    mean = total / count
    return products / count - mean.outer(mean)
