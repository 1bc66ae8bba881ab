"""How positive a text about a film is: an annotator, a judge, and a third opinion.

Annotator and judge are the same kind of classifier (logistic regression on tf-idf of words and
word pairs), fitted to disjoint parts of the reviews: the one makes preferences, the other decides
win rates. VADER, a word list with rules, has seen no review at all.

    python -m experiments.llm.sentiment            (fits both, prints their held-out accuracy)
    python -m torchmpo.winrate --judge experiments.llm.sentiment:prefer …
"""

import argparse
import functools
import json
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.llm.reviews import Review, load_reviews, sentences, splits
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.seeding import derive_seed

ROLES = ("annotator", "judge")
FORMAT = "sentiment_1"  # another one, where what is fitted changes
PASSAGES = 3  # of two sentences, from each long review, beside the review as a whole
STRENGTH = 4.0  # C of the logistic regression


class SentimentClassifier:
    """Logistic regression on tf-idf of words and pairs of neighbouring words.

    Args:
        terms: the words and pairs it knows.
        idf: ``[terms]``, their inverse document frequencies.
        weights: ``[terms]``, of the regression.
        bias: its constant.
    """

    def __init__(self, terms: Sequence[str], idf: NDArray, weights: NDArray, bias: float):
        self.terms, self.idf, self.weights, self.bias = list(terms), idf, weights, bias
        self._vectorizer = _vectorizer(vocabulary=self.terms)
        self._vectorizer.idf_ = idf

    @classmethod
    def fit(cls, texts: Sequence[str], positive: Sequence[bool], *, rare: int = 3):
        """The classifier of these texts.

        Args:
            texts, positive: of the same length, both labels among them.
            rare: a term that fewer texts have is left out.
        """
        from sklearn.linear_model import LogisticRegression

        vectorizer = _vectorizer(min_df=rare)
        features = vectorizer.fit_transform(texts)
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0)
        model.fit(features, np.asarray(positive))
        terms = [str(term) for term in vectorizer.get_feature_names_out()]
        return cls(terms, vectorizer.idf_, model.coef_[0], float(model.intercept_[0]))

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of being positive, ``[texts]``, nats."""
        if not len(texts):
            return np.zeros(0)
        return self._vectorizer.transform(texts) @ self.weights + self.bias

    def accuracy(self, texts: Sequence[str], positive: Sequence[bool]) -> float:
        """Share of the texts whose label it finds, in [0, 1]."""
        return float(np.mean((self.logits(texts) > 0) == np.asarray(positive)))

    def save(self, path: Path) -> None:
        """Write one safetensors file; the terms are in it as JSON."""
        from safetensors.numpy import save

        tensors = {
            "idf": np.asarray(self.idf, dtype=np.float64),
            "weights": np.asarray(self.weights, dtype=np.float64),
            "bias": np.array([self.bias]),
            "terms": np.frombuffer(json.dumps(self.terms).encode(), dtype=np.uint8),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(tensors, metadata={"format": FORMAT}))

    @classmethod
    def load(cls, path: Path):
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(path.read_bytes())
            terms = json.loads(tensors["terms"].tobytes())
            return cls(terms, tensors["idf"], tensors["weights"], float(tensors["bias"][0]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a readable classifier: delete it") from error


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$TORCHMPO_CACHE`` or ``~/.cache/torchmpo``."""
    default = os.environ.get("TORCHMPO_CACHE") or Path.home() / ".cache" / "torchmpo"
    return Path(default).expanduser() / FORMAT


def examples(reviews: Iterable[Review], seed: int = 0) -> tuple[list[str], list[bool]]:
    """Texts long and short with their labels: what is judged later is a sentence or two.

    A review of more than two sentences gives itself and ``PASSAGES`` passages of two, the first of
    which is its opening.
    """
    texts, labels = [], []
    for review in reviews:
        parts = sentences(review.text)
        own = [review.text]
        if len(parts) > 2:
            draw = random.Random(derive_seed(seed, "passages", review.text))
            starts = [0, *(draw.randrange(len(parts) - 1) for _ in range(PASSAGES - 1))]
            own += [" ".join(parts[start : start + 2]) for start in dict.fromkeys(starts)]
        texts += own
        labels += [review.positive] * len(own)
    return texts, labels


def held_out_accuracy(model: SentimentClassifier, reviews: Sequence[Review]) -> dict[str, float]:
    """Accuracy by kind of text; an opening is a review's first two sentences."""
    imdb = [review for review in reviews if review.source == "imdb"]
    short = [review for review in reviews if review.source == "rotten_tomatoes"]
    kinds = {
        "reviews": ([r.text for r in imdb], imdb),
        "openings": ([" ".join(sentences(r.text)[:2]) for r in imdb], imdb),
        "sentences": ([r.text for r in short], short),
    }
    return {
        kind: model.accuracy(texts, [r.positive for r in of])
        for kind, (texts, of) in kinds.items()
        if of
    }


def classifier(
    role: str, parts: Mapping[str, Sequence[Review]] | None = None, folder: Path | None = None
) -> SentimentClassifier:
    """The annotator or the judge, from the cache or fitted now.

    Args:
        role: one of ``ROLES``.
        parts: of :func:`experiments.llm.reviews.splits`; by default of the installed package.
        folder: of the cache, by default :func:`cache_folder`.

    Raises:
        UserError: the reviews are not installed.
    """
    path = (cache_folder() if folder is None else folder) / f"{role}.safetensors"
    if path.exists():
        return SentimentClassifier.load(path)
    parts = splits(load_reviews()) if parts is None else parts
    model = SentimentClassifier.fit(*examples(parts[role]))
    model.save(path)
    return model


@functools.cache
def annotator() -> SentimentClassifier:
    """Who makes preferences, and validates."""
    return classifier("annotator")


@functools.cache
def judge() -> SentimentClassifier:
    """Who decides win rates."""
    return classifier("judge")


def bradley_terry(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Probability that the second is better, σ(difference of the log-odds)."""
    return np.exp(-np.logaddexp(0, first - second))


def prefer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """The judge of ``--judge experiments.llm.sentiment:prefer``: answers that continue prompts.

    What is judged is prompt and answer as one text.

    Returns:
        for each prompt the probability that the second answer is the more positive one.
    """
    texts = [[p + a for p, a in zip(prompts, side, strict=True)] for side in (first, second)]
    return bradley_terry(*(judge().logits(side) for side in texts)).tolist()


def prefer_answer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]):
    """As :func:`prefer`, of the answers alone: where prompts are instructions."""
    return prefer([""] * len(prompts), first, second)


prefer.symmetric = prefer_answer.symmetric = True  # no need to ask a second time, swapped


def vader_scores(texts: Iterable[str]) -> NDArray[np.float64]:
    """VADER's compound score of each text, in [−1, 1].

    Raises:
        UserError: it is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise UserError(
            "the package vaderSentiment is not installed: make llm-demo installs it"
        ) from error
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def _vectorizer(**settings):
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError as error:
        raise UserError("scikit-learn is not installed: pip install 'torchmpo[llm]'") from error
    # A word may have an apostrophe: "isn't" is one, and says the opposite.
    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        token_pattern=r"[a-z0-9]+(?:'[a-z]+)*|[!?]",
        **settings,
    )


def main() -> int:
    """Fit what is not fitted, and print accuracies."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        parts = splits(load_reviews())
        for role in ROLES:
            model = classifier(role, parts)
            found = held_out_accuracy(model, parts["held_out"])
            line = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in found.items())
            print(
                f"{role}: {len(parts[role]):,} reviews, {len(model.terms):,} terms; right: {line}"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
