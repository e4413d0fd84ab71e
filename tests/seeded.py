"""Seeded runs of every stage, small and on one core, in figures that can be compared.

``python -m tests.seeded``: the figures of this code, as JSON; ``--write`` puts them into
``golden/seeded.json``, which ``test_seeded.py`` holds the code against. A figure that changes
without a version that was raised makes old results count for what they are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "seeded.json"
MODEL = {"name": "vgg11_bn", "width": 0.125}
TRAINING = {
    "epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.05,
    "train_images": 400,
    "precision": "fp32",
}
CHAINS: dict[str, list[dict[str, dict]]] = {
    "finetune": [{"finetune": {"epochs": 1}}],
    "finetune-taught": [{"finetune": {"epochs": 1, "teacher": "base"}}],
    "prune": [{"prune": {"parameters_kept": 0.4}}],
    "prune-layer": [{"prune": {"parameters_kept": 0.4, "scope": "layer", "criterion": "l2"}}],
    "prune-bn-scale": [{"prune": {"parameters_kept": 0.4, "criterion": "bn-scale"}}],
    "prune-by-chance": [{"prune": {"parameters_kept": 0.4, "criterion": "random"}}],
    "prune-by-taylor": [{"prune": {"parameters_kept": 0.4, "criterion": "taylor", "images": 128}}],
    "prune-by-fpgm": [{"prune": {"parameters_kept": 0.4, "criterion": "fpgm", "scope": "layer"}}],
    "prune-by-clusters": [{"prune-clusters": {"parameters_kept": 0.4}}],
    "prune-by-clusters-dropped": [{"prune-clusters": {"macs_kept": 0.4, "rest": "drop"}}],
    "prune-by-gates": [{"prune-learned": {"parameters_kept": 0.4}}],
    "train": [{"train": {"width": 0.5}}],
    "distill": [{"distill": {}}],
    "distill-attention": [{"distill": {"attention": 1.0}}],
    "distill-decoupled": [{"dkd": {}}],
    "distill-blended": [{"distill-consistent": {"soft": 0.5, "epochs": 2}}],
    "distill-by-stages": [{"distill-staged": {"stages": 2}}],
    "few": [{"distill-few": {"parameters_kept": 0.4, "images": 50}}],
    "few-weights": [{"distill-few": {"parameters_kept": 0.4, "images": 50, "solve": "weights"}}],
    "tucker": [{"low-rank": {"parameters_kept": 0.4}}],
    "svd": [{"low-rank": {"macs_kept": 0.5, "method": "svd"}}],
    "quantize": [{"quantize": {"reduce_range": "off"}}],
    "quantize-pairs": [{"quantize": {}}],
    "quantize-7": [{"quantize": {"reduce_range": "on", "calibration": "minmax"}}],
    "quantize-aware-pairs": [{"quantize": {"aware": True, "epochs": 1}}],
    "quantize-aware": [{"quantize": {"aware": True, "epochs": 1, "reduce_range": "off"}}],
    "quantize-learned": [
        {"quantize": {"aware": True, "ranges": "learned", "epochs": 1, "reduce_range": "off"}}
    ],
    "sparsify": [{"sparsify": {"sparsity": 0.8, "learning_rate_factor": 0.5, "epochs": 1}}],
    "sparsify-by-chance": [
        {"sparsify": {"criterion": "random", "scope": "layer", "schedule": "one-shot", "epochs": 1}}
    ],
    "sparsify-by-layers": [{"sparsify": {"criterion": "lamp", "updates": 4, "epochs": 1}}],
    "cluster": [{"cluster": {"k_convolution": 8, "learning_rate_factor": 0.02, "epochs": 1}}],
    "quantize-incremental": [{"quantize-incremental": {"learning_rate_factor": 0.02, "epochs": 1}}],
    "lowbits": [{"lowbits": {"bits": 2}}],
    "lowbits-4": [{"lowbits": {"bits": 4, "progressive": False, "eight_bits": "none"}}],
    "ternary-weights": [{"ternary": {}}],
    "binary-weights": [{"binary": {}}],
    "binary-or-ternary": [{"binary-ternary": {}}],
    "rate-term": [{"rate": {}}],
    "encode": [{"encode": {}}],
    "rounded": [{"rate": {}}, {"encode": {"rounding": 0.02}}],
    "all": [
        {"prune": {"parameters_kept": 0.4}},
        {"finetune": {"epochs": 1, "teacher": "base"}},
        {"quantize": {"aware": True, "epochs": 1, "teacher": "base", "reduce_range": "off"}},
    ],
}


def figures(
    folder: Path, chains: Iterable[str] | None = None, device: str = "cpu", **training: Any
) -> dict[str, dict[str, Any]]:
    """Chain -> what its weights and its history come to; called again with the same folder, it
    takes the base from there."""
    from tests import cells

    chains = list(CHAINS if chains is None else chains)
    made = cells.cells(
        folder,
        ["base", *chains],
        models=[MODEL],
        training={**TRAINING, **training},
        define={name: CHAINS[name] for name in chains},
    )
    return {name: _figures(cell, folder, device) for name, cell in made.items()}


def _figures(cell, folder: Path, device: str) -> dict[str, Any]:
    import torch

    from pipeline import execute, store
    from pipeline.paths import Work
    from pipeline.training.loop import Diverged
    from tests import cells

    work = Work(folder / "work")
    core = cells.one_core() if device == "cpu" else contextlib.nullcontext()
    with core, store.lock_cell(work.cell(cell.id)):
        torch.set_num_threads(1)
        if cell.is_base:
            execute.run_cell(cell, work, work.root, device=device, threads=1, measures=False)
        run = execute._Run(cell, work, work.cell(cell.id), work.root, device, lambda event: None)
        try:
            state, history = run.staged()
        except Diverged as error:
            return {"diverged": str(error)}
        finally:
            run.checkpoints.close()
    tensors = {n: t.detach().contiguous() for n, t in sorted(state.network.state_dict().items())}
    digest = hashlib.sha256()
    for tensor in tensors.values():  # whatever they are called
        digest.update(tensor.numpy().tobytes())
    last = history[-1].columns if history else {}
    return {
        "sha256": digest.hexdigest(),
        "weights": sum(float(t.double().abs().sum()) for t in tensors.values()),
        # In the sum large tensors hide small ones, such as the scales of a quantized network.
        "logarithms": sum(math.log(_size(t)) for t in tensors.values()) / len(tensors),
        "loss": [round(value, 6) for value in last.get("loss", [])],
        "held_out_loss": [round(value, 6) for value in last.get("held_out_loss", [])],
    }


def _size(tensor) -> float:
    return float(tensor.double().abs().mean()) or 1.0


def machine() -> dict[str, Any]:
    """What decides the last bits: other kernels add in another order."""
    import torch

    from pipeline import hardware

    return {
        "cpu": hardware.cpu_name(),
        "flags": list(hardware.cpu_flags()),
        "torch": torch.__version__,
    }


def main() -> None:
    given = [argument for argument in sys.argv[1:] if argument != "--write"]
    training = json.loads(given[0]) if given else {}
    with tempfile.TemporaryDirectory() as folder:
        made = {**machine(), "chains": figures(Path(folder), **training)}
    text = json.dumps(made, indent=1)
    if "--write" in sys.argv:
        GOLDEN.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
