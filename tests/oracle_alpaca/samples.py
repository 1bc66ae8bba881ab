"""Comparisons to take win rates of, the same on every machine: python's own generator is stable."""

import math
import random
import string

GLMS = ("length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1")


def _text(draw, length):
    return "".join(draw.choices(string.ascii_letters + " é漢", k=length))


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def gamed_rows(seed=0, prompts=805):
    """What `df_gamed.csv` is like: two baselines over all prompts."""
    draw = random.Random(f"gamed {seed}")
    difficulty = [draw.gauss(0, 1.5) for _ in range(prompts)]
    rows = []
    for model, bias in (("concise", -1.0), ("verbose", 1.0)):
        for i in range(prompts):
            delta = draw.gauss(-bias, 0.8)
            p = _sigmoid(-0.8 * math.tanh(delta) + 0.3 * difficulty[i] + draw.gauss(0, 1))
            rows.append((model, i, p, delta, difficulty[i], False))
    return rows


GAMED_COLUMNS = (
    "model",
    "index",
    "preference",
    "std_delta_len",
    "instruction_difficulty",
    "not_gamed_baseline",
)


def comparisons(name, prompts=805):
    """Rows of annotations.json; `name` is one of CASES."""
    case = CASES[name]
    draw = random.Random(name)
    difficulty = [row[4] for row in gamed_rows()][:prompts]
    rows = []
    for i in range(case.get("prompts", prompts)):
        first = max(1, int(draw.lognormvariate(3.0, 0.5)))
        second = max(1, int(draw.lognormvariate(3.0 + case.get("longer", 0.0), 0.5)))
        score = case.get("better", 0.0) + 0.3 * difficulty[i] + draw.gauss(0, 1)
        p = _sigmoid(score + case.get("length_effect", 1.0) * math.tanh((second - first) / 15))
        if case.get("hard"):
            p = float(p > 0.5)
        preference = 1 + p
        if case.get("draws") and i % 7 == 0:
            preference = 0 if i % 2 else 1.5
        if case.get("missing") and i % 11 == 0:
            preference = None
        if case.get("always"):
            preference = 2.0
        rows.append(
            {
                "instruction": f"instruction {i}",
                "output_1": _text(draw, first),
                "output_2": _text(draw, second),
                "generator_1": "reference",
                "generator_2": "model",
                "annotator": "judge",
                "preference": preference,
            }
        )
    return rows


CASES = {
    "soft": {"better": 0.4, "longer": 0.2},
    "hard labels": {"better": 0.3, "longer": 0.4, "hard": True},
    "much longer": {"better": -0.5, "longer": 1.0, "length_effect": 3.0},
    "draws and missing": {"better": 0.5, "draws": True, "missing": True},
    "few": {"better": 0.8, "prompts": 40},
    "nothing to find": {"length_effect": 0.0},
    "always wins": {"always": True, "prompts": 100},
    "worse": {"better": -1.5, "longer": -0.3, "hard": True},
}
