"""The report of a diagnosis, one HTML file: :mod:`.page` puts it together from :mod:`.words` (what
the run says, in sentences) and :mod:`.figures`; :mod:`.html` are the elements.

Everything is made from the JSON files of a run; nothing here computes a result.
"""
