"""Gradients of objectives over pairs: closed forms, the start of a search, what has none."""

import pytest
import torch

from torchmpo import MirrorObjective, resolve
from torchmpo.objectives.gradients import gradient_map, gradients


def test_gradient_map_of_simpo_is_its_closed_form():
    chosen, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -1.5, -0.5])
    by_chosen, by_rejected = gradient_map(
        resolve("simpo", beta=2.0, target_margin=0.5), chosen, rejected
    )
    margin = 2.0 * (chosen[:, None] - rejected[None, :]).double() - 0.5
    expected = -2.0 * torch.sigmoid(-margin)
    torch.testing.assert_close(by_chosen, expected)
    torch.testing.assert_close(by_rejected, -expected)


@pytest.mark.parametrize("steps", ["one", "two"])
@pytest.mark.parametrize("temporal", [False, True])
def test_gradient_map_of_the_zero_vector_is_its_starting_loss(steps, temporal):
    grid = torch.linspace(-6, -0.1, 7)
    ours = gradient_map(MirrorObjective(steps=steps, temporal=temporal), grid, grid)
    start = gradient_map(resolve("orpo") if steps == "one" else resolve("dpo"), grid, grid)
    for a, b in zip(ours, start, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_gradient_map_of_a_loss_that_ignores_the_rejected():
    by_chosen, by_rejected = gradient_map(
        resolve("sft"), torch.tensor([-1.0]), torch.tensor([-1.0])
    )
    assert (by_chosen.item(), by_rejected.item()) == (-1.0, 0.0)


def test_gradients_of_pairs_each_at_its_own_progress():
    def later(chosen_mean_logps, rejected_mean_logps, progress):
        return -progress * chosen_mean_logps + 2 * rejected_mean_logps

    x = torch.tensor([-1.0, -2.0, -3.0])
    by_chosen, by_rejected = gradients(resolve(later), x, x, progress=torch.tensor([0.0, 0.5, 1.0]))
    assert by_chosen.tolist() == [0.0, -0.5, -1.0]
    assert by_rejected.tolist() == [2.0, 2.0, 2.0]


def test_a_coupled_loss_has_no_gradient_of_a_pair():
    with pytest.raises(ValueError, match="aot has no gradient of a pair"):
        gradient_map(resolve("aot"), torch.tensor([-1.0]), torch.tensor([-1.0]))


def own_masked(chosen_step_logps, chosen_mask, rejected_step_logps, rejected_mask):
    """As the vocabulary says of masks: ``~`` and ``where`` want bool."""
    kept = torch.where(chosen_mask, chosen_step_logps, 0.0).sum(-1)
    return rejected_step_logps.masked_fill(~rejected_mask, 0.0).sum(-1) - kept


def test_masks_are_as_in_training():
    chosen, rejected = gradients(resolve(own_masked), torch.zeros(3), torch.zeros(3))
    assert chosen.tolist() == [-1.0] * 3
    assert rejected.tolist() == [1.0] * 3
