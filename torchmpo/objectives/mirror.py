"""A learned mirror loss, whose flat parameter vector is what evolution searches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from torchmpo.losses import one_step_mirror_loss, two_step_mirror_loss
from torchmpo.losses.numerics import at_most
from torchmpo.losses.potentials import logit
from torchmpo.objectives.inputs import PairLogps, take
from torchmpo.objectives.monotone import ACTIVATIONS, MonotoneNetwork
from torchmpo.objectives.soundness import card_text, check_dtypes, check_learned, read_card
from torchmpo.runs.errors import nearest, one_line
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import parse_json

# The coefficients added to the networks, in the order in which a function's parameters hold them,
# with the values that make ORPO (one step) and DPO (two steps).
INITIAL = {
    "one": {"psi_log": 1.0, "phi_inv_logit": 1.0, "phi_inv_log": 0.0, "g_log": 0.1},
    "two": {"phi_inv_logit": 0.0, "phi_inv_log": 0.1, "g_log": 1.0},
}
# A coefficient is its initial value times exp(GAIN·θ), the exponent kept within ±MAX_GAIN_EXPONENT.
GAIN = 10.0
MAX_GAIN_EXPONENT = 7.0


def density(logps: Tensor) -> Tensor:
    """p = e^{logp} where it is a probability, 1 + logp beyond, so that densities stay tame."""
    return torch.exp(at_most(logps, 0.0)) + torch.relu(logps)


class MirrorObjective(nn.Module):
    """A learned mirror loss: ψ, φ⁻¹ and g are monotone networks plus log and logit terms.

    one step (eq. 10)   −ψ(c̄) − g(φ⁻¹(c̄) − φ⁻¹(r̄))
    two steps (eq. 9)   −g(φ⁻¹(c̄) − φ⁻¹(c̄') − φ⁻¹(r̄) + φ⁻¹(r̄'))

        ψ(logp)   = f_ψ(p) + a·logp
        φ⁻¹(logp) = f_φ(p) + b·logit + d·logp
        g(m)      = f_g(σ(m)) + c·log σ(m)

    Each f is a :class:`~torchmpo.objectives.monotone.MonotoneNetwork` of its own parameters, 0 at
    the zero vector; a, b, c, d ≥ 0 are a₀·exp(10θ), kept within a factor e⁷ of a₀, or relu(θ)
    where a₀ = 0. **So the zero vector is the initial objective**: ORPO with po_coef 0.1 (one step)
    or DPO with β 0.1 on per-step means (two steps). Every function is increasing at every vector,
    and values and gradients are finite in float32 for log-probabilities in [−1e4, 20]. The logit
    treats log-probabilities above −1e-6 as :func:`torchmpo.losses.potentials.logit` does; p goes on
    as 1 + logp where a density exceeds 1.

    Temporally aware: each f takes t = ``progress`` as well, and the coefficients' θ become
    θ + θ'·t [reconstructed from the paper's description].

    Args:
        steps: ``"one"``, or ``"two"`` (with a reference).
        learn: which of psi, phi_inv, g are searched (psi in one step only); the others keep their
            initial closed form and have no parameters.
        temporal: whether the learned functions depend on ``progress``.
        reduction: ``"mean"`` reads per-step means, ``"sum"`` summed log-probabilities.
        initial: replaces initial coefficients by name: psi_log, phi_inv_logit, phi_inv_log, g_log;
            each ≥ 0.
        activations, units: of the monotone networks.

    Attributes:
        vector: ``[dim]``, the parameter, zeros at first.
        dim: its length.
        inputs, unpaired, needs_reference, after_sft, coupled, name: as for :class:`Objective`.
        optional: none.
        card: what was saved beside a loaded objective.

    Raises:
        ValueError: an unknown setting; the message names the valid ones.

    Source: arXiv 2411.06568, section 3.1, eq. 9 and 10; t after Jackson et al. 2024.

    >>> objective = MirrorObjective(steps="one")
    >>> objective.dim, objective.vector.abs().sum().item()
    (759, 0.0)
    >>> x = torch.tensor([-2.0])
    >>> pair = PairLogps(chosen_mean_logps=x, rejected_mean_logps=x)
    >>> objective(pair).tolist()                         # orpo_loss(x, x)
    [2.06931471824646]
    """

    vector: nn.Parameter

    def __init__(
        self,
        *,
        steps: str = "one",
        learn: Sequence[str] | None = None,
        temporal: bool = False,
        reduction: str = "mean",
        initial: dict[str, float] | None = None,
        activations: Sequence[str] = tuple(ACTIVATIONS),
        units: int = 14,
    ):
        super().__init__()
        if not isinstance(temporal, bool):
            raise ValueError(f"temporal must be true or false; got {temporal!r}")
        if steps not in INITIAL:
            raise ValueError(f"steps must be 'one' or 'two'; got {steps!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum'; got {reduction!r}")
        functions = ("psi", "phi_inv", "g") if steps == "one" else ("phi_inv", "g")
        if not (learn is None or isinstance(learn, (list, tuple, str))):
            raise ValueError(f"learn must be a list of functions; got {learn!r}")
        learn = functions[:-1] if learn is None else tuple(learn)
        for name in learn:
            if name not in functions:
                raise ValueError(
                    f"learn: {name!r} is not a function of the {steps}-step loss; "
                    f"choose from {', '.join(functions)}"
                )
        if not isinstance(initial or {}, dict):
            raise ValueError(f"initial must be coefficients by name; got {initial!r}")
        coefs = dict(INITIAL[steps])
        for key, value in (initial or {}).items():
            if key not in coefs:
                raise ValueError(f"unknown initial coefficient {key!r}: {nearest(key, coefs)}")
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise ValueError(f"initial {key} must be zero or positive; got {value}")
            coefs[key] = float(value)
        self.steps, self.temporal, self.reduction, self.initial = steps, temporal, reduction, coefs
        self.learn = tuple(name for name in functions if name in learn)
        self.network = MonotoneNetwork(activations, units, temporal=temporal)
        self._functions = functions
        self._terms = {f: [c for c in coefs if c.startswith(f + "_")] for f in functions}
        per_coef = 2 if temporal else 1
        self._sizes = [self.network.dim + per_coef * len(self._terms[f]) for f in self.learn]
        self.dim = sum(self._sizes)
        self.vector = nn.Parameter(torch.zeros(self.dim))
        unit = "logps" if reduction == "sum" else "mean_logps"
        self._inputs = (f"chosen_{unit}", f"rejected_{unit}")
        if steps == "two":
            self._inputs += (f"ref_chosen_{unit}", f"ref_rejected_{unit}")
        uses_progress = temporal and bool(self.learn)
        self.inputs = frozenset(self._inputs + (("progress",) if uses_progress else ()))
        self.needs_reference = self.after_sft = steps == "two"
        self.optional = frozenset[str]()
        self.coupled = self.unpaired = False
        self.name = f"mirror_{steps}_step"
        self.card: dict = {}

    def functions(
        self, vector: Tensor, progress: Tensor | None = None
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """ψ and φ⁻¹ as functions of log-probabilities, and g as a function of the margin.

        Args:
            vector: ``[dim]``.
            progress: scalar or the shape of what the functions are called on; when temporal.

        Returns:
            functions by name (psi in one step only), each ``[...] → [...]``.
        """
        if vector.shape[-1:] != (self.dim,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}, expected ({self.dim},)")
        parts = dict(zip(self.learn, self.parts(vector), strict=True))
        return {name: self._function(name, parts.get(name), progress) for name in self._functions}

    def parts(self, vector: Tensor | None = None) -> tuple[Tensor, ...]:
        """What of a vector ``[dim]``, by default its own, belongs to each function it learns."""
        return (self.vector if vector is None else vector).split(self._sizes) if self.learn else ()

    def _function(
        self, name: str, part: Tensor | None, progress: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        terms = self._terms[name]
        if part is None:
            coefs = {term: self.initial[term] for term in terms if self.initial[term] > 0}
        else:
            theta, rest = part.split([self.network.dim, part.shape[0] - self.network.dim])
            coefs = {
                term: self._coef(self.initial[term], rest, k, progress)
                for k, term in enumerate(terms)
            }

        def function(x: Tensor) -> Tensor:
            logps = logsigmoid(x) if name == "g" else x
            # The least precise type in which 1 − ε is not 1.
            logps = logps.to(torch.promote_types(logps.dtype, torch.float32))
            out = torch.zeros_like(logps)
            if part is not None:
                probs = torch.sigmoid(x).to(logps.dtype) if name == "g" else density(logps)
                out = self.network(theta, probs, progress)
            for term, coef in coefs.items():
                out = out + coef * (logit(logps) if term.endswith("logit") else logps)
            return out

        return function

    def _coef(self, initial: float, rest: Tensor, k: int, progress: Tensor | None) -> Tensor:
        theta = rest[k]
        if self.temporal:
            if progress is None:
                raise ValueError("a temporal objective needs the pair's progress")
            theta = theta + rest[rest.shape[0] // 2 + k] * progress
        if initial == 0:
            return torch.relu(theta)
        return initial * torch.exp((GAIN * theta).clamp(-MAX_GAIN_EXPONENT, MAX_GAIN_EXPONENT))

    def apply(self, vector: Tensor, pair: PairLogps) -> Tensor:
        """The loss of each pair under the parameters ``vector`` instead of the own ones.

        Args:
            vector: ``[dim]``; a population is a vmapped dimension before it.
            pair: at least the fields in ``inputs``.

        Returns:
            ``[batch]``, float32 or wider.

        Raises:
            ValueError: a field it needs is ``None``, or the shapes differ.
        """
        data = [take(pair, name, self.name) for name in self._inputs]
        progress = take(pair, "progress", self.name) if "progress" in self.inputs else None
        functions = self.functions(vector, progress)
        loss = one_step_mirror_loss if self.steps == "one" else two_step_mirror_loss
        return loss(*data, **functions)

    def forward(self, pair: PairLogps) -> Tensor:
        """The loss of each pair, ``[batch]``, under ``self.vector``."""
        return self.apply(self.vector, pair)

    def architecture(self) -> dict[str, Any]:
        """What ``MirrorObjective(**architecture)`` needs to build this objective again."""
        return {
            "steps": self.steps,
            "learn": list(self.learn),
            "temporal": self.temporal,
            "reduction": self.reduction,
            "initial": self.initial,
            "activations": list(self.network.activations),
            "units": self.network.units,
        }

    def save(self, folder: str | Path, card: dict) -> None:
        """Write ``objective.safetensors`` and ``card.json``; each appears whole or not at all.

        Args:
            folder: made if it does not exist.
            card: how the objective was found and what it scores; anything JSON can hold.

        Raises:
            ValueError: the card is no dictionary that JSON can hold.
        """
        from safetensors.torch import save

        text = card_text(card)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        metadata = {"mirror_objective": json.dumps(self.architecture())}
        write_atomic(folder / "card.json", text)
        write_atomic(folder / "objective.safetensors", save(tensors, metadata=metadata))

    @staticmethod
    def load(folder: str | Path) -> "MirrorObjective":
        """Read an objective that :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or not an objective, its values or gradients are
                not finite, or a function of it does not increase.
        """
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        try:
            with safe_open(str(folder / "objective.safetensors"), framework="pt") as file:
                metadata = file.metadata() or {}
                objective = MirrorObjective(**parse_json(metadata["mirror_objective"]))
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
                expected = {n: list(v.shape) for n, v in objective.state_dict().items()}
                if shapes != expected:  # before anything large is read
                    raise ValueError(f"it holds {shapes}, expected {expected}")
                tensors = {name: file.get_tensor(name) for name in shapes}
            check_dtypes(tensors)
            objective.to(tensors["vector"].dtype).load_state_dict(tensors)
            check_learned(objective)
            objective.card = read_card(folder)
        except (
            OSError,
            SafetensorError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            reason = one_line(error)
            raise ValueError(f"{folder} is not a readable saved objective: {reason}") from error
        return objective
