"""How often answers are preferred to a reference's: ``python -m torchmpo.winrate``.

:mod:`.rates` are the numbers, :mod:`.judges` who prefers, :mod:`.endpoint_judge` a judge behind an
:mod:`.endpoint`, :mod:`.alpaca_files` what is read and written; :mod:`.run` does an evaluation.

Imports :mod:`torchmpo.runs` only; rates and files need no torch.
"""
