"""Judge losses on every kind of data: ``python -m torchmpo.diagnose``.

:mod:`.suite` tunes and judges one loss on one kind of data, :mod:`.cells` keeps the result on disk,
:mod:`.leaderboard` compares all of them, :mod:`.data_statistics` says what the data turned out to
be, and :mod:`.report` is the page. :mod:`.settings` and :mod:`.setup` are what a run is told and
what that means, :mod:`.run` does it.

Imports any package but the other commands.
"""
