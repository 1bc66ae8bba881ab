"""``evolve --space program`` from its settings to a formula, and its proposer."""

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from fake_endpoint import completion, endpoint  # noqa: F401  (a fixture)
from ray import cloudpickle
from tiny_llm import QUIET, tiny_batch, tiny_llama

from torchmpo.evolve import run as evolve
from torchmpo.evolve import search as outer_loop
from torchmpo.evolve.__main__ import COMMAND, main
from torchmpo.evolve.programs.grammar import Grammar
from torchmpo.evolve.programs.proposer import Proposer
from torchmpo.evolve.programs.space import program_space
from torchmpo.evolve.settings import EvolveConfig
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, parse, text
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError
from torchmpo.show import run as showing
from torchmpo.show.__main__ import main as show

SMALL = ["--pairs", "2", "--episode_steps", "10", "--epochs", "1", "--learning_rate", "1e-3"]
SMALL += ["--population", "8", "--held_out_every", "0", "--rivals", "sft"]
RUN = ["--space", "program", "--preset", "smoke", *SMALL, "--nodes", "10"]
# Answers with what it was asked, and with formulas of its own; it says in a file that it ran.
PROPOSER = """
import json, sys
asked = json.load(sys.stdin)
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(asked) + "\\n")
print("# the best one, and another weight\\n")
print(f"0.25 * tanh({asked['archive'][0]['formula']}) - c")
print("softplus(-3 * margin) - 0.5 * c")
print("nonsense")
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def proposer(tmp_path):
    """A command, and the file in which it says what it was asked."""
    path = tmp_path / "proposer.py"
    path.write_text(PROPOSER)
    return f"{sys.executable} {path} {tmp_path / 'asked.jsonl'}", tmp_path / "asked.jsonl"


def grammar():
    return Grammar(["c", "r", "margin"], 12)


def test_a_run_a_kill_and_what_it_found(capsys, monkeypatch, proposer):
    command, asked = proposer
    for figure in ("fitness_figure", "gradient_figure"):  # slow, and drawn by other tests
        monkeypatch.setattr(evolve, figure, lambda *_, **__: None)
    assert main([*RUN, "--proposer", command, "--out", "whole"]) == 0
    out = capsys.readouterr().out
    assert "proposer: 2 formulas, and 1 lines that are none; the first: unknown name" in out
    assert "generation   2/2" in out
    questions = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [question["generation"] for question in questions] == [1]
    assert questions[0]["nodes"] == 10
    assert set(questions[0]["leaves"]) >= {"c", "margin_sum", "t"}
    assert questions[0]["archive"][0].keys() == {"formula", "score", "trainings"}

    # It ends where a kill would end it: after the answer, before the checkpoint.
    save = outer_loop.save_checkpoint

    def killed(folder, checkpoint):
        if checkpoint.step == 2:
            raise KeyboardInterrupt
        save(folder, checkpoint)

    monkeypatch.setattr(outer_loop, "save_checkpoint", killed)
    assert main([*RUN, "--proposer", command, "--out", "parts"]) == 130
    monkeypatch.setattr(outer_loop, "save_checkpoint", save)
    capsys.readouterr()
    assert main(["--resume", "--out", "parts"]) == 2  # only its files name the command
    assert "names code to run" in capsys.readouterr().err
    assert main(["--resume", "--out", "parts", "--proposer", command]) == 0
    assert len(asked.read_text().splitlines()) == 2  # its answer was kept
    for name in ("log.csv", "comparison.json", "objective/objective.json", "formula.py"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes(), name

    # What was found: a folder, a line of text, and a file of Python are the same loss.
    saved = resolve(Path("whole/objective"))
    assert isinstance(saved, Objective)
    assert isinstance(saved.function, Formula)
    monkeypatch.syspath_prepend("whole")
    monkeypatch.delitem(sys.modules, "formula", raising=False)
    own = resolve("formula:loss")
    x, y = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])
    fields = {"chosen_mean_logps": x, "rejected_mean_logps": y, "chosen_logps": 3 * x}
    fields |= {"rejected_logps": 2 * y, "progress": torch.tensor(0.5)}
    pair = PairLogps(**fields)
    values = [saved(pair), own(pair)]
    torch.testing.assert_close(*values, atol=1e-6, rtol=1e-6)

    capsys.readouterr()
    for figure in ("gradient_figure", "pull_figure"):
        monkeypatch.setattr(showing, figure, lambda *_, **__: None)
    assert show(["whole"]) == 0
    shown = capsys.readouterr().out
    assert f"formula: {text(saved.function.expression)}" in shown
    assert saved.function.latex() in shown
    assert saved.function.source() in shown


def test_settings_of_runs_of_before_are_read():
    new = ("nodes", "reads", "require", "proposer", "proposer_seconds", "proposer_gib")
    before = {key: value for key, value in asdict(EvolveConfig()).items() if key not in new}
    Path("old").mkdir()
    Path("old/config.yaml").write_text(yaml.safe_dump(before))
    assert COMMAND.parse(["--resume", "--out", "old"])[0] == EvolveConfig()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--proposer cat", "proposer belongs to --space program, not to network"),
        ("--require monotone", "require belongs to --space program, not to network"),
        ("--space hyper --nodes 9", "nodes belongs to --space program, not to hyper"),
        (
            "--space closed_form --reads sums",
            "reads belongs to --space program, not to closed_form",
        ),
        (
            "--space program --warm_start 'relu(50000-margin_sum)-c'",
            "start relu(50000-margin_sum)-c: constants of a search lie between -10000 and 10000",
        ),
        ("--space program --optimizer cmaes", "optimizer does not go with --space program"),
        ("--space program --temporal true", "temporal does not go with --space program"),
        ("--space program --search_rate true", "search_rate does not go with --space program"),
        ("--space program --nodes 1", "nodes must be from 3 to 127; got 1"),
        ("--space program --reads sum", "reads: unknown 'sum': did you mean 'sums'?"),
        ("--space program --require smooth", "require: unknown 'smooth'"),
        ("--space program --proposer_seconds 0", "proposer_seconds must be at least 1; got 0"),
        ("--space program --warm_start dpo", "start DPO lies outside the space"),
        ("--space program --proposer ''", "proposer is empty: give a command"),
        ('--space program --proposer "\'a"', "proposer: No closing quotation: 'a"),
    ],
)
def test_mistakes_are_one_line_before_any_compute(capsys, argv, message):
    assert main([*shlex.split(argv), "--preset", "smoke", "--out", "none"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("none").exists()


def test_a_space_travels_to_actors():
    space = program_space(["means"], 12)
    there = cloudpickle.loads(cloudpickle.dumps(space))
    rows = torch.stack([space.encode(parse(f)) for f in ("-c", "softplus(-2 * margin)")])
    for name, value in space.parameters(rows).items():
        assert torch.equal(value, there.parameters(rows)[name])


# --- the proposer's limits ---


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", "it took more than 1 s"),
        ("print('c' * 10**6)", "it printed more than 100000 bytes"),
        ("import sys; sys.exit(3)", "it ended with exit code 3"),
        ("x = bytearray(3 * 2**30)", "it ended with exit code 1"),
    ],
)
def test_a_proposer_has_limits(tmp_path, capsys, code, message):
    (tmp_path / "bad.py").write_text(code)
    command = f"{sys.executable} {tmp_path / 'bad.py'}"
    assert Proposer(command, grammar(), tmp_path / "kept", 1, 1)(1, []) == []
    assert message in capsys.readouterr().out


def test_a_proposer_that_cannot_be_started_proposes_nothing(tmp_path, capsys):
    assert Proposer("no-such-command", grammar(), tmp_path, 5, 1)(1, []) == []
    assert "it ended with exit code 127" in capsys.readouterr().out


@pytest.mark.parametrize("constant", ["1" + "0" * 400, "50000"])
def test_a_proposed_constant_that_is_too_large_is_counted_with_what_is_no_formula(
    tmp_path, capsys, constant
):
    (tmp_path / "wide.py").write_text(f"print('-c * {constant}'); print('-c')")
    command = f"{sys.executable} {tmp_path / 'wide.py'}"
    for _ in range(2):  # the second time from the kept answer
        assert Proposer(command, grammar(), tmp_path / "kept", 30, 1)(1, []) == [parse("-c")]
        assert "1 formulas, and 1 lines that are none" in capsys.readouterr().out


def test_damaged_answers_are_one_line(tmp_path):
    (tmp_path / "000001.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"000001\.json"):
        Proposer("cat", grammar(), tmp_path, 1, 1)(1, [])


# --- other commands take a formula ---


@pytest.mark.filterwarnings(*[mark.args[0] for mark in QUIET])
def test_a_formula_trains_a_language_model(tmp_path):
    from torchmpo.finetune.models import LoraSettings
    from torchmpo.finetune.module import PreferenceModule
    from torchmpo.finetune.resume import loss_words

    formula = "softplus(-0.1 * D) - 0.5 * c + 0.1 * c_var - 0.01 * c_min"
    Objective(Formula(parse(formula))).save(tmp_path / "saved", {"name": "mine"})
    torch.manual_seed(0)
    lora = LoraSettings(r=4)
    module = PreferenceModule(tiny_llama(), str(tmp_path / "saved"), lora=lora)
    data = tiny_batch()
    loss = module.losses(module.pair_logps(data)).mean()
    loss.backward()
    assert loss.isfinite()
    assert module.reference == "adapter_off"
    assert loss_words(module.objective) == f"Formula({formula!r})"


def test_the_documented_proposer_asks_an_endpoint(tmp_path, capsys, monkeypatch, endpoint):  # noqa: F811
    page = Path(__file__).parents[2] / "docs" / "programs.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (tmp_path / "ask_model.py").write_text(blocks[-1])
    endpoint.answer = lambda body: completion(
        "softplus(-2 * margin) - c\n-c + exp(r)\nThat is all."
    )
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("MODEL", "mine")
    propose = Proposer(f"{sys.executable} ask_model.py", grammar(), tmp_path / "kept", 60, 4)
    found = propose(3, [(parse("-c"), 12.5, 2)])
    assert [text(expression) for expression in found] == [
        "softplus(-2 * margin) - c",
        "-c + exp(r)",
    ]
    assert "proposer: 2 formulas, and 1 lines that are none" in capsys.readouterr().out
    assert endpoint.bodies[0]["model"] == "mine"
    assert "12.5  -c\n" in endpoint.bodies[0]["messages"][0]["content"]
    assert endpoint.headers[0]["path"] == "/v1/chat/completions"
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"


def test_the_documented_formula_is_saved(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "programs.md"
    block = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)[0]
    exec(block, {})
    assert resolve(tmp_path / "my_formula").card == {"name": "by hand"}
