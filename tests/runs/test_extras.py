"""What is said of a package that is missing, and of whose."""

import importlib
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from torchmpo.runs.errors import UserError, exit_code, missing_package
from torchmpo.runs.extras import EXTRAS, INDEX_NAMES, how_to_install, missing


def failed_import(statement: str, module: str) -> ModuleNotFoundError:
    """The error of an import statement in a module of that name."""
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(compile(statement, module, "exec"), {"__name__": module})
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # without this function
    return error


@pytest.fixture
def absent(monkeypatch):
    """A package of the table that is not there."""
    monkeypatch.setitem(EXTRAS, "not_there", ("evolve", "llm"))


def test_the_extra_is_the_commands_own_or_the_first(absent):
    error = failed_import("import not_there.part", "torchmpo.evolve.run")
    assert missing(error) == "not_there is not installed: pip install 'torchmpo[evolve]'"
    assert missing(error, "llm") == "not_there is not installed: pip install 'torchmpo[llm]'"
    assert missing(error, "warp") == "not_there is not installed: pip install 'torchmpo[evolve]'"


def test_packages_of_ours_may_ask_for_each_other(absent):
    assert missing(failed_import("import not_there", "evotorch.core")) is not None


def test_a_module_of_the_users_own_is_not_spoken_of(absent):
    assert missing(failed_import("import not_there", "my_losses")) is None
    assert missing(failed_import("import not_there", "__main__")) is None


def test_other_modules_are_not_spoken_of():
    assert missing(failed_import("import no_such_module", "torchmpo.evolve.run")) is None
    assert missing(failed_import("import torchmpo.no_such", "torchmpo.evolve.run")) is None


def test_an_error_that_names_nothing():
    with pytest.raises(ModuleNotFoundError) as caught:
        raise ModuleNotFoundError("something is missing")
    assert missing(caught.value) is None


def test_exit_code_says_it_and_hides_nothing_else(absent, capsys):
    code = compile("import not_there", "ours", "exec")
    assert exit_code(lambda: exec(code, {"__name__": "torchmpo.show.run"}), extra="llm") == 2
    assert capsys.readouterr().err == (
        "error: not_there is not installed: pip install 'torchmpo[llm]'\n"
    )
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        exit_code(lambda: exec(code, {"__name__": "my_losses"}))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        exit_code(lambda: importlib.import_module("no_such_module"))


def test_the_error_to_raise(absent):
    ours = missing_package(failed_import("import not_there", "torchmpo.winrate.rates"))
    assert isinstance(ours, UserError)
    other = missing_package(failed_import("import no_such_module", "torchmpo.winrate.rates"))
    assert isinstance(other, ModuleNotFoundError)
    assert other.name == "no_such_module"


def test_the_package_index_has_its_own_names():
    assert INDEX_NAMES.keys() <= EXTRAS.keys()
    line = "scikit-learn is not installed: pip install 'torchmpo[winrate]'"
    assert how_to_install("sklearn") == line


PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def brought_by(extra: str) -> set[str]:
    """Names of the packages that an extra lists, and those of the extras it names."""
    found = set()
    for text in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == "torchmpo":
            found |= set().union(*map(brought_by, requirement.extras))
        else:
            found.add(requirement.name)
    return found


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_the_table_says_what_the_project_declares(package):
    for extra in EXTRAS[package] or ("",):
        assert INDEX_NAMES.get(package, package) in brought_by(extra)
