"""What every command shares: its command line, its folder, its errors, its random numbers.

:mod:`.command` is a command with settings, from its options to the folder of its run;
:mod:`.options` reads the options (with jsonargparse), :mod:`.arguments` those of commands without
settings, and :mod:`.completion` completes them in a shell. :mod:`.errors` turns a mistake into one
line, :mod:`.own_code` what a user's own function raises, :mod:`.extras` a missing package.
:mod:`.output` lets no terminal or pipe end a run. :mod:`.threads` is how threads wait for each
other. :mod:`.files` writes whole files and holds folders, :mod:`.json_files` checks what is in
them, :mod:`.yaml_text` how large it is; :mod:`.made_of` keeps what a run is made of and
:mod:`.machine` where it was computed. :mod:`.seeding` names streams of random numbers.

Imports nothing else of this package, and torch only to draw random numbers (:mod:`.seeding`).
"""
