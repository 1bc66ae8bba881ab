"""Preference optimization of language models: pairs of answers, fine-tuning, win rates."""
