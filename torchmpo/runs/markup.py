"""HTML from jinja2's templates, in which every text is escaped unless it is markup already."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str) -> Environment:
    """The templates in the folder ``templates`` of a package.

    Each can extend ``page.html``, the frame of every page, which is in this package.
    """
    folders = dict.fromkeys([package, "torchmpo.runs"])
    return Environment(
        loader=ChoiceLoader([PackageLoader(folder) for folder in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
