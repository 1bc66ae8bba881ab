"""The program ``torchmpo``: commands, help without torch, completion, missing packages."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import torchmpo
from torchmpo.__main__ import COMMANDS, main
from torchmpo.finetune.__main__ import COMMANDS as FINETUNE
from torchmpo.runs.extras import EXTRAS
from torchmpo.runs.threads import TINY, one_thread_if_tiny
from torchmpo.winrate import __main__ as winrate

ROOT = Path(__file__).parents[1]
# Packages that take long to import, or that are not always there.
HEAVY = [
    *("torch", "numpy", "evotorch", "ray", "lightning", "transformers", "matplotlib", "pandas"),
    *("mujoco", "torchrl", "tensordict", "scipy", "sklearn", "datasets", "peft"),
]


def python(code: str, *arguments: str, folder: Path | None = None):
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}"},
    )


def without(packages: str, *arguments: str, folder: Path | None = None):
    """Run the program where packages cannot be imported."""
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys({packages.split()!r}))
        from torchmpo.__main__ import main
        sys.exit(main(sys.argv[1:]))
    """
    return python(code, *arguments, folder=folder)


# Commands


def test_help_names_every_command(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, what in COMMANDS.items():
            assert f"  {name:<10} {what}" in lines


def test_every_command_is_a_package():
    packages = {path.parent.name for path in (ROOT / "torchmpo").glob("*/__main__.py")}
    assert packages == set(COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchmpo {torchmpo.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evolv", "unknown command 'evolv': did you mean 'evolve'?"),
        ("complete bash", "unknown command 'complete': did you mean 'completion'?"),
        ("--verbose", "unknown command '--verbose': choose from: completion, diagnose, evolve"),
        ("completion", "name one shell: torchmpo completion bash or zsh"),
        ("completion fish", "name one shell: torchmpo completion bash or zsh"),
        ("evolve --popluation 4", "unknown option --popluation: did you mean 'population'?"),
        ("diagnose --preset smok", "unknown preset 'smok': did you mean 'smoke'?"),
        ("show", "the following arguments are required: what"),
        ("finetune fot", "unknown command 'fot': did you mean 'fit'?"),
        ("finetune export", "the following arguments are required: --adapter, --out"),
        ("winrate --resume", "there is no run in runs/winrate"),
        ("generate", "--model: a model's or an adapter's folder"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_command_is_its_package(capsys, tmp_path, monkeypatch):
    """The same words, and in what is printed the package's name: that works where pip's folder of
    programs is not on the path, too."""
    monkeypatch.chdir(tmp_path)
    printed = []
    for call, words in ((main, ["winrate"]), (winrate.main, [])):
        with pytest.raises(SystemExit, match="0"):
            call([*words, "--help"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith("usage: python -m torchmpo.winrate ")


def test_the_line_after_ctrl_c_names_the_package(capsys, tmp_path, monkeypatch):
    def interrupted(prepared, out):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchmpo.winrate.run.prepare", lambda config: config)
    monkeypatch.setattr("torchmpo.winrate.run.fingerprints", lambda evaluation: {})
    monkeypatch.setattr("torchmpo.winrate.run.run", interrupted)
    assert main(["winrate", "--judge", "a:b", "--out", "there"]) == 130
    line = "interrupted; go on with: python -m torchmpo.winrate --out there --resume --trust"
    assert capsys.readouterr().err == f"\n{line}\n"


def test_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["torchmpo", "finetune", "--help"])
    assert main() == 0
    assert "torchmpo.finetune fit" in capsys.readouterr().out


# What is quick


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", *(f"{name} --help" for name in COMMANDS), "finetune export --help"],
)
def test_help_imports_nothing_heavy(words):
    code = f"""
        import sys
        from torchmpo.__main__ import main
        try:
            code = main(sys.argv[1:])
        except SystemExit as error:
            code = error.code
        print("imported:", *(name for name in {HEAVY!r} if name in sys.modules))
        sys.exit(code)
    """
    done = python(code, *words.split())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1
    assert done.stdout.splitlines()[-1] == "imported:"
    assert done.stderr == ""


@pytest.mark.parametrize("missing", ["jsonargparse numpy tqdm torch", "yaml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_without_the_parser(command, missing):
    done = without(missing, command, "--help")
    assert done.returncode == 0, done.stderr
    words = {
        "evolve": "population: losses per generation",
        "diagnose": "losses: names, references to functions",
        "winrate": "judge: an annotations file",
        "generate": "prompts: JSON list",
        "show": "--distill",
        "finetune": "torchmpo.finetune fit",
    }
    assert words[command] in done.stdout


@pytest.mark.parametrize(
    "words", [*(f"{name} --help" for name in COMMANDS), *(f"finetune {n} --help" for n in FINETUNE)]
)
def test_help_with_torch_alone(words):
    done = without(" ".join(EXTRAS.keys() - {"torch", "filelock"}), *words.split())
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout or "torchmpo.finetune fit" in done.stdout
    assert done.stderr == ""


def test_the_first_line_comes_before_the_imports(tmp_path):
    done = without("torch", "evolve", "--preset", "smoke", "--out", "here", folder=tmp_path)
    assert done.stdout == "evolve: tla, noisy:0.3 → here\n"
    assert done.stderr == "error: torch is not installed: pip install torchmpo\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "given", "seen"),
    [
        *((name, None, "PASSIVE") for name in ("evolve", "diagnose", "show orpo", "finetune fit")),
        ("winrate --judge reward/model", None, "PASSIVE"),
        ("evolve", "ACTIVE", "ACTIVE"),
    ],
)
def test_threads_wait_asleep_unless_told_otherwise(words, given, seen, tmp_path, monkeypatch):
    """OpenMP reads this once, when torch is imported."""
    (tmp_path / "torch.py").write_text(
        "import os, sys\nsys.stderr.write(os.environ['OMP_WAIT_POLICY'])\nos._exit(9)\n"
    )
    for name in ("mine", "base"):
        text = f'[{{"instruction": "a", "output": "{name}", "generator": "{name}"}}]'
        (tmp_path / f"{name}.json").write_text(text)
    if "winrate" in words:
        words += " --outputs mine.json --reference base.json"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    code = "import sys; from torchmpo.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, *words.split(), folder=tmp_path)
    assert (done.returncode, done.stderr) == (9, seen)


@pytest.mark.parametrize(
    ("parameters", "given", "threads"),
    [(TINY - 1, None, 1), (TINY, None, 2), (TINY - 1, "2", 2)],
)
def test_a_tiny_model_is_computed_in_one_thread(parameters, given, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one_thread_if_tiny(parameters)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# Packages that are missing


@pytest.mark.parametrize(
    ("package", "words", "line"),
    [
        ("evotorch", "evolve --preset smoke", "evotorch is not installed: {evolve}"),
        ("tqdm", "evolve --preset smoke", "tqdm is not installed: {evolve}"),
        ("ray", "evolve --preset smoke", "ray is not installed: {cluster}"),
        ("jsonargparse", "evolve", "jsonargparse is not installed: pip install torchmpo"),
        ("yaml", "winrate", "pyyaml is not installed: pip install torchmpo"),
        ("tensordict", "diagnose --preset smoke", "tensordict is not installed: {diagnose}"),
        ("scipy", "show simpo", "scipy is not installed: {diagnose}"),
        ("matplotlib", "show simpo", "matplotlib is not installed: {diagnose}"),
        ("lightning", "finetune fit", "lightning is not installed: {llm}"),
        ("peft", "finetune export --adapter a --out b", "peft is not installed: {llm}"),
        ("transformers", "winrate --judge a/b {answers}", "transformers is not installed: {llm}"),
        (
            "transformers",
            "generate --model m --prompts mine.json",
            "transformers is not installed: {llm}",
        ),
        ("tqdm", "generate --model m --prompts mine.json", "tqdm is not installed: {llm}"),
        ("shtab", "completion bash", "shtab is not installed: {completion}"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(package, words, line, tmp_path):
    for name in ("mine", "base"):
        text = f'[{{"instruction": "a", "output": "{name}", "generator": "{name}"}}]'
        (tmp_path / f"{name}.json").write_text(text)
    words = words.replace("{answers}", "--outputs mine.json --reference base.json")
    names = {extra for extras in EXTRAS.values() for extra in extras}
    extras = {name: f"pip install 'torchmpo[{name}]'" for name in names}
    done = without(package, *words.split(), folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {line.format(**extras)}"
    assert "Traceback" not in done.stderr


# Completion


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """The words that bash offers for the last of some words."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "mine.yaml").touch()
    (folder / "runs").mkdir()
    code = f"""
        import sys
        from torchmpo.__main__ import main
        assert main(["completion", "bash"]) == 0
        assert not [name for name in {HEAVY!r} if name in sys.modules]
    """
    done = python(code)
    assert done.returncode == 0, done.stderr
    (folder / "script.bash").write_text(done.stdout)
    ask = r"""
        source ./script.bash
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        [[ $(complete -p torchmpo) =~ -F\ ([^ ]+) ]]
        "${BASH_REMATCH[1]}" torchmpo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    """

    def offered(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", textwrap.dedent(ask), "bash", "torchmpo", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.stderr == ""
        return done.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ([""], [*COMMANDS, "completion"]),
        (["ev"], ["evolve"]),
        (["evolve", "--popu"], ["--population"]),
        (["evolve", "--population", "4", "--rival_"], ["--rival_trials"]),
        (["evolve", "--preset", ""], ["default", "smoke", "paper"]),
        (["diagnose", "--resume", "--preset", "q"], ["quick"]),
        (["show", "--dis"], ["--distill"]),
        (["winrate", "--both"], ["--both_orders"]),
        (["finetune", ""], list(FINETUNE)),
        (["finetune", "fit", "--trainer.max_s"], ["--trainer.max_steps"]),
        (["finetune", "export", "--ada"], ["--adapter"]),
        (["completion", ""], ["bash", "zsh"]),
        (["evolve", "--config", "mi"], ["mine.yaml"]),
        (["evolve", "--out", "ru"], ["runs"]),
    ],
)
def test_completion_in_bash(bash, words, offers):
    assert bash(*words) == offers


def test_completion_for_zsh(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef torchmpo\n")
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=script, text=True, check=True)


def test_the_installed_program_finds_a_loss_in_the_current_folder(tmp_path):
    """Its own folder is that of the program, where no user's module lies."""
    (tmp_path / "my_losses.py").write_text("def f(chosen_mean_logps):\n    return missing\n")
    code = "import sys; sys.path[0] = '/nowhere'; from torchmpo.__main__ import main; main()"
    words = ["diagnose", "--preset", "smoke", "--losses", "my_losses:f"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert "name 'missing' is not defined" in done.stderr
    assert "No module named" not in done.stderr
