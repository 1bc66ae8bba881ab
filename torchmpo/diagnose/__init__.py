"""Judge losses on every kind of data: ``python -m torchmpo.diagnose``.

:mod:`.suite` tunes and judges one loss on one kind of data, :mod:`.cells` keeps the result on disk
(:mod:`.schemas` says what its files hold), :mod:`.leaderboard` compares all of them,
:mod:`.data_statistics` says what the data turned out to be, and :mod:`.report` makes the HTML of
it. :mod:`.settings` are the options of the command, :mod:`.setup` checks them and builds what they
name, :mod:`.run` does the work.

Imports any package but the other commands.
"""
