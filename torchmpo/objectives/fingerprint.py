"""What one's own loss is made of, as a digest: another one, and the loss has been edited.

Into it goes all that decides what a function answers: its text, its defaults and attributes, what
it closes over, the arguments that a ``partial`` has bound, the state, class and base classes of a
callable instance, and the functions, classes and values of its own modules that it names, those
that it imports when it runs among them. What
comes with Python or from another installed package counts by its name.
"""

import copyreg
import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import is_own

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)  # the class's text has them
_NEVER_OURS = ("builtins", "torch", "torchmpo", "torchmpo_envs")


class Unknowable(ValueError):
    """Something that a loss is made of has neither a text nor a value."""


def fingerprint(function: Any) -> str:
    """A digest of a function, the same in every process.

    Args:
        function: or a ``partial``, a method, a callable instance.

    Raises:
        Unknowable: it is made of something without a text or a value, as a compiled module.
    """
    root = inspect.unwrap(function)
    while isinstance(root, functools.partial):
        root = inspect.unwrap(root.func)
    walk = _Walk((getattr(root, "__module__", None) or "").partition(".")[0])
    try:
        walk.add(function)
    except Unknowable:
        raise
    except Exception as error:  # of an object that does not want to be looked at
        raise Unknowable(f"{type(error).__name__}: {error}") from error
    return walk.digest.hexdigest()


def fingerprint_of_files(folder: str | Path) -> str:
    """A digest of a saved objective, without its card, which tells and does not compute."""
    files = [p for p in sorted(Path(folder).iterdir()) if p.suffix in (".json", ".safetensors")]
    content = b"".join(p.read_bytes() for p in files if p.name != "card.json")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def made_of(name: str, objective: Objective | MirrorObjective) -> str | None:
    """A digest of what is not of this package: one's own function, or a saved objective.

    Args:
        name: by which it was resolved.

    Returns:
        None for a loss of this package.

    Raises:
        Unknowable: see :func:`fingerprint`.
    """
    if Path(name).is_dir():
        return fingerprint_of_files(name)
    own = isinstance(objective, Objective) and is_own(name)
    return fingerprint(objective.function) if own else None


