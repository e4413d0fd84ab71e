"""Stages, and the techniques that are chains of them.

A stage is one file and one line in STAGES, or in the STAGES of a plug-in. Its module gives

- ``Settings``: a frozen model of what a sweep file may say about it, with every default; it derives
  from ``settings.StageSettings``, whose methods say for how long it trains and what it leaves;
- ``VERSION``: raised when the same settings give other weights, which makes its cells anew;
- ``apply(state, settings, context) -> ModelState``: what it does; see ``context.py``;
- ``expand(settings) -> [(stage, settings), ...]``, if it stands for several stages in a row.

Nothing here imports torch: ``netpress plan`` reads these tables, and every Settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline import registry
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipeline.models.network import ModelState
    from pipeline.sweep import Recipe
    from pipeline.techniques.context import Context
    from pipeline.techniques.settings import StageSettings

STAGES: dict[str, str] = {
    # name: module
    "train": "pipeline.techniques.train",
    "finetune": "pipeline.techniques.finetune",
    "prune": "pipeline.techniques.prune",
    "prune-clusters": "pipeline.techniques.prune_clusters",
    "prune-learned": "pipeline.techniques.prune_learned",
    "distill": "pipeline.techniques.distill",
    "dkd": "pipeline.techniques.dkd",
    "distill-consistent": "pipeline.techniques.distill_consistent",
    "distill-staged": "pipeline.techniques.distill_staged",
    "distill-few": "pipeline.techniques.distill_few",
    "low-rank": "pipeline.techniques.low_rank",
    "quantize": "pipeline.techniques.quantize",
    "sparsify": "pipeline.techniques.sparsify",
    "cluster": "pipeline.techniques.cluster",
    "quantize-incremental": "pipeline.techniques.quantize_incremental",
    "lowbits": "pipeline.techniques.lowbits",
    "ternary": "pipeline.techniques.ternary",
    "binary": "pipeline.techniques.binary",
    "binary-ternary": "pipeline.techniques.binary_ternary",
    "rate": "pipeline.techniques.rate",
    "encode": "pipeline.techniques.encode",
}

TECHNIQUES: dict[str, tuple[str, list[dict[str, dict[str, Any]]]]] = {
    # name: (what it is, its stages after the base's training)
    "base": ("the trained network that all others start from", []),
    "ptq-int8": (
        "post-training int8 quantization, calibrated on training images",
        [{"quantize": {}}],
    ),
    "qat-int8": ("int8 quantization-aware training", [{"quantize": {"aware": True}}]),
    "prune-filters": (
        "filter pruning by L1 norm to a quarter of the parameters, fine-tuned (Li et al. 2017)",
        [{"prune": {"parameters_kept": 0.25}}, {"finetune": {}}],
    ),
    "prune-taylor": (
        "the same by first-order Taylor importance (Molchanov et al. 2019)",
        [{"prune": {"parameters_kept": 0.25, "criterion": "taylor"}}, {"finetune": {}}],
    ),
    "prune-fpgm": (
        "the same by distance to the geometric median, per layer (He et al. 2019)",
        [
            {"prune": {"parameters_kept": 0.25, "criterion": "fpgm", "scope": "layer"}},
            {"finetune": {}},
        ],
    ),
    "prune-clusters": (
        "one filter of each k-means cluster kept, to a quarter of the parameters, fine-tuned",
        [{"prune-clusters": {"parameters_kept": 0.25}}, {"finetune": {}}],
    ),
    "prune-learned": (
        "filter pruning by gates learned together with the weights, to a quarter of the parameters",
        [{"prune-learned": {"parameters_kept": 0.25}}],
    ),
    "kd": (
        "knowledge distillation into a student of half the width (Hinton et al. 2015)",
        [{"distill": {}}],
    ),
    "attention-transfer": (
        "the same student by attention transfer (Zagoruyko and Komodakis 2017)",
        [{"distill": {"soft": 0.0, "attention": 100.0}}],
    ),
    "attention-transfer-kd": (
        "the same student by attention transfer and soft logits",
        [{"distill": {"attention": 100.0}}],
    ),
    "dkd": (
        "the same student by decoupled knowledge distillation (Zhao et al. 2022)",
        [{"dkd": {}}],
    ),
    "kd-consistent": (
        "the same student, on mixed-up images alone, three times the epochs (Beyer et al. 2022)",
        [{"distill-consistent": {}}],
    ),
    "distill-staged": (
        "the same student, feature maps stage by stage, then the head (Gao et al. 2018)",
        [{"distill-staged": {}}],
    ),
    "distill-few": (
        "filter pruning, layers fitted by least squares to 500 unlabelled images (after Li et al. "
        "2020 and He et al. 2017)",
        [{"distill-few": {"parameters_kept": 0.25, "solve": "weights"}}],
    ),
    "low-rank": (
        "low-rank factorization of convolutions (Kim et al. 2016), fine-tuned",
        [{"low-rank": {"parameters_kept": 0.25}}, {"finetune": {}}],
    ),
    "small-and-int8": (
        "a sixteenth of the parameters, fine-tuned with distillation, then quantization-aware",
        [
            {"prune": {"parameters_kept": 0.0625}},
            {"finetune": {"teacher": "base"}},
            {"quantize": {"aware": True, "teacher": "base"}},
        ],
    ),
    "deep-compression": (
        "95 % sparse, weights shared by k-means, entropy-coded (Han et al. 2015)",
        [{"sparsify": {"sparsity": 0.95}}, {"cluster": {}}, {"encode": {}}],
    ),
    "inq-5": (
        "incremental quantization to zero and powers of two, 5 bits, coded (Zhou et al. 2017)",
        [{"quantize-incremental": {}}, {"encode": {}}],
    ),
    "inq-3": (
        "the same with 3 bits: zero and two powers of two",
        [{"quantize-incremental": {"bits": 3, "scales": "filter"}}, {"encode": {}}],
    ),
    "qat-int4": (
        "4-bit weights with learned step sizes, by way of 8 bits, coded (Esser et al. 2020)",
        [{"lowbits": {"bits": 4}}, {"encode": {}}],
    ),
    "qat-int2": (
        "2-bit weights with learned step sizes, by way of 8 and 4 bits, coded",
        [{"lowbits": {"bits": 2}}, {"encode": {}}],
    ),
    "ternary": (
        "ternary weights with a scale per filter, coded (Li et al. 2016)",
        [{"ternary": {}}, {"encode": {}}],
    ),
    "binary": (
        "binary weights with a scale per filter, coded (Rastegari et al. 2016)",
        [{"binary": {}}, {"encode": {}}],
    ),
    "binary-ternary": (
        "each layer learns to be binary or ternary, coded (Razani et al. 2021)",
        [{"binary-ternary": {}}, {"encode": {}}],
    ),
    "rate": (
        "int8, with estimated coded bits added to the loss (Oktay et al. 2020)",
        [{"rate": {}}, {"encode": {}}],
    ),
    "small-and-rate": (
        "a sixteenth of the parameters, fine-tuned with distillation, then the stages of rate",
        [
            {"prune": {"parameters_kept": 0.0625}},
            {"finetune": {"teacher": "base"}},
            {"rate": {"teacher": "base"}},
            {"encode": {}},
        ],
    ),
    # Controls: what a technique has to be better than.
    "prune-random": (
        "control: prune-filters with randomly chosen filters",
        [{"prune": {"parameters_kept": 0.25, "criterion": "random"}}, {"finetune": {}}],
    ),
    "sparse-random": (
        "control: sparsity of deep-compression with randomly chosen weights",
        [{"sparsify": {"sparsity": 0.95, "criterion": "random"}}],
    ),
    "pruned-from-scratch": (
        "control: the shape of prune-filters, from scratch for twice the epochs (scratch-B)",
        [{"prune": {"parameters_kept": 0.25}}, {"train": {"share": 2.0}}],
    ),
    "scratch-e": (
        "control: the same shape, from scratch for the base's epochs (scratch-E, Liu et al. 2019)",
        [{"prune": {"parameters_kept": 0.25}}, {"train": {}}],
    ),
    "base-anew": (
        "control: a second base from another initialization: how much two bases differ",
        [{"prune": {"parameters_kept": 1.0}}, {"train": {}}],
    ),
    "student-alone": (
        "control: the student of kd trained without a teacher",
        [{"train": {"width": 0.5}}],
    ),
    "base-longer": ("control: the base, trained for the extra epochs", [{"finetune": {}}]),
}
# Which of them are controls: never the answer, and marked wherever they are shown. A technique of
# a sweep's own is none.
ANEW = "base-anew"  # with which similarity is compared
CHANCE = "prune-random"  # what any choice of filters has to be better than
# Refinements, and what they have to be better than.
PLAIN = {
    **{"dkd": "kd", "distill-staged": "kd", "kd-consistent": "kd"},
    "distill-few": "prune-filters",  # the same filters go: fine-tuned instead, with all labels
}
CONTROLS = frozenset(
    {
        CHANCE,
        "sparse-random",
        "pruned-from-scratch",
        "scratch-e",
        ANEW,
        "student-alone",
        "base-longer",
    }
)


def about(settings: BaseModel) -> StageSettings:
    """What a stage with these settings says about itself; nothing, where they are another kind."""
    from pipeline.techniques.settings import StageSettings

    return settings if isinstance(settings, StageSettings) else StageSettings()


class StageModule(Protocol):
    """The module of a stage; ``expand``, which few have, is looked for where it is used."""

    Settings: type[BaseModel]

    def apply(self, state: ModelState, settings: Any, context: Context) -> ModelState:
        """``settings``: of the module's own ``Settings``."""


def refuse_settled(state: ModelState, stage: str) -> None:
    """UserError where the weights have their final values, which this stage would change."""
    for transform in state.spec.transforms:
        if transform.settles:
            raise UserError(
                f"{stage}: the weights of the network are {transform.name} already, and have few "
                "values, which it would change; expected it before the stage that does this"
            )


def stage_epochs(settings: BaseModel, recipe: Recipe) -> int:
    """Epochs that a stage with these settings trains for."""
    return about(settings).epochs_of(recipe)


def stage_module(stage: str) -> StageModule:
    """The module of a stage; UserError for a name that neither STAGES nor a plug-in has."""
    return registry.resolved(registry.row("stages", STAGES, stage))
