"""Weight sharing: a few values for all weights of a layer, then training of these values.

weight and codes [K, C, h, w] or [K, C], a scale a filter [K], k values a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.sweep.settings import young
from pipeline.techniques import refuse_settled
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.transforms.clustered import Codebook
    from pipeline.techniques.context import Context

Initialization = Literal["linear", "quantiles"]

VERSION = 1
LLOYD, SCALES = 50, 4  # rounds of k-means, and how often scales and clusters take turns


class Settings(Trained):
    """Trained quantization and weight sharing (Han et al. 2015, arXiv 1510.00149, section 3): what
    a weight's code stands for is trained, which code it has is not. The network is quantized to
    int8 first, unless it is: the shared values are integers on int8's grid, times a scale a filter.
    ``k`` counts them without zero, which is one more where weights are masked."""

    cites: ClassVar[tuple[str, ...]] = ("han2016deep",)

    k_convolution: int = Field(16, ge=2, le=128, description="values of a convolution: 2, 4, 8 ...")
    k_linear: int = Field(16, ge=2, le=128, description="values of a linear layer: 2, 4, 8 ...")
    initialization: Initialization = young(
        "linear",
        description="where k-means begins: evenly spread values (Han et al.), or quantiles of the "
        "weights, which suits layers with a few large ones (dirac)",
    )
    share: float = 0.2
    learning_rate_factor: Factor = 0.02

    @field_validator("k_convolution", "k_linear")
    @classmethod
    def _power(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"{value} is no power of two; expected 2, 4, 8, 16, 32, 64 or 128")
        return value


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.techniques import quantize

    recipe = context.cell.recipe
    trained = context.train(
        lambda: _clustered(state, settings, context),
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )
    return quantize.with_ranges(trained, "cluster")


def _clustered(state: ModelState, settings: Settings, context: Context) -> ModelState:
    """The quantized network with the weights of each layer in clusters."""
    from pipeline.models import network
    from pipeline.models.transforms.clustered import Clustered, codebooks
    from pipeline.models.transforms.fakequant import FakeQuantized, layers
    from pipeline.techniques import quantize

    refuse_settled(state, "cluster")
    if not state.spec.has(FakeQuantized.name):
        state = quantize.calibrated(state, FakeQuantized(weight_bits=7), context)
    transform = Clustered(settings.k_convolution, settings.k_linear)
    shared = network.with_transform(state, transform)
    weighted = layers(shared.network.module)
    for name, book in codebooks(shared.network.module).items():
        _fit(book, weighted[name].weight.detach(), settings.initialization)
    return shared


def _fit(book: Codebook, weight: torch.Tensor, begin: Initialization = "linear") -> None:
    from pipeline.models.transforms.clustered import LARGEST

    codes, values, scale = shared(weight, len(book.codebook), begin)
    largest = float(values.abs().max())
    step = largest / LARGEST if largest else 1.0
    book.set(codes, values / step, scale * step)


def shared(
    weight: torch.Tensor, k: int, begin: Initialization
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clusters of the weights as multiples of a scale a filter: k-means and the scales, each best
    in squares for the other, by turns. Weights that are zero are none of k-means' business.

    (codes as weight, 0: zero, i: value i - 1; values [k]; scales [K]), float64.
    """
    import torch

    flat = weight.double().cpu().flatten(1)
    alive = flat != 0
    scale = _scale(flat.square().sum(1), alive.sum(1), root=True)
    values, codes = torch.zeros(k).double(), torch.zeros_like(flat).long()
    for _ in range(SCALES):
        ratios = flat / scale[:, None]
        weights = scale.square()[:, None].expand_as(flat)
        values = kmeans(ratios[alive], weights[alive], k, begin)
        codes[alive] = nearest(ratios[alive], values) + 1
        centres = torch.cat((values.new_zeros(1), values))[codes]
        scale = _scale((flat * centres).sum(1), centres.square().sum(1))
    return codes.reshape(weight.shape), values, scale


def _scale(sums: torch.Tensor, counts: torch.Tensor, root: bool = False) -> torch.Tensor:
    """sums / counts [K], or its root; the largest of the others where it is not positive, 1 without
    others: as ``fakequant.widest``."""
    import torch

    from pipeline.models.spec import SMALLEST_NORMAL

    scale = sums / counts.clamp_min(1e-30)
    scale = scale.clamp_min(0).sqrt() if root else scale
    usable = scale >= SMALLEST_NORMAL * 1e6  # which is divided by at most 63 yet
    largest = torch.where(usable, scale, 0).amax()
    return torch.where(usable, scale, torch.where(largest > 0, largest, 1.0))


def kmeans(
    values: torch.Tensor, weights: torch.Tensor, k: int, begin: Initialization = "linear"
) -> torch.Tensor:
    """k centres [k], ascending, of numbers [n] that count as much as their weights [n]; float64.

    Lloyd's rounds. `linear`: from centres that are evenly spread from the smallest to the largest
    number, which keeps the few large ones represented (Han et al. 2015, section 3.2). Where most
    numbers are small and a few are large, as in layers that began as identities, most of these
    centres stay among the few; `quantiles`: from centres between which there are as many numbers.
    A centre without numbers stays where it is.
    """
    import torch

    if not len(values):
        return torch.zeros(k, dtype=torch.float64)
    order = values.sort().indices
    values, weights = values[order], weights[order]
    zero = values.new_zeros(1)
    mass = torch.cat((zero, weights.cumsum(0)))
    moment = torch.cat((zero, (weights * values).cumsum(0)))
    if begin == "linear":
        centres = torch.linspace(float(values[0]), float(values[-1]), k, dtype=torch.float64)
    else:
        centres = values[(2 * torch.arange(k) + 1) * len(values) // (2 * k)]
    for _ in range(LLOYD):
        bounds = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2, right=True)
        ends = torch.cat((bounds.new_zeros(1), bounds, bounds.new_full((1,), len(values))))
        inside = mass[ends[1:]] - mass[ends[:-1]]
        moved = (moment[ends[1:]] - moment[ends[:-1]]) / inside
        moved = torch.where(ends[1:] > ends[:-1], moved, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def nearest(values: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index (int64) of the centre that is nearest to each of the values; centres are ascending."""
    import torch

    return torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
