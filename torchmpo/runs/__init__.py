"""What every command shares: its command line, its folder, its errors, its random numbers.

:mod:`.command` is a command with settings, from its options to the folder of its run;
:mod:`.options` reads the options (with jsonargparse), :mod:`.arguments` those of commands without
settings, and :mod:`.completion` completes them in a shell. :mod:`.errors` turns a mistake into one
line, :mod:`.extras` a missing package. :mod:`.output` lets no terminal or pipe end a run.
:mod:`.threads` is how threads wait for each other. :mod:`.files` writes whole files and holds
folders, :mod:`.seeding` names streams of random numbers.

Imports nothing else of this package, and torch only to draw random numbers (:mod:`.seeding`).
"""