class _Walk:
    """Everything that is reachable, each object once, in an order that its content decides.

    Args:
        package: of the loss. It may be an installed one.
    """

    def __init__(self, package: str):
        self.package = package
        self.digest = hashlib.blake2b(digest_size=8)
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # an id is an object's own as long as it lives

    def write(self, kind: str, *values: Any) -> None:
        self.digest.update(repr((kind, *values)).encode("utf-8", "surrogatepass"))

    def ours(self, module: str | None) -> bool:
        """Whether a module is of the package of the loss, or else not installed."""
        package = (module or "").partition(".")[0]
        if package in _NEVER_OURS:
            return False
        file = getattr(sys.modules.get(module or ""), "__file__", None)
        return package == self.package or (file is not None and not is_installed(file))

    def add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """A value of any kind."""
        if type(value) in _PLAIN:
            return self.write("value", value)
        if type(value) is tuple:
            self.write("tuple", len(value))
            return self.add_all(value)
        if id(value) in self.seen:
            return self.write("again", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        match value:
            case types.ModuleType():
                self.write("module", value.__name__)
            case type():
                self._class(value)
            case types.FunctionType():
                self._function(value)
            case types.BuiltinFunctionType():
                self._builtin(value)
            case types.MethodType():
                self.write("method")
                self.add_all((value.__func__, value.__self__))
            case functools.partial():
                self.write("partial")
                self.add_all((value.func, value.args, value.keywords))
            case staticmethod() | classmethod():
                self.write("method of a class")
                self.add(value.__func__)
            case property():
                self.write("property")
                self.add_all((value.fget, value.fset, value.fdel))
            case functools.cached_property():
                self.write("property")
                self.add(value.func)
            case Tensor():
                self._tensor(value)
            case list() if type(value) is list:
                self.write("list", len(value))
                self.add_all(value)
            case dict() if type(value) is dict:
                self.write("dict", len(value))
                self.add_all(value.items())
            case set() | frozenset():
                self.write("set", *sorted(self._alone(part) for part in value))
            case _ if callable(value) and hasattr(value, "__wrapped__"):  # a cache, as of lru_cache
                self.write("around", type(value).__qualname__)
                self.add(value.__wrapped__)
            case _:
                self._object(value)

    def _alone(self, value: Any) -> str:
        """The digest of a member of a set, which has no order."""
        walk = _Walk(self.package)
        walk.add(value)
        return walk.digest.hexdigest()

    def _tensor(self, value: Tensor) -> None:
        self.write("tensor", str(value.dtype), tuple(value.shape))
        flat = value.detach().cpu().contiguous().reshape(-1)
        self.digest.update(flat.view(torch.uint8).numpy().tobytes())

    def _builtin(self, value: types.BuiltinFunctionType) -> None:
        owner, module = value.__self__, getattr(value, "__module__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self.write("bound", value.__name__)
            self.add(owner)
        elif self.ours(module):
            raise Unknowable(f"{value.__qualname__} is compiled and has no text")
        else:
            self.write("builtin", module, value.__qualname__)

    def _function(self, value: types.FunctionType) -> None:
        module, name = value.__globals__.get("__name__"), value.__code__.co_qualname
        attributes = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        if self.ours(module):
            self.write("function", _text(value.__code__, name))
            self._held(value)
            self.add(attributes)
            names = sorted(set(_names(value.__code__)))
            self._named(value.__globals__, names)
            for module in sorted(set(_imports(value.__code__, value.__globals__))):
                self._imported(module, names)
        elif "<locals>" not in name:
            self.write("library", module, name)
        else:  # made by a library around something of the user's
            self.write("made by", module, name)
            if hasattr(value, "__wrapped__"):
                self.add(value.__wrapped__)  # pyright: ignore[reportFunctionMemberAccess]
            else:
                self._held(value)

    def _held(self, value: types.FunctionType) -> None:
        """Defaults, and what a function closes over."""
        self.add((value.__defaults__, value.__kwdefaults__))
        for cell in value.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self.write("empty")

    def _named(
        self, scope: dict[str, Any], names: list[str], above: tuple[types.ModuleType, ...] = ()
    ) -> None:
        """What a text names in its module; of its own modules that it names, their parts, too."""
        for name in names:
            if name in scope:
                self.write("name", name)
                found = scope[name]
                self.add(found)
                module = isinstance(found, types.ModuleType) and found not in above
                if module and self.ours(found.__name__):
                    self._named(vars(found), names, (*above, found))

    def _imported(self, module: str, names: list[str]) -> None:
        """What a text names of a module that it imports when it runs."""
        found = sys.modules.get(module)
        if found is not None:
            if self.ours(module):
                self.write("import", module)
                self._named(vars(found), names, (found,))
        elif not _is_elsewhere(module):
            raise Unknowable(f"it imports {module} where no trial call came by")

    def _class(self, value: type) -> None:
        if not self.ours(value.__module__):
            return self.write("class", value.__module__, value.__qualname__)
        self.write("class", _text(value, value.__qualname__))
        self.add(value.__bases__)
        for name, member in sorted(vars(value).items()):
            if isinstance(member, types.FunctionType):
                # A dataclass writes functions without a text of their own: it follows from its own.
                known = not inspect.unwrap(member).__code__.co_filename.startswith("<")
            else:
                known = not (name.startswith(("__", "_abc_")) or isinstance(member, _DESCRIPTORS))
            if known:
                self.write("member", name)
                self.add(member)

    def _object(self, value: Any) -> None:
        """Anything else, by what would build it again."""
        self.write("object")
        self.add(type(value))
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            parts = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:
            name = type(value).__qualname__
            raise Unknowable(f"it holds a {name}, which has neither a text nor a value") from error
        if isinstance(parts, str):
            return self.write("global", parts)
        for part in parts:  # how and from what, its state, the items of a list or a dictionary
            self.add(tuple(part) if isinstance(part, Iterator) else part)


def _names(code: types.CodeType) -> list[str]:
    """The names in a text and in the functions inside it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [*code.co_names, *(name for c in inner for name in _names(c))]


def _imports(code: types.CodeType, scope: dict[str, Any]) -> Iterator[str]:
    """The modules that a text and the functions inside it import when they run."""
    level = 0
    for now in dis.get_instructions(code):
        if now.opname != "IMPORT_NAME":
            level = now.argval if type(now.argval) is int else level  # pushed before the names
        elif level:
            yield resolve_name("." * level + now.argval, scope.get("__package__"))
        else:
            yield now.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _imports(inner, scope)


def _is_elsewhere(module: str) -> bool:
    """Whether a module that was not imported is an installed one, or is not there."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # as of its package
        return True
    return spec is None or not spec.has_location or is_installed(str(spec.origin))


def _text(what: Any, name: str) -> str:
    try:
        return inspect.getsource(what)
    except (OSError, TypeError) as error:
        raise Unknowable(f"the text of {name} cannot be found") from error


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file came with Python or with an installed package."""
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib"))
