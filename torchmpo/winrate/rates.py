"""Win rates against a reference model, plain and with the effect of length taken out.

A *preference* is the judge's probability in [0, 1] that the model's answer is better than the
reference's, ``[prompts]``, NaN where the judge gave none; lengths are in characters; win rates and
their errors are in percent.

The length-controlled win rate (Dubois et al., arXiv 2404.04475) is what a logistic regression
predicts for answers as long as the reference's:

    δ = (reference length − model length) / s.d. (ddof 1) of that difference over the prompts
    P(model preferred) = σ(a·tanh δ + b·difficulty + c)
    LCWR = mean over prompts of σ(b·difficulty + c)

It is fitted as the package ``alpaca_eval`` 0.6.6 does, to the same digits: soft labels, no
intercept besides c, an L1 penalty whose strength is the best of ten in a 5-fold cross-validation.

**What to know when reading it.** (1) The penalty pulls towards 50, more so the fewer the prompts
and the weaker the preference: all coefficients can be exactly 0, and the rate exactly 50.
(2) The package's error of it, ``lc_standard_error``, is only the spread of the predictions over
prompts: 0 without difficulties, and far too small with them. `LengthControlled.robust_error` is one
to quote. (3) Without difficulties (``length_controlled_minimal``) the number is not that of
AlpacaEval's leaderboard, which also has its own prompts, judge and reference.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchmpo.runs.errors import UserError, missing_package

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C of scikit-learn: the larger, the weaker the penalty
SEED = 123  # of liblinear, which visits the coefficients in random order and stops at a tolerance
GAMED_WEIGHT = 0.2 / 2  # λ over the number of gamed baselines
FEATURES = ("length", "difficulty", "constant")


class WinRate(NamedTuple):
    """In percent; the standard error is NaN for a single preference."""

    win_rate: float
    standard_error: float


class Gamed(NamedTuple):
    """Preferences for baselines that were told to be long or short, which steady the fit.

    All ``[rows]``: ``deltas`` are δ, ``difficulty`` the prompts', ``preferences`` in [0, 1].
    AlpacaEval's leaderboard (``length_controlled_v1``) is fitted with them.
    """

    deltas: ArrayLike
    difficulty: ArrayLike
    preferences: ArrayLike


class LengthControlled(NamedTuple):
    """A length-controlled win rate.

    Attributes:
        win_rate: percent.
        robust_error: percent; allows for the fit and for the choice of prompts: the influence
            function of the rate, by the sandwich formula at the fitted coefficients.
        standard_error: percent; the package's ``lc_standard_error``, see this module's docstring.
        predictions: ``[prompts]``, σ(b·difficulty + c); the package's ``glm_preference``.
        coefficients: a, b, c by their features' names; no ``difficulty`` where none was given.
        strength: the C that cross-validation chose.
    """

    win_rate: float
    robust_error: float
    standard_error: float
    predictions: NDArray[np.float64]
    coefficients: dict[str, float]
    strength: float


def win_rate(preferences: ArrayLike) -> WinRate:
    """The mean preference with its standard error, s.d. (ddof 1) / √n, in percent.

    Args:
        preferences: ``[prompts]``, in [0, 1] or NaN; missing ones do not count.

    Raises:
        UserError: none given, or one out of range.

    >>> win_rate([1.0, 0.0, 1.0, 1.0])
    WinRate(win_rate=75.0, standard_error=25.0)
    """
    given = _checked(preferences)
    given = given[~np.isnan(given)]
    return WinRate(100 * given.mean().item(), 100 * _standard_error(given))


def describe(preferences: ArrayLike) -> dict[str, float]:
    """The columns of AlpacaEval's leaderboard that need preferences only.

    Args:
        preferences: as of :func:`win_rate`.

    Returns:
        ``win_rate`` and ``standard_error`` in percent; ``n_wins``, ``n_wins_base``, ``n_draws``,
        ``n_total``, which count prompts; ``discrete_win_rate``: percent, each preference rounded to
        a win, a draw (exactly ½) or a loss.

    Raises:
        UserError: as of :func:`win_rate`.
    """
    rate = win_rate(preferences)
    given = _checked(preferences)
    given = given[~np.isnan(given)]
    outcomes = (np.sign(given - 0.5) + 1) / 2
    return {
        **rate._asdict(),
        "n_wins": int((given > 0.5).sum()),
        "n_wins_base": int((given < 0.5).sum()),
        "n_draws": int((given == 0.5).sum()),
        "n_total": len(given),
        "discrete_win_rate": 100 * outcomes.mean().item(),
    }


def length_controlled_win_rate(
    preferences: ArrayLike,
    model_lengths: ArrayLike,
    reference_lengths: ArrayLike,
    *,
    difficulty: ArrayLike | None = None,
    gamed: Gamed | None = None,
) -> LengthControlled:
    """The win rate that answers as long as the reference's would have had; see the module.

    Args:
        preferences: ``[prompts]``, in [0, 1] or NaN, which is left out of the fit.
        model_lengths, reference_lengths: ``[prompts]``, characters.
        difficulty: ``[prompts]``, of the prompts; without them the variant is the package's
            ``length_controlled_minimal``, with them ``length_controlled_noreg``.
        gamed: with them and ``difficulty`` it is ``length_controlled_v1``.

    Where all length differences are equal, nothing can be taken out: tanh δ counts as 0.

    Raises:
        UserError: fewer than 5 preferences, different numbers of them and of lengths or
            difficulties, numbers out of range, gamed baselines without difficulties, or
            scikit-learn is not installed.
    """
    y = _checked(preferences)
    given = ~np.isnan(y)
    if given.sum() < FOLDS:
        raise UserError(
            f"a length-controlled win rate needs {FOLDS} preferences, not {given.sum()}"
        )
    if gamed is not None and difficulty is None:
        raise UserError("gamed baselines need the difficulties of the prompts, too")
    difference = _column(reference_lengths, y, "lengths") - _column(model_lengths, y, "lengths")
    spread = difference.std(ddof=1)
    lengths = np.tanh(difference / spread) if spread > 0 else np.zeros_like(y)
    columns = [lengths, np.ones_like(y)]
    if difficulty is not None:
        columns.insert(1, _column(difficulty, y, "difficulties"))
    x = np.stack(columns, axis=1)
    if gamed is None:
        fit_x, fit_y, weight = x[given], y[given], np.ones(int(given.sum()))
    else:
        extra = _checked(gamed.preferences)
        z = np.stack(
            [
                np.tanh(_column(gamed.deltas, extra, "gamed lengths")),
                _column(gamed.difficulty, extra, "gamed difficulties"),
                np.zeros_like(extra),  # the constant is the model's own
            ],
            axis=1,
        )
        known = ~np.isnan(extra)
        fit_x, fit_y = (
            np.concatenate([z[known], x[given]]),
            np.concatenate([extra[known], y[given]]),
        )
        weight = np.concatenate([np.full(int(known.sum()), GAMED_WEIGHT), np.ones(given.sum())])
    strength = _best_strength(fit_x, fit_y, weight)
    coef = _fit(fit_x, fit_y, weight, strength, np.random.RandomState(SEED))
    test = x.copy()
    test[:, 0] = 0.0
    predictions = _sigmoid(test @ coef)
    slopes = (predictions * (1 - predictions)) @ test / len(y)  # of the rate, by coefficient
    q = _sigmoid(fit_x @ coef)
    information = (fit_x * (weight * q * (1 - q))[:, None]).T @ fit_x
    residuals = np.where(given, y - _sigmoid(x @ coef), 0.0)
    moved = len(y) * (x * residuals[:, None]) @ (np.linalg.pinv(information) @ slopes)
    names = FEATURES if difficulty is not None else (FEATURES[0], FEATURES[2])
    return LengthControlled(
        win_rate=100 * predictions.mean().item(),
        robust_error=100 * _standard_error(predictions + moved),
        standard_error=100 * _standard_error(predictions),
        predictions=predictions,
        coefficients=dict(zip(names, coef.tolist(), strict=True)),
        strength=strength,
    )


def _best_strength(x: NDArray, y: NDArray, weight: NDArray) -> float:
    """The C of the least held-out log-loss, summed over the folds; the smaller one of equals."""
    fold = np.arange(len(y)) % FOLDS  # what GroupKFold makes of groups of equal size
    losses = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        state = np.random.RandomState(SEED)  # drawn from once per strength, as in scikit-learn
        for i, strength in enumerate(STRENGTHS):
            coef = _fit(x[train], y[train], weight[train], strength, state)
            q = np.clip(_sigmoid(x[test] @ coef), 1e-15, 1 - 1e-15)
            losses[i] -= np.mean(
                weight[test] * (y[test] * np.log(q) + (1 - y[test]) * np.log1p(-q))
            )
    return float(STRENGTHS[np.argmin(losses)])


def _fit(
    x: NDArray, y: NDArray, weight: NDArray, strength: float, state: np.random.RandomState
) -> NDArray:
    """Coefficients ``[features]`` of the penalised regression on labels y in [0, 1]."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    # liblinear and not an exact solver: where strengths are nearly as good as each other, its
    # tolerance decides between them, which moved rates by up to 0.08 points in the tests' samples.
    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=state
    )
    # A soft label is both labels, weighted.
    labels = np.repeat([1, 0], len(y))
    weights = np.concatenate([y * weight, (1 - y) * weight])
    # Without either label liblinear prints a warning of its own on every fit.
    for half in np.split(weights, 2):
        if not half.any():
            half[0] = 1e-300
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(np.concatenate([x, x]), labels, sample_weight=weights).coef_[0]


def _checked(preferences: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(preferences, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"preferences must be a list of numbers: {error}") from error
    if values.ndim != 1:
        raise UserError(f"preferences must be a list of numbers; their shape is {values.shape}")
    if np.isnan(values).all():
        raise UserError("there is no preference to take a win rate of")
    if (outside := (values < 0) | (values > 1)).any():
        at = int(np.flatnonzero(outside)[0])
        raise UserError(f"preference {at} is {values[at]}; it must be in [0, 1], or NaN")
    return values


def _column(values: ArrayLike, like: NDArray, name: str) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != like.shape:
        raise UserError(f"there are {len(like)} preferences, but {column.size} {name}")
    if not np.isfinite(column).all():
        raise UserError(f"{name} must be finite numbers")
    return column


def _sigmoid(x: NDArray) -> NDArray:
    return np.exp(-np.logaddexp(0, -x))


def _standard_error(values: NDArray) -> float:
    return values.std(ddof=1).item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
