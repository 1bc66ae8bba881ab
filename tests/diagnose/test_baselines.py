"""The baseline rlhf as a contestant: its cell, its resumption, and what it refuses."""

import json

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.reward_models import RewardConfig
from torchmpo.control.rlhf import GRID, PPOConfig
from torchmpo.control.testbed import TestbedConfig, prepare
from torchmpo.control.tuning import Protocol
from torchmpo.diagnose import baselines
from torchmpo.diagnose.__main__ import main
from torchmpo.diagnose.cells import read_cell, write_cell
from torchmpo.runs.seeding import derive_seed

PROTOCOL = Protocol(tuning_episodes=4, episodes=4)
PPO = PPOConfig(steps=64, num_envs=4, horizon=8, epochs=1, minibatches=1, looks=3)
REWARD = RewardConfig(members=2, hidden=8, epochs=1, steps_per_trajectory=5)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    inner = InnerConfig(epochs=1, compile=False, steps_per_trajectory=5)
    pool = PoolConfig(pairs=6, max_steps=12)
    own = {"pool": pool, "inner": inner, "num_threads": 1, "cache_dir": cache}
    return prepare([TestbedConfig(**own, data="proxy:2")])[0]


@pytest.fixture(scope="module")
def cell(bed):
    return baselines.run_baseline(bed, 2, PROTOCOL, PPO, reward=REWARD)


def test_a_cell_is_like_one_of_a_loss_and_can_be_read_again(bed, cell, tmp_path):
    write_cell(tmp_path / "cell.json", cell)
    assert read_cell(tmp_path / "cell.json") == json.loads(json.dumps(cell))
    assert cell["grid"] == GRID
    assert [len(row) for row in cell["tuning"]] == [1] * len(GRID)
    assert [len(row) for row in cell["returns"]] == [4, 4]
    for about, path in zip(cell["baseline"], cell["checkpoints"], strict=True):
        assert about["environment_steps"] == 64
        assert about["tuning_environment_steps"] == 4 * 64
        assert about["labels"] == 6
        assert about["held_out_accuracy"] in (0.0, 0.5, 1.0)  # of one pair
        assert path["epoch"] == [0, 32, 64]
        assert path["kl"][0] == 0.0 < path["kl"][1]
        assert len(path["learned"]) == len(path["return"]) == len(path["judged"]) == 3
        assert path["judged"][0] != path["return"][0]
    assert all(why["kl_to_start"] > 0 for why in cell["why"])
    assert cell["labels"] == [6, 6]
    own = bed.dataset.simulated_steps
    assert cell["environment_steps"] == [64 + own, 64 + own]  # as of a loss, those of its data, too


def test_a_seed_added_later_is_that_of_a_longer_run_and_the_same_again(bed, cell):
    one = baselines.run_baseline(bed, 1, PROTOCOL, PPO, reward=REWARD)
    both = baselines.run_baseline(bed, 2, PROTOCOL, PPO, done=one, reward=REWARD)
    assert both["tuning"] == cell["tuning"]
    for name in ("returns", "margins"):
        one, other = torch.tensor(both[name]), torch.tensor(cell[name])
        torch.testing.assert_close(one, other, atol=1e-2, rtol=0.0)
    assert both["baseline"] == cell["baseline"]


def test_it_is_judged_from_the_start_states_of_the_losses(bed, monkeypatch):
    seeds, evaluate = [], type(bed).evaluate

    def spied(self, params, episodes, seed, **watched):
        seeds.append(seed)
        return evaluate(self, params, episodes, seed, **watched)

    monkeypatch.setattr(type(bed), "evaluate", spied)
    baselines.run_baseline(bed, 1, PROTOCOL, PPO, reward=REWARD)
    assert seeds[0] == derive_seed(PROTOCOL.seed, "tuning episodes", 0)
    assert set(seeds[1:]) == {derive_seed(PROTOCOL.seed, "final episodes")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--baselines ppo", "unknown baseline 'ppo'"),
        ("--baselines rlhf --policy categorical", "set policy to gaussian"),
        ("--baselines rlhf --task hopper", "set start to original"),
        ("--baselines rlhf --rlhf_steps 0", "rlhf_steps must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--preset", "smoke", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
