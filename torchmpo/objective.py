"""Objectives: a loss with all it needs, ready to be applied to pairs.

A loss says what it consumes by the names of its positional parameters, which are fields of
:class:`PairLogps`. :class:`Objective` binds a loss to hyper-parameters; :class:`MirrorObjective` is
a learned loss, whose flat parameter vector is what evolution searches; :func:`resolve` finds either
by name, by reference to a function, or by the folder it was saved in.
"""

import difflib
import functools
import importlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from torchmpo.errors import nearest
from torchmpo.files import write_atomic
from torchmpo.losses import COUPLED, LOSSES, one_step_mirror_loss, two_step_mirror_loss
from torchmpo.monotone import ACTIVATIONS, MonotoneNetwork
from torchmpo.potentials import logit


class PairLogps(NamedTuple):
    """What a loss may ask for about a batch of pairs; a field nobody asked for stays ``None``.

    ``*_logps`` are summed over steps and ``*_mean_logps`` divided by the length, ``[batch]``, nats;
    ``ref_*`` the same under the frozen reference; ``*_lengths`` the steps that count, ``[batch]``;
    ``progress`` the fraction of training done, a scalar in [0, 1]; ``*_rewards`` scores,
    ``[batch]``; ``preference_probs`` how likely the chosen response is the better one, ``[batch]``,
    in [0, 1]; ``*_step_logps`` and ``*_mask`` (bool, whether a step counts) per step,
    ``[batch, time]``.
    """

    chosen_logps: Tensor | None = None
    rejected_logps: Tensor | None = None
    chosen_mean_logps: Tensor | None = None
    rejected_mean_logps: Tensor | None = None
    chosen_lengths: Tensor | None = None
    rejected_lengths: Tensor | None = None
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    ref_chosen_mean_logps: Tensor | None = None
    ref_rejected_mean_logps: Tensor | None = None
    progress: Tensor | None = None
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    preference_probs: Tensor | None = None
    chosen_step_logps: Tensor | None = None
    rejected_step_logps: Tensor | None = None
    chosen_mask: Tensor | None = None
    rejected_mask: Tensor | None = None


def _source(function: Callable[..., Any]) -> Callable[..., Any]:
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function


def _take(pair: PairLogps, name: str, objective: str) -> Tensor:
    value = getattr(pair, name)
    if value is None:
        raise ValueError(f"{objective} needs {name}, which this pair does not have")
    return value


