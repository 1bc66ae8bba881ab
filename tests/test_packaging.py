"""The built wheel holds what it should, and its losses work where only torch is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = {"torchmpo": ROOT / "torchmpo", "torchmpo_envs": ROOT / "envs" / "torchmpo_envs"}
OPTIONAL = [
    *("datasets", "evotorch", "gymnasium", "jsonargparse", "lightning", "matplotlib", "mujoco"),
    *("numpy", "peft", "ray", "safetensors", "scipy", "tensordict", "torchrl", "tqdm"),
    "transformers",
]


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed and finds no module by where it runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONSAFEPATH"] = "1"
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(distribution: str) -> set[str]:
    """The distribution and everything its core, without extras, requires here."""
    found, pending = set(), [distribution]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment that holds the wheel, torch, and what torch requires."""
    folder = tmp_path_factory.mktemp("clean")
    core = folder / "core"
    core.mkdir()
    for name in needs("torch"):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (core / top).exists():
                (core / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "core.pth").write_text(f"{core}\n")
    return python


def test_wheel_holds_every_source_file_and_weight(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    expected = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".json", ".safetensors") and "__pycache__" not in path.parts
    }
    assert {"torchmpo/__init__.py", "torchmpo_envs/__init__.py"} <= expected
    assert expected <= names
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert licence


def test_core_requires_torch_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        card = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(card).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist:")]
    core = [line.split()[1] for line in required if "extra ==" not in line]
    assert len(required) > 10
    assert [Requirement(text).name for text in core] == ["torch"]


def test_losses_work_with_the_core_dependencies_only(clean_python):
    printed = run(
        clean_python,
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
        """,
    )
    # D = 10 and β = 0.1: the loss is log(1 + e⁻¹), its gradient −β σ(−1).
    values = [float(word) for word in printed.split()]
    assert values == pytest.approx([0.31326169] * 2 + [-0.026894142] * 2, rel=1e-5)


def test_importing_losses_imports_nothing_optional():
    # torch itself imports numpy and tqdm where they are installed.
    heavy = [name for name in OPTIONAL if name not in ("numpy", "tqdm")]
    code = f"import sys, torchmpo.losses; print(*(n for n in {heavy} if n in sys.modules))"
    assert run(sys.executable, "-c", code).split() == []
