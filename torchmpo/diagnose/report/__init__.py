"""The report of a diagnosis, one HTML file.

:mod:`.page` puts it together from :mod:`.sections`, which are made of :mod:`.words` (what the run
says, in sentences), :mod:`.tables` and :mod:`.figures`; :mod:`.html` are the elements, and
:mod:`.contents` what is shown: the files of a run. Nothing here computes a result.
"""
