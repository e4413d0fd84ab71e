"""Files of trained weights, of others or from another data set, and modules that are given them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.network import ModelState
from pipeline.terminal import tell

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep weights
# What networks that run on several GPUs, or compiled ones, put before the names.
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


def read(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """The tensors in a file by their names in the module; UserError where the file is not that of
    the plan, or holds anything but tensors."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(f"{path}: changed since the sweep was loaded; load it again")
        tensors: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # of a file that is no such thing, whatever a parser raises
        raise UserError(
            f"{path}: cannot be read as weights ({type(error).__name__}); expected safetensors, "
            "or a state dict that torch.load(weights_only=True) reads"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise UserError(f"{path}: expected a state dict, names and tensors")
    return {str(name): tensor for name, tensor in tensors.items()}


def _renamed(
    tensors: Mapping[str, torch.Tensor], wanted: Collection[str]
) -> Mapping[str, torch.Tensor]:
    """Without the prefixes that PyTorch gave the names, where more of them are ``wanted`` so: a
    network may have a submodule of that name."""
    without = [{n.removeprefix(p): t for n, t in tensors.items()} for p in PREFIXES]
    return max((tensors, *without), key=lambda names: len(names.keys() & wanted))


def other_head(state: ModelState, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the last layer's tensors where ``tensors`` has such a layer for another number of
    classes; none where that is the same, or where more than that differs."""
    module, classes = state.network.module, state.spec.classes
    layers = [n for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    own = module.state_dict()
    tensors = _renamed(tensors, own)
    last = tuple(name for name in own if layers and name.rpartition(".")[0] == layers[-1])
    if not all(name in tensors and tensors[name].dim() for name in last):
        return ()
    same = all(tensors[name].shape[1:] == own[name].shape[1:] for name in last)
    counts = {len(tensors[name]) for name in last}
    return last if same and len(counts) == 1 and counts != {classes} else ()


def fill(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    builds: str,
    left: Collection[str] = (),
) -> None:
    """The tensors into a module, but for those named in ``left``; UserError where they are not
    those of its layers. ``source``: where they are from; ``builds``: what the module is."""
    wanted = module.state_dict()
    tensors = _renamed(tensors, wanted)
    required = [name for name in wanted if name not in left]
    lacking = [n for n in required if n not in tensors and not n.endswith("num_batches_tracked")]
    wrong = [n for n in required if n in tensors and tensors[n].shape != wanted[n].shape]
    if lacking or wrong:
        what = (
            f"lacks {lacking[0]}"
            if lacking
            else f"{wrong[0]} is {list(tensors[wrong[0]].shape)}, expected "
            f"{list(wanted[wrong[0]].shape)}"
        )
        raise UserError(f"{source}: is not of {builds}: {what}")
    beyond = [name for name in tensors if name not in wanted]
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        tell(f"{source}: {beyond[0]}{more}: in the file, but not in {builds}; not used")
    module.load_state_dict(
        {n: wanted[n] if n in left else tensors.get(n, wanted[n]) for n in wanted}
    )
