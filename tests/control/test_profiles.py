"""Every profile is settings that both commands take, and goes before the preset."""

import json
from dataclasses import replace

import pytest

from torchmpo.control.agents import load_agent
from torchmpo.control.settings import PROFILES, TestbedSettings
from torchmpo.control.testbed import configure, prepare
from torchmpo.diagnose.__main__ import COMMAND as DIAGNOSE
from torchmpo.diagnose.__main__ import main
from torchmpo.evolve.__main__ import COMMAND as EVOLVE
from torchmpo.runs.errors import UserError
from torchmpo.runs.options import read_settings
from torchmpo_envs import AGENTS, expert_path

NAMES = [path.stem for path in PROFILES.glob("*.yaml")]


def test_they_are_there():
    assert sorted(NAMES) == ["anchored", "llm_like", "paper"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", [DIAGNOSE, EVOLVE], ids=["diagnose", "evolve"])
def test_both_commands_take_it(command, name, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    config, _, _ = command.parse(["--preset", "smoke", "--profile", name, *out])
    own = read_settings(PROFILES / f"{name}.yaml")
    assert {key: getattr(config, key) for key in own} == own
    assert config.episode_steps == 50  # of the preset
    config, _, _ = command.parse(["--profile", name, "--epochs", "7", *out])
    assert config.epochs == 7  # an option goes before it


def test_anchored_is_the_default():
    config, default = (DIAGNOSE.parse(words)[0] for words in (["--profile", "anchored"], []))
    assert config == default


def test_the_papers_agents_are_apart(tmp_path):
    """Its target agent shares no weights with the original one, unlike the task's own."""
    config, _, _ = DIAGNOSE.parse(["--profile", "paper", "--out", str(tmp_path / "run")])
    pool = configure(config, "base", 1).pool
    assert (pool.original, pool.target) == ("ant_original", "tla_target_apart")
    assert configure(replace(config, task="hopper"), "base", 1).pool.target == "hopper_target"
    weights = [load_agent(name).state_dict() for name in (*AGENTS["tla"], pool.target)]
    distance = [
        sum(float((w[n] - weights[0][n]).square().sum()) for n in w if "layers" in n) ** 0.5
        for w in weights
    ]
    assert distance[2] > 3 * distance[1] > 0
    with pytest.raises(UserError, match=r"ant has no agent that was trained apart .* tla, hopper"):
        configure(replace(config, task="ant"), "base", 1)
    with pytest.raises(UserError, match="there is no file apart"):
        configure(replace(config, original="apart"), "base", 1)


def test_agents_apart_are_as_good_as_their_card_says():
    card = json.loads(expert_path("tla_target_apart").with_suffix(".json").read_text())
    bed = prepare([configure(TestbedSettings(target="apart", pairs=2), "base", 1)])[0]
    returns = bed.agent_returns("target", 8, 0)
    error = float(returns.std()) / 8**0.5
    known = card["tla_return_deterministic"]
    assert abs(float(returns.mean()) - known["mean"]) < 4 * (error**2 + known["s.e."] ** 2) ** 0.5
    assert returns.mean() > 2 * bed.agent_returns("original", 8, 0).mean()


def test_a_language_models_answers_are_drawn_from_what_is_trained():
    """With another σ than the data's, the start alone would score far from the original's 0."""
    own = read_settings(PROFILES / "llm_like.yaml")
    assert own["sample"]
    assert own["policy_std"] == own["behaviour_std"]


def test_a_run_like_a_language_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--preset smoke --profile llm_like --losses sft,dpo --data graded:0-0.4"
    assert main([*flags.split(), "--num_threads", "1", "--out", "run"]) == 0
    assert "dpo" in capsys.readouterr().out
    assert main(["--profile", "llm_lik"]) == 2
    assert "unknown profile 'llm_lik': did you mean 'llm_like'?" in capsys.readouterr().err


def test_a_loss_of_whole_steps_wants_a_gaussian_policy(capsys):
    assert main(["--preset", "smoke", "--policy", "categorical", "--losses", "tdpo"]) == 2
    assert "which a categorical policy does not supply" in capsys.readouterr().err
