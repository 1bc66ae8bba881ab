"""Weights of single tokens, learned from what the reference makes of them: the masks of SparsePO.

    m_t = ReLU(Σ_l a_l·s_l),    s_l = ReLU(w_l·LN(h_l) + b_l)

h_l is the reference's hidden state after layer l, where it predicts token t, LN a layer norm that
all layers share, and the sum is over the layers. A loss that reads ``chosen_step_weights`` has them
in fine-tuning: they are trained with the model and are in its checkpoints, and its folder gets them
as ``token_weights.safetensors``. The model does not need them to answer.

Source: Christopoulou et al., arXiv 2410.05102, and the authors' code (``simple_all``, one mask for
rewards and divergences). They draw a_l at random, and then all weights may be 0 for ever; here a_l
begins at 1/L, and w_l and b_l as every linear layer of PyTorch does.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.runs.seeding import derive_seed

FILE = "token_weights.safetensors"


class TokenWeights(nn.Module):
    """A weight ≥ 0 for every token, most of them perhaps 0.

    Args:
        layers: L, of the reference.
        size: of its hidden states.
        drop: share of the s_l, and of the weights, that training leaves out at random; the authors'
            default.

    >>> weights = TokenWeights(layers=2, size=4)
    >>> weights(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([3, 5])
    """

    def __init__(self, layers: int, size: int, *, drop: float = 0.01):
        super().__init__()
        self.drop = drop
        self.norm = nn.LayerNorm(size)
        self.layers = nn.ModuleList(nn.Linear(size, 1) for _ in range(layers))
        self.mix = nn.Parameter(torch.full((layers,), 1 / layers))

    def forward(self, hidden: Tensor) -> Tensor:
        """The weights of tokens.

        Args:
            hidden: ``[layers, batch, time, size]``, of any floating type.

        Returns:
            ``[batch, time]``, float32.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # as all that a loss reads
            hidden = self.norm(hidden.to(self.mix.dtype))
            scores = [layer(states) for layer, states in zip(self.layers, hidden, strict=True)]
            scores = dropout(torch.cat(scores, -1).relu(), self.drop, self.training)
            return dropout((scores @ self.mix).relu(), self.drop, self.training)

    def save(self, folder: str | Path) -> None:
        """Write them into the folder of the model that was trained with them."""
        save_file({k: v.detach() for k, v in self.state_dict().items()}, Path(folder) / FILE)


def token_weights(
    objective: Objective | MirrorObjective, model: Any, seed: int
) -> TokenWeights | None:
    """What gives a loss its weights of tokens, if it reads them.

    Args:
        objective: the loss.
        model: the reference, or one of its shape.
        seed: of the initial values.
    """
    if not any("_step_weights" in name for name in objective.inputs):
        return None
    config = model.config.get_text_config()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "token_weights"))
        return TokenWeights(config.num_hidden_layers, config.hidden_size)
