"""What students are taught beside soft logits: the parts of a divergence, blends, feature maps."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.sweep import Recipe
from pipeline.techniques import distill_staged, stage_module
from pipeline.training import losses
from tests import cells, stages
from tests.test_techniques import split_of


def some(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(16, 10, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_the_parts_of_a_divergence_make_the_whole(temperature, scale):
    """Zhao et al. 2022: KD = TCKD + (1 - p) NCKD, where p is what the teacher gives the class; each
    part has a gradient, however sure the teacher is."""
    logits, targets = some(1).requires_grad_(), some(2, scale)
    labels = torch.arange(16) % 10
    right, rest = losses.parts(logits, targets, labels, temperature)
    p = torch.softmax(targets / temperature, 1)[torch.arange(16), labels]
    whole = temperature**2 * (right + (1 - p) * rest).mean()
    expected = losses.distance(logits, targets, temperature)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    assert (right >= -1e-5).all() and (rest >= -1e-5).all()
    for part in (right, rest):
        [gradient] = torch.autograd.grad(part.sum(), [logits], retain_graph=True)
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_blends_are_what_both_networks_see(bench):
    """The student that is its teacher loses nothing, and its labels count in the images' parts."""
    base = stages.base_of(bench).network.eval()
    seen = []
    base.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels, labels = split_of(bench).test.pixels[:32], split_of(bench).test.labels[:32]
    torch.manual_seed(0)
    with torch.inference_mode():
        loss, _ = losses.blended(base, 2.0, 1.0, 0.0)(base, pixels, labels)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    own, others = seen
    assert torch.equal(own, others) and not torch.equal(own, pixels.float())
    torch.manual_seed(0)
    with torch.inference_mode():
        hard, logits = losses.blended(base, 2.0, 0.5, 0.0)(base, pixels, labels)
    torch.manual_seed(0)
    part, other = torch.rand(32), torch.randperm(32)
    log = torch.log_softmax(logits, 1)
    picked = part * log[range(32), labels] + (1 - part) * log[range(32), labels[other]]
    assert float(hard) == pytest.approx(-0.5 * float(picked.mean()), abs=1e-5)


def test_each_stage_trains_its_own_layers_and_the_head_comes_last(bench):
    """And what stages trained stays as it is afterwards, feature maps near the teacher's."""
    steps = []

    def watch(now):
        steps.append({n: p.detach().clone() for n, p in now.network.module.named_parameters()})

    student = stages.run(bench, "distill-staged", watch=watch, stages=2, epochs=1, width=0.5)
    assert len(steps) == 3 * 8 and not student.spec.transforms
    trained = []
    for part in range(3):
        first, last = steps[8 * part], steps[8 * part + 7]
        trained.append(
            {
                n.split(".conv")[0].split(".norm")[0]
                for n in first
                if not torch.equal(first[n], last[n])
            }
        )
    backbone = [{f"features.{i}" for i in each} for each in (range(0, 2), range(2, 8))]
    assert trained == [
        backbone[0] | {"adapters.0.weight"},
        backbone[1] | {"adapters.1.weight"},
        {"head.weight", "head.bias"},
    ]
    assert student.spec.channels[0] == 8


def test_a_staged_student_counts_all_its_epochs_and_has_enough_maps(bench):
    settings = stage_module("distill-staged").Settings(stages=4)
    assert settings.epochs_each(Recipe(epochs=60)) == 12
    assert settings.epochs_of(Recipe(epochs=60)) == 60
    assert settings.epochs_of(Recipe(epochs=1)) == 5
    spec = stages.base_of(bench).spec
    assert distill_staged._maps(spec, spec, 5) == [0, 1, 2, 3, 4]
    assert distill_staged._maps(spec, spec, 2) == [1, 4]
    with pytest.raises(UserError, match=r"stages: 6, but vgg11_bn has 5 feature maps"):
        distill_staged._maps(spec, spec, 6)


@pytest.mark.parametrize(
    "chain, stage",
    [
        ([{"prune": {}}, {"train": {"width": 0.5}}], "train"),
        *(([{"quantize": {}}, {student: {}}], student) for student in ("distill", "dkd")),
    ],
)
def test_a_student_is_the_first_of_its_stages(tmp_path, chain, stage):
    """What stands before it would be done for nothing; the shape of a pruned network is trained by
    `train` without a width."""
    sentence = rf"define\.mine\[1\]\.{stage}: {stage} starts from another network, so the stages"
    with pytest.raises(UserError, match=sentence):
        cells.cells(tmp_path, ["base", "mine"], define={"mine": chain})
    kept = [{"prune": {}}, {"train": {}}]
    assert "mine" in cells.cells(tmp_path, ["base", "mine"], define={"mine": kept})
