"""A model's answers to prompts: ``python -m torchmpo.generate``.

:mod:`.sources` are who answers, a model on this machine or one behind an endpoint; :mod:`.run` asks
for all answers and keeps them. The answers themselves are made in
:mod:`torchmpo.finetune.answers`.

Imports :mod:`torchmpo.finetune`, which loads models, :mod:`torchmpo.winrate`, which reads and
writes answers and talks to endpoints, and :mod:`torchmpo.runs`.
"""
