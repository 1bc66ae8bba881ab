"""What is built and installed: the wheel's content, its versions, and a clean environment at work.

The clean environment holds the wheel and what a plain `pip install torchmpo` brings, no extra.
"""

import ast
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from slow_files import SLOW

import torchmpo

ROOT = Path(__file__).parents[1]
PACKAGES = {"torchmpo": ROOT / "torchmpo", "torchmpo_envs": ROOT / "envs" / "torchmpo_envs"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
OPTIONAL = [
    *("datasets", "evotorch", "gymnasium", "imageio", "lightning", "matplotlib", "mujoco", "peft"),
    *("ray", "scipy", "sklearn", "tensordict", "torchrl", "tqdm", "transformers"),
]


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a command that must succeed and finds no module by where it runs."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | {"PYTHONSAFEPATH": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def version_of(folder: Path, **environment: str) -> str:
    """What a build there would be called."""
    return run(sys.executable, "-m", "hatchling", "version", cwd=folder, **environment).strip()


def distribution(wheel: Path) -> metadata.Distribution:
    folder = next(p for p in zipfile.Path(wheel).iterdir() if p.name.endswith(".dist-info"))
    return metadata.PathDistribution(folder)


def needs(wheel: Path, extra: str = "") -> set[str]:
    """All distributions that the wheel with an extra brings, by the metadata of those here."""
    found, pending = set(), [Requirement(f"torchmpo[{extra}]" if extra else "torchmpo")]
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        key = (name, frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        ours = name == "torchmpo"
        texts = distribution(wheel).requires if ours else metadata.requires(name)
        for requirement in map(Requirement, texts or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                pending.append(requirement)
    return {name for name, _ in found} - {"torchmpo"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The programs of a new environment that holds the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    core = folder / "core"
    core.mkdir()
    for name in needs(wheel):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (core / top).exists():
                (core / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    programs = folder / "venv" / "bin"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", "--python", programs / "python", *install)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = run(programs / "python", "-c", where).strip()
    (Path(site) / "core.pth").write_text(f"{core}\n")
    return programs


def test_wheel_holds_every_source_file_and_weight(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    expected = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".json", ".safetensors", ".typed", ".html", ".css", ".js")
        and "__pycache__" not in path.parts
    }
    assert {f"{package}/__init__.py" for package in PACKAGES} <= expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert expected <= names
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert licence


def test_the_index_would_take_both_files(dist):
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


def test_the_source_archive_builds_the_same_version_without_git(dist, wheel, tmp_path):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert version_of(folder, PATH="") == distribution(wheel).version


def test_the_console_program_is_declared(wheel):
    (script,) = distribution(wheel).entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("torchmpo", "torchmpo.__main__:main")


# --- versions


@pytest.fixture
def sources(tmp_path) -> Path:
    """What a version is read from: the settings of the build, and no repository."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    run("git", *who, *words, cwd=folder)


def commit(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", text)


def test_versions_come_from_tags(sources, tmp_path):
    git(sources, "init", "-q")
    commit(sources, "one")
    assert Version(version_of(sources)) == Version("0.1.dev1")  # no tag yet
    git(sources, "tag", "v3.4.0")
    assert version_of(sources) == "3.4.0"
    commit(sources, "two")
    assert version_of(sources) == "3.4.1.dev1"
    (sources / "README.md").write_text("not committed")
    assert version_of(sources) == "3.4.1.dev1"  # neither a date nor a hash
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", sources.as_uri(), str(shallow))
    assert Version(version_of(shallow)) == Version("0.1.dev1")


def test_without_a_repository_or_without_git_the_version_is_the_fallback(sources):
    fallback = SETTINGS["tool"]["hatch"]["version"]["fallback-version"]
    assert version_of(sources) == fallback
    git(sources, "init", "-q")
    commit(sources, "one")
    git(sources, "tag", "v3.4.0")
    assert version_of(sources, PATH="") == fallback


def test_the_release_that_runs_write_down_is_that_of_the_change_log():
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].split()[0]
    fallback = Version(SETTINGS["tool"]["hatch"]["version"]["fallback-version"])
    assert newest == torchmpo.RELEASE == fallback.base_version


def test_the_version_is_that_of_the_installed_package(clean, wheel):
    code = """if True:
        import sys, torchmpo
        light = not {"importlib.metadata", "torch"} & set(sys.modules)
        print(light, torchmpo.__version__)
    """
    assert run(clean / "python", "-c", code).split() == ["True", distribution(wheel).version]


def test_a_source_tree_that_is_not_installed_has_the_version_of_its_release():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torchmpo as t; print(t.__version__)"
    )
    isolated = (sys.executable, "-I", "-S", "-c", code)  # without site-packages
    assert run(*isolated).strip() == torchmpo.RELEASE


# --- dependencies


def test_core_requires_what_losses_and_help_need(wheel):
    core = [Requirement(t) for t in distribution(wheel).requires or [] if "extra ==" not in t]
    names = {requirement.name for requirement in core}
    others = {"pydantic", "pyyaml", "safetensors", "torch", "typing-extensions"}
    assert names == {"filelock", "jinja2", "jsonargparse", "markupsafe", "numpy", *others}


@pytest.mark.parametrize(
    ("extra", "ray", "regression"),
    [
        ("", False, False),
        ("diagnose", False, False),
        ("evolve", True, False),  # EvoTorch requires Ray
        ("cluster", True, False),
        ("llm", False, False),
        ("winrate", False, True),
    ],
)
def test_ray_and_scikit_learn_come_with_what_uses_them(wheel, extra, ray, regression):
    found = needs(wheel, extra)
    assert ("ray" in found, "scikit-learn" in found) == (ray, regression)


def test_all_is_every_extra_of_users():
    extras = SETTINGS["project"]["optional-dependencies"]

    def within(extra: str) -> set[str]:
        own = [r for r in map(Requirement, extras[extra]) if r.name == "torchmpo"]
        return {extra}.union(*(within(name) for requirement in own for name in requirement.extras))

    assert within("all") == set(extras) - {"dev", "docs"}


def test_what_the_packages_import_is_declared():
    declared = SETTINGS["project"]["dependencies"]
    for texts in SETTINGS["project"]["optional-dependencies"].values():
        declared = declared + texts
    names = {canonicalize_name(Requirement(text).name) for text in declared}
    owners = metadata.packages_distributions()
    imported = {}
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                else:
                    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                imported |= {module.split(".")[0]: path for module in modules}
    third = set(imported) - set(sys.stdlib_module_names) - set(PACKAGES) - {"mujoco_warp", "warp"}
    assert len(third) > 15
    assert not {
        module: imported[module]
        for module in third
        if not {canonicalize_name(owner) for owner in owners[module]} & names
    }


def test_the_versions_tested_together_are_allowed_and_the_same_for_uv():
    texts = [*SETTINGS["project"]["dependencies"], *SETTINGS["build-system"]["requires"]]
    for extra in SETTINGS["project"]["optional-dependencies"].values():
        texts += extra
    pinned = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in CONSTRAINTS}
    for requirement in map(Requirement, texts):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is None or version in requirement.specifier, str(requirement)
    for text in SETTINGS["tool"]["uv"]["constraint-dependencies"]:
        assert Requirement(text) in CONSTRAINTS


# --- at work


def test_losses_and_found_objectives_work_after_a_plain_install(clean, tmp_path):
    printed = run(
        clean / "python",
        "-c",
        f"""if True:
        from importlib.util import find_spec
        assert not [name for name in {OPTIONAL} if find_spec(name)]
        import torch, torchmpo
        from torchmpo.losses import dpo_loss
        assert not torchmpo.__file__.startswith({str(ROOT)!r})
        logps = torch.tensor([-3.0, -5.0], requires_grad=True)
        loss = dpo_loss(logps, logps.detach() - 10.0, logps.detach(), logps.detach(), beta=0.1)
        loss.sum().backward()
        print(*loss.tolist(), *logps.grad.tolist())

        found = torchmpo.resolve("tla_noisy")
        found.save({str(tmp_path / "copy")!r}, {{}})
        again = torchmpo.resolve({str(tmp_path / "copy")!r})
        pairs = torchmpo.PairLogps(**{{name: -torch.rand(4) for name in found.inputs}})
        assert torch.equal(found(pairs), again(pairs))
        assert found(pairs).isfinite().all()
        """,
        cwd=tmp_path,
    )
    # D = 10 and β = 0.1: the loss is log(1 + e⁻¹), its gradient −β σ(−1).
    values = [float(word) for word in printed.split()]
    assert values == pytest.approx([0.31326169] * 2 + [-0.026894142] * 2, rel=1e-5)


@pytest.mark.parametrize("command", ["evolve", "diagnose", "show", "generate", "winrate"])
def test_help_works_after_a_plain_install(clean, command):
    assert command in run(clean / "python", "-m", f"torchmpo.{command}", "--help")


def test_the_console_program_works_after_a_plain_install(clean):
    assert "evolve" in run(clean / "torchmpo", "--help")


def test_importing_losses_imports_nothing_optional():
    # torch itself imports numpy and tqdm where they are installed.
    heavy = [name for name in OPTIONAL if name != "tqdm"] + ["jsonargparse", "safetensors", "yaml"]
    code = f"import sys, torchmpo.losses; print(*(n for n in {heavy} if n in sys.modules))"
    assert run(sys.executable, "-c", code).split() == []


def test_files_that_go_first_are_there_under_their_names():
    for name in SLOW:
        assert len([*(ROOT / "tests").rglob(name)]) == 1
