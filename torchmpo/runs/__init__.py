"""What every command shares: its command line, its folder, its errors, its random numbers.

Imports nothing else of this package, and torch only to draw random numbers (:mod:`.seeding`).
"""
