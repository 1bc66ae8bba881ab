"""What both libraries are given: pairs of log-probabilities; token ids and a model of them."""

from types import SimpleNamespace

import torch
from torch import Tensor

from torchmpo.objectives.inputs import PairLogps

SEEDS = range(3)
PAIRS = 16
# Largest length, spread of per-step means, and of the policy's log-ratio to its reference, in nats.
MAGNITUDES = {"moderate": (40, 3.0, 3.0), "large": (2000, 30.0, 300.0)}


def same(actual, expected, **tolerance):
    """Equal up to rounding in float64."""
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-9, "atol": 1e-9} | tolerance)


def differ(one, other):
    """Not equal by a hundredth or more, somewhere."""
    return not torch.allclose(one, other, rtol=1e-2, atol=1e-2)


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def pairs(magnitude="moderate", seed=0, preference_probs=None):
    """The two leaves that gradients are taken of, and every field that depends on them."""
    longest, step, ratio = MAGNITUDES[magnitude]
    generator = torch.Generator().manual_seed(seed)
    fields: dict[str, Tensor] = {}
    leaves = []
    for side in ("chosen", "rejected"):
        lengths = torch.randint(1, longest + 1, (PAIRS,), generator=generator)
        means = -0.05 - step * torch.rand(PAIRS, generator=generator, dtype=torch.float64)
        ratios = ratio * torch.randn(PAIRS, generator=generator, dtype=torch.float64)
        leaves.append((means * lengths).requires_grad_())
        ref = (means * lengths - ratios).clamp(max=-0.01)
        fields |= _fields(side, leaves[-1], ref, lengths)
    if preference_probs is not None:
        fields["preference_probs"] = torch.full_like(leaves[0], preference_probs).detach()
    return leaves, PairLogps(**fields)


def one_pair(chosen, rejected, ref_chosen=-1.0, ref_rejected=-1.0, dtype=torch.float64):
    """One pair of responses of one step, so that sums are means."""
    leaves = [tensor(x, dtype=dtype).requires_grad_() for x in (chosen, rejected)]
    refs = [tensor(x, dtype=dtype) for x in (ref_chosen, ref_rejected)]
    fields: dict[str, Tensor] = {}
    for side, logps, ref in zip(("chosen", "rejected"), leaves, refs, strict=True):
        fields |= _fields(side, logps, ref, torch.ones_like(ref))
    return leaves, PairLogps(**fields)


def _fields(side, logps, ref, lengths):
    return {
        f"{side}_logps": logps,
        f"{side}_mean_logps": logps / lengths,
        f"{side}_lengths": lengths,
        f"ref_{side}_logps": ref,
        f"ref_{side}_mean_logps": ref / lengths,
    }


def gradients(losses, leaves, seed=None):
    """Of the losses' sum; with a seed, a weighted sum, in which no two pairs can be confused."""
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        losses = losses * torch.rand(losses.shape, generator=generator, dtype=losses.dtype)
    return torch.autograd.grad(
        losses.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )


# Tokens. Id 0 pads.

VOCABULARY = 7


class Bigram(torch.nn.Module):
    """A language model whose logits depend on the last token alone."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (VOCABULARY, VOCABULARY)
        logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.table = torch.nn.Parameter(logits)

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.table[input_ids])

    def step_logps(self, prompt, response):
        """Of the response's tokens, one by one."""
        before = torch.cat([prompt[-1:], response[:-1]])
        return torch.log_softmax(self.table[before], -1)[range(len(response)), response]


class Texts:
    """Prompts with two responses each, and the batches that TRL makes of them.

    Args:
        chosen, rejected: lengths of the responses.
        prompt: length of every prompt.
        lowest: smallest token id.
    """

    def __init__(self, chosen, rejected, prompt, seed=0, lowest=1):
        generator = torch.Generator().manual_seed(seed)

        def draw(length):
            return torch.randint(lowest, VOCABULARY, (length,), generator=generator)

        self.prompts = [draw(prompt) for _ in chosen]
        self.responses = {
            "chosen": [draw(length) for length in chosen],
            "rejected": [draw(length) for length in rejected],
        }

    def of(self, side):
        return list(zip(self.prompts, self.responses[side], strict=True))

    def dpo_batch(self, ref_chosen_logps, ref_rejected_logps):
        """For DPOTrainer: prompts apart, and the reference's log-probabilities as it keeps them."""
        prompts = torch.stack(self.prompts)
        batch = {
            "prompt_input_ids": prompts,
            "prompt_attention_mask": torch.ones_like(prompts),
            "ref_chosen_logps": ref_chosen_logps,
            "ref_rejected_logps": ref_rejected_logps,
        }
        for side, responses in self.responses.items():
            batch[f"{side}_input_ids"] = _padded(responses, 0)
            batch[f"{side}_attention_mask"] = _padded([torch.ones_like(x) for x in responses], 0)
        return batch

    def cpo_batch(self):
        """For CPOTrainer and ORPOTrainer: prompt and response in one, the prompt's labels −100."""
        batch = {}
        for side in self.responses:
            whole = [torch.cat(x) for x in self.of(side)]
            labels = [torch.cat([torch.full_like(x, -100), y]) for x, y in self.of(side)]
            batch[f"{side}_input_ids"] = _padded(whole, 0)
            batch[f"{side}_attention_mask"] = _padded([torch.ones_like(x) for x in whole], 0)
            batch[f"{side}_labels"] = _padded(labels, -100)
        return batch

    def pair(self, model, ref):
        """What our losses take."""
        fields: dict[str, Tensor] = {}
        for side, responses in self.responses.items():
            sums, ref_sums = (
                torch.stack([network.step_logps(x, y).sum() for x, y in self.of(side)])
                for network in (model, ref)
            )
            lengths = torch.tensor([len(x) for x in responses])
            fields |= _fields(side, sums, ref_sums.detach(), lengths)
        return PairLogps(**fields)


def _padded(rows, value):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


# Lengths of four pairs.
UNEQUAL = {"chosen": (3, 8, 1, 5), "rejected": (6, 2, 4, 4), "prompt": 3}
# Over chosen responses of one length, a mean over tokens is the mean of the responses' means.
EQUAL = UNEQUAL | {"chosen": (5, 5, 5, 5)}
# The first token of a prompt is never predicted.
BARE = EQUAL | {"prompt": 1}
