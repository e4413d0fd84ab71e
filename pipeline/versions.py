"""Versions of what stages share; each stage has its own, `VERSION` in its module.

Whoever changes numbers raises the version of what changes them. `data` and `training` decide
weights and are part of every cell's id: raising one makes every cell anew. `artifact` and
`measurement` are made from the weights and are recorded beside them: raising one makes only what
follows from the weights anew.

A version stands for what is computed, not for the kernels that do it: another device, precision or
PyTorch, a CUDA graph or a compiler add in another order. A result records device, precision and
versions.
"""

from __future__ import annotations

SHARED = {
    "data": 2,  # pixels, their order, the split: pipeline/data
    "training": 2,  # pipeline/training; since 2, gradients of folded networks are clipped
    # pipeline/artifact; since 3, integers end where a clipped activation does
    "artifact": 3,
    # How a network of the user's own is taken apart, tracing, rewriting, points and coupling in
    # pipeline/models: in the id of what is made of its base, and since 6 in that of the base.
    # Since 2, grouped convolutions and splits are cut; since 3, parts of one tensor are rounded
    # alike; since 4, which layers are first and last is that of the run; since 5, padding by
    # reflection stays in low-rank factors, and prune-learned keeps filters before activations
    # that are not zero at zero; since 6, only a pool of the whole map is its average, all that
    # a concatenation joins is in its range, and weights that layers share are folded apart.
    "tracing": 6,
    "measurement": 2,  # pipeline/measure; since 2, each layer is compared with each of the base
}
