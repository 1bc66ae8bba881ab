"""Every profile is settings that both commands take, and goes before the preset."""

import pytest

from torchmpo.control.settings import PROFILES
from torchmpo.diagnose.__main__ import COMMAND as DIAGNOSE
from torchmpo.diagnose.__main__ import main
from torchmpo.evolve.__main__ import COMMAND as EVOLVE
from torchmpo.runs.options import read_settings

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
