"""Losses on robots: preference data with a known true return, policies, training, returns.

:mod:`.environments` is where policies act: a shipped robot, or a task of one's own, whose name
:mod:`.tasks` understands and which :mod:`.processes` step where it comes one by one. :mod:`.agents`
are the two of a task, :mod:`.foreign_policies` converts those of other libraries.
:mod:`.pools` are trajectories on disk, made by the agents of a task or by those that
:mod:`.rollouts` puts between them; :mod:`.preferences` are pairs of them. :mod:`.kinds` says which
pairs and labels a kind of data stands for, :mod:`.annotators` has its judges, :mod:`.components`
the parts of a return, :mod:`.pair_files` reads pairs of one's own, :mod:`.minari_data` those of
Minari.
:mod:`.policy` is what is trained, :mod:`.inner_loop` the training of a whole population at once,
:mod:`.returns` what the trained policies score. :mod:`.testbed` puts them together: train under
given objectives, then measure. :mod:`.grids` says what is tuned and over which values,
:mod:`.tuning` tunes, :mod:`.rehearsal` tries a loss before any of it, :mod:`.sample` is a part of
the data on which likelihoods are watched.

Imports :mod:`torchmpo.objectives`, :mod:`torchmpo.losses`, :mod:`torchmpo.runs`, and of the
environments ``torchmpo_envs``. It knows no command.
"""