class Objective:
    """A loss function bound to its hyper-parameters.

    Args:
        function: positional parameters named after fields of :class:`PairLogps`, hyper-parameters
            keyword-only, ``[batch]`` out; also a ``partial`` or a compiled version of one.
        name: how to call it; by default the function's own name.
        **hyper: hyper-parameters, python numbers or 0-d tensors; the others keep their defaults.

    Attributes:
        inputs: the fields it reads.
        needs_reference: whether a reference policy's log-probabilities are among them.
        coupled: whether a pair's value depends on the rest of the batch, so that accumulated
            gradients differ from those of one large batch. Known of the library's own losses; any
            other says so by an attribute ``coupled = True`` of the function.
        hyper: every hyper-parameter with its value.
        source: the function under partials, decorators and ``torch.compile``.
        card: what was saved beside a loaded objective.

    Raises:
        ValueError: a parameter outside the vocabulary, an unknown or missing hyper-parameter, or
            one the loss itself refuses on a trial call.

    >>> from torchmpo.losses import simpo_loss
    >>> objective = Objective(simpo_loss, beta=4.0)
    >>> sorted(objective.inputs)
    ['chosen_mean_logps', 'rejected_mean_logps']
    >>> objective.parameters_tree()["beta"].item()
    4.0
    """

    def __init__(self, function: Callable[..., Tensor], *, name: str | None = None, **hyper: Any):
        self.function = function
        self.source = _source(function)
        self.name = name or getattr(self.source, "__name__", type(function).__name__)
        parameters = inspect.signature(function).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        for parameter in inputs:
            if parameter.name not in PairLogps._fields:
                close = difflib.get_close_matches(parameter.name, PairLogps._fields, n=1)
                raise ValueError(
                    f"{self.name}: parameter {parameter.name!r} is not an input that can be "
                    f"supplied{f' (did you mean {close[0]!r}?)' if close else ''}; inputs are "
                    f"{', '.join(PairLogps._fields)}; hyper-parameters go after a '*'"
                )
        for key in hyper:
            if key not in keywords:
                valid = f"it has {', '.join(keywords)}" if keywords else "it has none"
                raise ValueError(f"{self.name} has no hyper-parameter {key!r}: {valid}")
        self.hyper = keywords | hyper
        for key, value in self.hyper.items():
            if value is inspect.Parameter.empty:
                raise ValueError(f"{self.name} needs a value for its hyper-parameter {key!r}")
        self.card: dict = {}
        self._inputs = tuple(p.name for p in inputs)
        self._optional = frozenset(p.name for p in inputs if p.default is None)
        self.inputs = frozenset(self._inputs)
        self.needs_reference = any(i.startswith("ref_") for i in self.inputs)
        library = {LOSSES[coupled] for coupled in COUPLED}
        self.coupled = self.source in library or getattr(self.source, "coupled", False)
        self._try()

    def _try(self) -> None:
        """Mistakes show before any compute: one call on three made-up pairs."""
        values = {}
        for field in self._inputs:
            shape = (3, 4) if field.endswith(("_step_logps", "_mask")) else (3,)
            values[field] = torch.full(shape, -1.0 if field.endswith("logps") else 1.0)
            if field.endswith("_mask"):
                values[field] = values[field].bool()
            if field.endswith("_lengths"):
                values[field] = values[field].long()
        if "progress" in values:
            values["progress"] = torch.tensor(0.5)
        loss = self(PairLogps(**values))
        if not isinstance(loss, Tensor) or loss.shape != (3,):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{self.name} must return one value per pair, [batch]; got {got}")

    def parameters_tree(self) -> dict[str, Tensor]:
        """The numeric hyper-parameters as 0-d tensors: what a grid stacks to ``[population]``."""
        numbers = {
            key: torch.as_tensor(value, dtype=torch.get_default_dtype())
            for key, value in self.hyper.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        return numbers | {k: v for k, v in self.hyper.items() if isinstance(v, Tensor)}

    def __call__(self, pair: PairLogps) -> Tensor:
        """The loss of each pair, ``[batch]``, with the objective's own hyper-parameters."""
        return self.apply({}, pair)

    def apply(self, params: dict[str, Tensor], pair: PairLogps) -> Tensor:
        """The loss of each pair, with ``params`` in place of the own hyper-parameters they name.

        Args:
            params: 0-d tensors by name, as :meth:`parameters_tree` gives them.
            pair: at least the fields in ``inputs``.

        Returns:
            ``[batch]``.

        Raises:
            ValueError: a field the loss needs is ``None``.
        """
        data = [
            getattr(pair, name) if name in self._optional else _take(pair, name, self.name)
            for name in self._inputs
        ]
        return self.function(*data, **{**self.hyper, **params})

    def save(self, folder: str | Path, card: dict) -> None:
        """Write ``objective.json``, the loss's name and hyper-parameters, and ``card.json``.

        Args:
            folder: made if it does not exist.
            card: how the objective was found and what it scores; anything JSON can hold.

        Raises:
            ValueError: the function is none of ``LOSSES`` itself: a file can hold no other.
        """
        name = next((name for name, loss in LOSSES.items() if loss is self.function), None)
        if name is None:
            raise ValueError(
                f"{self.name} cannot be saved: it is not one of the library's losses, "
                "and functions are not written to files"
            )
        hyper = {k: v.item() if isinstance(v, Tensor) else v for k, v in self.hyper.items()}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"loss": name, "hyper": hyper}
        write_atomic(folder / "card.json", json.dumps(card, indent=2) + "\n")
        write_atomic(folder / "objective.json", json.dumps(content, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "Objective":
        """Read an objective that :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or not an objective.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "objective.json").read_bytes())
            name, hyper = content["loss"], content["hyper"]
            objective = Objective(LOSSES[name], name=name, **hyper)
            objective.card = json.loads((folder / "card.json").read_bytes())
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder} is not a readable saved objective: {reason}") from error
        return objective

    def __repr__(self) -> str:
        return f"Objective({', '.join([self.name, *(f'{k}={v}' for k, v in self.hyper.items())])})"


# The coefficients added to the networks, in the order in which a function's parameters hold them,
# with the values that make ORPO (one step) and DPO (two steps).
INITIAL = {
    "one": {"psi_log": 1.0, "phi_inv_logit": 1.0, "phi_inv_log": 0.0, "g_log": 0.1},
    "two": {"phi_inv_logit": 0.0, "phi_inv_log": 0.1, "g_log": 1.0},
}
# A coefficient is its initial value times exp(GAIN·θ), the exponent kept within ±MAX_GAIN_EXPONENT.
GAIN = 10.0
MAX_GAIN_EXPONENT = 7.0


def _density(logps: Tensor) -> Tensor:
    """p = e^{logp} where it is a probability, 1 + logp beyond, so that densities stay tame."""
    return torch.exp(logps.clamp(max=0.0)) + torch.relu(logps)


class MirrorObjective(nn.Module):
    """A learned mirror loss: ψ, φ⁻¹ and g are monotone networks plus log and logit terms.

    one step (eq. 10)   −ψ(c̄) − g(φ⁻¹(c̄) − φ⁻¹(r̄))
    two steps (eq. 9)   −g(φ⁻¹(c̄) − φ⁻¹(c̄') − φ⁻¹(r̄) + φ⁻¹(r̄'))

        ψ(logp)   = f_ψ(p) + a·logp
        φ⁻¹(logp) = f_φ(p) + b·logit + d·logp
        g(m)      = f_g(σ(m)) + c·log σ(m)

    Each f is a :class:`~torchmpo.monotone.MonotoneNetwork` of its own parameters, 0 at the zero
    vector; a, b, c, d ≥ 0 are a₀·exp(10θ), kept within a factor e⁷ of a₀, or relu(θ) where a₀ = 0.
    **So the zero vector is the initial objective**: ORPO with po_coef 0.1 (one step) or DPO
    with β 0.1 on per-step means (two steps). Every function is increasing at every vector, and
    values and gradients are finite in float32 for log-probabilities in [−1e4, 20]. The logit treats
    log-probabilities above −1e-6 as :func:`torchmpo.potentials.logit` does; p goes on as 1 + logp
    where a density exceeds 1.

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
        inputs, needs_reference, coupled, name: as for :class:`Objective`.
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
        if steps not in INITIAL:
            raise ValueError(f"steps must be 'one' or 'two'; got {steps!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum'; got {reduction!r}")
        functions = ("psi", "phi_inv", "g") if steps == "one" else ("phi_inv", "g")
        learn = functions[:-1] if learn is None else tuple(learn)
        for name in learn:
            if name not in functions:
                raise ValueError(
                    f"learn: {name!r} is not a function of the {steps}-step loss; "
                    f"choose from {', '.join(functions)}"
                )
        coefs = dict(INITIAL[steps])
        for key, value in (initial or {}).items():
            if key not in coefs:
                raise ValueError(f"unknown initial coefficient {key!r}: {nearest(key, coefs)}")
            if not 0 <= value < float("inf"):
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
        self.needs_reference = steps == "two"
        self.coupled = False
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
        parts = dict(zip(self.learn, vector.split(self._sizes), strict=True)) if self.learn else {}
        return {name: self._function(name, parts.get(name), progress) for name in self._functions}

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
                probs = torch.sigmoid(x).to(logps.dtype) if name == "g" else _density(logps)
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
        data = [_take(pair, name, self.name) for name in self._inputs]
        progress = _take(pair, "progress", self.name) if "progress" in self.inputs else None
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
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        metadata = {"mirror_objective": json.dumps(self.architecture())}
        write_atomic(folder / "card.json", json.dumps(card, indent=2) + "\n")
        write_atomic(folder / "objective.safetensors", save(tensors, metadata=metadata))

    @staticmethod
    def load(folder: str | Path) -> "MirrorObjective":
        """Read an objective that :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or not an objective.
        """
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        try:
            with safe_open(str(folder / "objective.safetensors"), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            objective = MirrorObjective(**json.loads(metadata["mirror_objective"]))
            objective.to(tensors["vector"].dtype).load_state_dict(tensors)
            objective.card = json.loads((folder / "card.json").read_bytes())
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder} is not a readable saved objective: {reason}") from error
        return objective


# What other libraries and papers call a loss of LOSSES.
OTHER_NAMES = {
    "sigmoid": "dpo",
    "cdpo": "dpo",
    "hinge": "hinge_dpo",
    "rso": "hinge_dpo",
    "robust": "robust_dpo",
    "rdpo": "robust_dpo",
    "aot_pair": "aot_unpaired",
    "sigmoid_norm": "dpo_norm",
    "hypo": "dpo_positive_reference",
    "odpo": "margin_dpo",
    "lrml": "discopop",
    "sppo": "sppo_hard",
    "bco": "bco_pair",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "slic": "slic_hf",
}


def _import_function(reference: str) -> Callable[..., Any]:
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(
            f"{reference!r} must be package.module:function, with dots, and without a path or .py"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{reference!r}: cannot import {module_name!r}: {error} (modules are looked for in the "
            "current folder and in those of PYTHONPATH)"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(
            f"{reference!r}: {module_name} has no function {attribute!r}; "
            + nearest(attribute, [n for n, v in vars(module).items() if inspect.isfunction(v)])
        )
    return function


def _hint(name: str) -> str:
    """What may have been meant by a name that nothing has."""
    module, dot, function = name.removesuffix(".py").rpartition(".")
    if name.endswith(".py"):
        return f"a function of your own is called as in {name.removesuffix('.py')}:my_loss"
    if dot:
        return f"a function of your own has a colon: did you mean '{module}:{function}'?"
    return nearest(name, [*LOSSES, *discovered()])


# Objectives that searches of this project found, a folder each, with a card.
DISCOVERED = Path(__file__).parent / "discovered"


def discovered() -> list[str]:
    """Names of the objectives that this library ships, which ``resolve`` takes."""
    return sorted(path.parent.name for path in DISCOVERED.glob("*/card.json"))


def resolve(
    loss: "str | Path | Callable[..., Tensor] | Objective | MirrorObjective", **hyper: Any
) -> "Objective | MirrorObjective":
    """Find an objective.

    Args:
        loss: a name in ``torchmpo.losses.LOSSES`` or in :func:`discovered`,
            ``"package.module:function"`` for one's own, the folder of a saved objective, a
            function, or an objective.
        **hyper: hyper-parameters of the loss; a saved or bound objective takes none.

    Raises:
        ValueError: nothing of that name (the nearest one is named), a function whose parameters are
            not in the vocabulary, an unknown or invalid hyper-parameter, or a damaged folder.

    >>> resolve("dpo", beta=0.5)
    Objective(dpo, beta=0.5, label_smoothing=0.0)
    >>> resolve("simp")
    Traceback (most recent call last):
    ValueError: unknown loss 'simp': did you mean 'simpo'?
    """
    if isinstance(loss, (Objective, MirrorObjective)):
        if hyper:
            raise ValueError(f"{loss.name} is bound already; it takes no {', '.join(hyper)}")
        return loss
    if not isinstance(loss, (str, Path)):
        return Objective(loss, **hyper)
    text, path = str(loss), Path(loss)
    if not isinstance(loss, Path):
        if text in LOSSES:
            return Objective(LOSSES[text], name=text, **hyper)
        if text in discovered():
            path = DISCOVERED / text
        elif ":" in text and not path.exists():
            return Objective(_import_function(text), name=text, **hyper)
        elif os.sep not in text and not path.is_dir():
            plain = text.lower().removesuffix("_loss")
            if (here := OTHER_NAMES.get(plain, plain)) in LOSSES:
                raise ValueError(f"unknown loss {text!r}: it is called {here!r} here")
            raise ValueError(f"unknown loss {text!r}: {_hint(text)}")
        elif path.suffix == ".py":
            module = ".".join(path.with_suffix("").parts)
            raise ValueError(f"{text} is a file: name a function in it, as in {module}:my_loss")
    if (path / "objective").is_dir() and not (path / "card.json").exists():
        raise ValueError(f"{path} is a run; what it found is {path / 'objective'}")
    if hyper:
        raise ValueError(f"a saved objective takes no hyper-parameters; got {', '.join(hyper)}")
    if (path / "objective.json").is_file():
        return Objective.load(path)
    return MirrorObjective.load(path)
