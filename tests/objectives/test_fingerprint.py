"""An edit anywhere that a loss depends on gives it another fingerprint; other edits do not."""

import importlib
import linecache
import sys
import textwrap

import pytest

from torchmpo.objectives.fingerprint import Unknowable, fingerprint, made_of
from torchmpo.objectives.resolve import DISCOVERED, resolve

# Each is an edit of a module whose ``loss`` depends on it: from this text to that.
BODY = {
    "its text": ("def loss(x): return -1 * x", "-1", "+1"),
    "a default": ("B = 1.0\ndef loss(x, *, b=B * 2): return b * x", "* 2", "* 3"),
    "a positional default": ("B = 1.0\ndef loss(x, y=B + 2): return x", "+ 2", "+ 3"),
    "a helper": ("def f(x): return -x\ndef loss(x): return f(x)", "-x", "+x"),
    "a helper's helper": (
        "def g(x): return -x\ndef f(x): return g(x)\ndef loss(x): return f(x)",
        "-x",
        "+x",
    ),
    "a helper inside a lambda": (
        "def f(x): return -x\ndef loss(x): return (lambda: f(x))()",
        "-x",
        "+x",
    ),
    "a constant": ("SIGN = -1\ndef loss(x): return SIGN * x", "-1", "+1"),
    "a constant in a dict": ("SIGN = {'a': [1, (-1,)]}\ndef loss(x): return SIGN", "-1", "+1"),
    "a set": ("SIGN = {'a', 'b'}\ndef loss(x): return SIGN", "'b'", "'c'"),
    "a tensor": (
        "import torch\nW = torch.tensor([1.0, 2.0])\ndef loss(x): return W * x",
        "2.0",
        "3.0",
    ),
    "an array": (
        "import numpy as np\nW = np.array([1.0, 2.0])\ndef loss(x): return W * x",
        "2.0",
        "3.0",
    ),
    "a closure": (
        "def make(s):\n    def loss(x): return s * x\n    return loss\nloss = make(-1)",
        "-1",
        "+1",
    ),
    "a closure's function": (
        "def f(x): return -x\ndef make(g):\n    return lambda x: g(x)\nloss = make(f)",
        "-x",
        "+x",
    ),
    "a decorator": (
        "import functools\n"
        "def twice(f):\n    @functools.wraps(f)\n    def g(x): return 2 * f(x)\n    return g\n"
        "@twice\ndef loss(x): return -x",
        "2 *",
        "3 *",
    ),
    "what a decorator decorates": (
        "import functools\n"
        "def twice(f):\n    @functools.wraps(f)\n    def g(x): return 2 * f(x)\n    return g\n"
        "@twice\ndef loss(x): return -x",
        "-x",
        "+x",
    ),
    "a cache around it": (
        "import functools\n@functools.cache\ndef f(n): return -n\ndef loss(x): return f(1) * x",
        "-n",
        "+n",
    ),
    "a bound argument": (
        "from functools import partial\ndef f(x, *, s): return s * x\nloss = partial(f, s=-1)",
        "-1",
        "+1",
    ),
    "the function of a partial": (
        "from functools import partial\ndef f(x, *, s): return -s * x\nloss = partial(f, s=1)",
        "-s",
        "+s",
    ),
    "a library's function with a bound argument": (
        "from functools import partial\nfrom torchmpo.losses import simpo_loss\n"
        "loss = partial(simpo_loss, beta=1.0)",
        "1.0",
        "2.0",
    ),
    "a callable instance": (
        "class Loss:\n    def __call__(self, x): return -x\nloss = Loss()",
        "-x",
        "+x",
    ),
    "its state": (
        "class Loss:\n    def __init__(self, s): self.s = s\n"
        "    def __call__(self, x): return self.s * x\nloss = Loss(-1)",
        "-1",
        "+1",
    ),
    "its state in slots": (
        "class Loss:\n    __slots__ = ('s',)\n    def __init__(self, s): self.s = s\n"
        "    def __call__(self, x): return self.s * x\nloss = Loss(-1)",
        "-1",
        "+1",
    ),
    "the state of a dataclass": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Loss:\n    s: float\n"
        "    def __call__(self, x): return self.s * x\nloss = Loss(-1)",
        "-1",
        "+1",
    ),
    "a base class": (
        "class Base:\n    def __call__(self, x): return -x\nclass Loss(Base): pass\nloss = Loss()",
        "-x",
        "+x",
    ),
    "a helper of a method": (
        "def f(x): return -x\nclass Loss:\n    def __call__(self, x): return f(x)\nloss = Loss()",
        "-x",
        "+x",
    ),
    "a static method": (
        "class Loss:\n    @staticmethod\n    def f(x): return -x\n"
        "    def __call__(self, x): return self.f(x)\nloss = Loss()",
        "-x",
        "+x",
    ),
    "a helper of a property": (
        "def f(): return -1\nclass Loss:\n    @property\n    def s(self): return f()\n"
        "    def __call__(self, x): return self.s * x\nloss = Loss()",
        "-1",
        "+1",
    ),
    "a class's number from elsewhere": (
        "S = -1\nclass Loss:\n    s = S\n"
        "    def __call__(self, x): return self.s * x\nloss = Loss()",
        "-1",
        "+1",
    ),
    "a bound method": (
        "class Made:\n    def __init__(self, s): self.s = s\n"
        "    def f(self, x): return self.s * x\nloss = Made(-1).f",
        "-1",
        "+1",
    ),
    "a module of torch": (
        "import torch\nclass Loss(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.net = torch.nn.Linear(1, 1)\n"
        "        torch.nn.init.constant_(self.net.weight, 1.0)\n"
        "        torch.nn.init.constant_(self.net.bias, 0.0)\n"
        "    def forward(self, x): return self.net(x)\nloss = Loss()",
        "1.0",
        "2.0",
    ),
    "a compiled function": ("import torch\n@torch.compile\ndef loss(x): return -1 * x", "-1", "+1"),
    "something vmapped": (
        "import torch\ndef f(x): return -x\nloss = torch.func.vmap(f)",
        "-x",
        "+x",
    ),
    "an attribute of it": ("def loss(x): return loss.s * x\nloss.s = -1", "s = -1", "s = +1"),
    "a named tuple": (
        "from typing import NamedTuple\nclass S(NamedTuple):\n    s: int\n"
        "SIGN = S(-1)\ndef loss(x): return SIGN.s * x",
        "-1",
        "+1",
    ),
    "an enum": (
        "import enum\nclass S(enum.Enum):\n    UP = -1\nWHICH = S.UP\n"
        "def loss(x): return WHICH.value * x",
        "-1",
        "+1",
    ),
    "a random state": (
        "import random\nR = random.Random(1)\ndef loss(x): return R.random() * x",
        "(1)",
        "(2)",
    ),
    "a function that calls itself": (
        "def f(x): return -x if x else loss(x)\ndef loss(x): return f(x)",
        "-x",
        "+x",
    ),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # same size, same second

    def load(text, name="my_losses"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        linecache.checkcache()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield load
    for name in ("my_losses", "my_helpers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("what", BODY)
def test_an_edit_is_noticed_and_no_edit_is_none(load, what):
    text, old, new = BODY[what]
    first, again = (fingerprint(load(text).loss) for _ in range(2))
    # What the loss does not look at may change.
    elsewhere = f"# a comment\n{text}\n\n\ndef another(x):\n    return 5 * x\n"
    same = fingerprint(load(elsewhere).loss)
    assert first == again == same
    assert text.count(old) == 1
    assert fingerprint(load(text.replace(old, new)).loss) != first


def test_a_helper_in_another_module_of_ones_own(load):
    found = []
    for way in ("from my_helpers import f", "import my_helpers"):
        call = "f(x)" if "from" in way else "my_helpers.f(x)"
        for text in (
            f"{way}\ndef loss(x): return {call}",
            f"def loss(x):\n  {way}\n  return {call}",
        ):
            for sign in "-+":
                load(f"def f(x): return {sign}x", "my_helpers")
                found.append(fingerprint(load(text).loss))
    assert len(set(found)) == 8


def test_what_a_loss_imports_when_it_runs(load, tmp_path, monkeypatch):
    """Of its own package, and what it never came to import."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (package / "numbers.py").write_text(f"SCALE = {number}.0\n")
        (package / "mine.py").write_text(
            "def loss(x):\n  def inner():\n    from .numbers import SCALE\n    return SCALE\n"
            "  return inner() * x\n"
        )
        importlib.invalidate_caches()
        loss = importlib.import_module("my_package.mine").loss
        with pytest.raises(Unknowable, match=r"imports my_package.numbers where no trial call"):
            fingerprint(loss)
        assert loss(1.0) == number
        found.append(fingerprint(loss))
        for name in [name for name in sys.modules if name.startswith("my_package")]:
            monkeypatch.delitem(sys.modules, name)
    assert len(set(found)) == 2
    text = "def loss(x):\n  import nowhere_at_all, xml.dom, torch.fft\n  return x"
    assert fingerprint(load(text).loss)  # which are not the user's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import threading\nL = threading.Lock()\ndef loss(x): return L", "it holds a lock"),
        ("exec('def loss(x): return -x')", "the text of loss cannot be found"),
        (
            "class Loss:\n    def __reduce_ex__(self, n): raise RuntimeError\n"
            "    def __call__(self, x): return -x\nloss = Loss()",
            "it holds a Loss",
        ),
    ],
)
def test_what_has_neither_text_nor_value_is_told(load, text, message):
    with pytest.raises(Unknowable, match=message):
        fingerprint(load(text).loss)


def test_nested_without_end_is_told(load):
    text = "x = []\nfor _ in range(100_000):\n    x = [x]\ndef loss(y): return x"
    with pytest.raises(Unknowable, match="RecursionError"):
        fingerprint(load(text).loss)


def test_what_is_of_this_package_is_known_by_its_name(load):
    assert made_of("dpo", resolve("dpo")) is None
    assert made_of("tla_noisy", resolve("tla_noisy")) is None
    mine = "def loss(chosen_logps):\n    return -chosen_logps"
    load(mine)
    own = made_of("my_losses:loss", resolve("my_losses:loss"))
    assert own == fingerprint(resolve("my_losses:loss").function)
    folders = [str(DISCOVERED / name) for name in ("tla_noisy", "tla_mixed_v1")]
    assert len({own, *(made_of(folder, resolve(folder)) for folder in folders)}) == 3
