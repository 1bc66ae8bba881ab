"""How Sphinx builds the site: ``make site`` writes it to docs/_build/html, without a network."""

import pkgutil
import re
import textwrap
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

from sphinx.util.nodes import make_refnode

import torchmpo

project = "torchmpo"
author = copyright = "the torchmpo contributors"
version = release = torchmpo.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "torchmpo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

# Pages are plain Markdown, so that they read well in a repository's browser, too.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "default"  # Python where it is Python; equations stay as they are

# A name between single backticks in a docstring is code.
default_role = "code"

autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Bounds", "Defaults", "Limits", "Pitfalls"]

# Every name that a docstring refers to must exist. Those of other projects are not looked up: that
# would need the network.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|numpy|mujoco|gymnasium|torchrl|lightning|evotorch|matplotlib|pathlib|random|multiprocessing|collections|argparse|jsonargparse|jinja2|markupsafe|typing_extensions)\..*|Figure|Axes|MinariDataset|Logger",
    ),
    (r"py:class", r"needs_reference"),  # one of several names in an entry of Attributes
    (r"py:class", r"after_sft"),
]
autodoc_mock_imports = ["mujoco_warp", "warp"]  # the extra for physics on a GPU


def api_pages(app: Any) -> None:
    """Write a page per package into docs/api: none can be forgotten, or outlive its package.

    (Sphinx's own apidoc documents what a package imports a second time, without a way to say no.)
    """
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = {}
    packages = ["torchmpo", "torchmpo_envs"]
    for name in packages:  # grows on the way
        inside = list(pkgutil.iter_modules(import_module(name).__path__, f"{name}."))
        public = [m for m in inside if not m.name.rpartition(".")[2].startswith("_")]
        packages += [m.name for m in public if m.ispkg]
        entries = "".join(f"   {m.name}\n" for m in public if m.ispkg)
        parts = [f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"]
        parts += [f".. toctree::\n   :hidden:\n\n{entries}"] if entries else []
        parts += [
            f"{m.name}\n{'-' * len(m.name)}\n\n.. automodule:: {m.name}\n"
            for m in public
            if not m.ispkg
        ]
        pages[folder / f"{name}.rst"] = "\n".join(parts)
    for path in set(folder.glob("*")) - set(pages):
        path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text() != text:  # else it need not be read again
            path.write_text(text)


def readable(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep equations as they stand in a docstring: an indented paragraph, or ``loss = …``.

    reStructuredText would take the first for a quotation, and every ``|x|`` for a substitution.
    """
    paragraphs = []
    in_section = literal = False
    for paragraph in re.split(r"\n(?:[ ]*\n)+", "\n".join(lines)):
        indented = paragraph.startswith("    ")
        if not indented:
            in_section = re.match(r"[A-Z][a-z]+:\n", paragraph) is not None
            literal = False
        equation = paragraph.startswith(("loss = ", "loss_k = ")) or (indented and not in_section)
        if equation and not literal:
            paragraph = "::\n\n" + (paragraph if indented else textwrap.indent(paragraph, "    "))
        elif not equation and ">>>" not in paragraph:
            parts = re.split(r"(``.*?``)", paragraph, flags=re.DOTALL)
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            paragraph = "".join(parts)
        literal = equation or paragraph.endswith("::")
        paragraphs.append(paragraph)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def parsable(app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, result: Any):
    """Write ``...`` for a dataclass's ``<factory>``, which is no Python.

    Sphinx splits a signature that it cannot parse at every comma, those of ``tuple[int, int]`` too.
    """
    return (signature.replace("<factory>", "..."), result) if signature else None


def where_it_is_defined(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a name by which something is imported, ``torchmpo.resolve``, or a short one.

    A thing has one entry in the reference, in the module that defines it.
    """
    target, module = node.get("reftarget", "").lstrip("."), node.get("py:module") or ""
    if node.get("refdomain") != "py" or not target:
        return None
    python = env.get_domain("py")
    found = locate(target) or locate(f"{module}.{target}")
    full = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    named = [full] if full in python.objects else []
    named += [n for n in python.objects if n.endswith(f".{target}")]  # imported for type checkers
    if not named:
        return None
    entry = python.objects[named[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", api_pages)
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon's
    app.connect("autodoc-process-signature", parsable)
    app.connect("missing-reference", where_it_is_defined)
