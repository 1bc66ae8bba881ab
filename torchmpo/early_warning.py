"""A training that will end below its start often shows it early: the chosen responses get unlikely.

``CHOSEN_FALL`` is the threshold in the second table of ``python experiments/early_warning.py``.
It was **measured on robots**: in 286 cells of recorded diagnoses, with log-probabilities of actions
of three or eight numbers, in nats per step, after the first epoch of twelve. There 64 % of the
trainings that ended below the agent they started from had such a fall of the chosen side, and 7 %
of the others, where each loss is told by a threshold from all others. A token of a language model
is no action: nothing is known yet of how far the number carries over, so take a warning as a reason
to look, and give a threshold of your own where you know one.
"""

import math

CHOSEN_FALL = 0.1  # nats per step


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that says nothing.

    Raises:
        ValueError: it is not a positive number.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be positive, in nats per token; got {threshold}")


def fall_warning(fell: float, threshold: float = CHOSEN_FALL) -> str | None:
    """A warning, in one line, where the chosen responses have become less likely than at the start.

    Args:
        fell: by how much, a mean over responses, nats per token.
        threshold: from where on, > 0, nats per token.

    Returns:
        the message, or ``None``: nothing to warn of, or a NaN.

    >>> fall_warning(0.05)
    >>> print(fall_warning(0.3))
    the chosen responses have become less likely, by 0.3 nats per token (threshold 0.1): on \
robots, trainings that did so early mostly ended below the model they started from; look at \
answers, or lower the learning rate, or add an SFT term
    """
    if not fell > threshold:
        return None
    return (
        f"the chosen responses have become less likely, by {fell:.2g} nats per token (threshold "
        f"{threshold:g}): on robots, trainings that did so early mostly ended below the model they "
        "started from; look at answers, or lower the learning rate, or add an SFT term"
    )
