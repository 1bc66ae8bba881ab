"""Data sets of Minari in and out, against what Minari itself reads."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch.testing import assert_close

from torchmpo.control.kinds import PARTS, describe, parse_kind
from torchmpo.control.minari_data import from_minari, to_minari
from torchmpo.control.minari_pairs import PAIRS, minari_digest
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset, preference_data
from torchmpo.diagnose.__main__ import main
from torchmpo.runs.errors import UserError

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")
KIND = "minari:test/episodes-v0"
LOW, HIGH = np.float32([-2, 0]), np.float32([2, 0.5])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def stored(name="test/episodes-v0", *, seen=None, done=None, dictionary=False, equal=False):
    """Episodes of 3, 4, … 8 steps, written by Minari itself."""
    from minari.data_collector import EpisodeBuffer

    draw, buffers = np.random.default_rng(0), []
    for index in range(6):
        steps = 3 + index
        obs = draw.normal(size=(steps + 1, 3)).astype(np.float32)
        discrete = done is not None
        actions = draw.uniform(LOW, HIGH, (steps, 2)).astype(np.float32)
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations={"b": obs[:, :1], "a": obs[:, 1:]} if dictionary else obs,
                actions=np.zeros(steps, np.int64) if discrete else actions,
                rewards=np.full(steps, 1 / steps) if equal else draw.normal(size=steps),
                terminations=last,
                truncations=~last & False,
                infos={},
            )
        )
    wide = Box(-np.inf, np.inf, (3,), np.float32)
    if dictionary:
        seen = Dict({k: Box(-np.inf, np.inf, (n,), np.float32) for k, n in (("b", 1), ("a", 2))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like to know who made it
        return minari.create_dataset_from_buffers(
            name, buffers, observation_space=seen or wide, action_space=done or Box(LOW, HIGH)
        )


@pytest.mark.parametrize("dictionary", [False, True])
def test_pairs_are_of_the_episodes_and_the_better_one_is_chosen(dictionary):
    stored(dictionary=dictionary)
    data = from_minari("test/episodes-v0", 40, seed=1)
    episodes = list(minari.load_dataset("test/episodes-v0"))
    assert len(data) == 40
    assert sorted(data.lengths.tolist()) == [3, 4, 5, 6, 7, 8]
    assert (data.returns[data.chosen] > data.returns[data.rejected]).all()
    assert len({*zip(data.chosen.tolist(), data.rejected.tolist())}) > 10
    for row, episode in enumerate(episodes):
        steps = len(episode.rewards)
        assert data.lengths[row] == steps
        assert data.returns[row].item() == pytest.approx(episode.rewards.sum(), abs=1e-5)
        seen = episode.observations
        if dictionary:  # in the order of the space, as Gymnasium flattens
            seen = np.concatenate([seen["a"], seen["b"]], 1)
        assert_close(data.observation[row, :steps], torch.tensor(seen[:-1]))
        unit = torch.tensor((episode.actions - LOW) / (HIGH - LOW) * 2 - 1)
        assert_close(data.action[row, :steps], unit, rtol=0, atol=1e-5)
    again = from_minari("test/episodes-v0", 40, seed=1)
    other = from_minari("test/episodes-v0", 40, seed=2)
    assert torch.equal(again.chosen, data.chosen)
    assert not torch.equal(other.chosen, data.chosen)


@pytest.mark.parametrize(
    ("probs", "pairs"),
    [(None, [(1, 0), (2, 0)]), ([0.5, 0.75], [(1, 0), (2, 0)]), (None, [(1, 2, 0), (2, 0, 1)])],
)
def test_out_and_in_again(tmp_path, probs, pairs):
    draw = torch.Generator().manual_seed(0)
    trajectories = [
        {
            "observation": torch.randn(steps, 17, generator=draw),
            "action": 0.5 * torch.randn(steps, 6, generator=draw),
            "return": float(steps),
        }
        for steps in (3, 5, 4)
    ]
    data = PreferenceDataset.from_trajectories(trajectories, pairs, probs)
    data = replace(data, rewards=torch.tensor([0.5, -1.0, 2.0]) if probs else None)
    made = to_minari(data, "test/pairs-v0", environment="Walker2d-v5")
    theirs = minari.load_dataset("test/pairs-v0")
    assert made.id == theirs.id
    assert theirs.env_spec.id == "Walker2d-v5"
    for row, episode in enumerate(theirs):
        steps = trajectories[row]["return"]
        assert (len(episode.rewards), episode.rewards.sum()) == (steps, steps)
        assert episode.observations.shape == (steps + 1, 17)
        assert_close(torch.tensor(episode.actions), trajectories[row]["action"], rtol=0, atol=1e-6)
        assert bool(episode.terminations[-1]) == (steps < 5)
        assert bool(episode.truncations[-1]) == (steps == 5)
    back = from_minari(str(tmp_path / "minari" / "test" / "pairs-v0"))
    assert torch.equal(back.ranked, data.ranked)
    for name in ("observation", "action", "lengths", "returns", "chosen", "rejected"):
        assert_close(getattr(back, name), getattr(data, name), rtol=0, atol=1e-6)
    assert (back.preference_probs is None) == (probs is None)
    if probs:
        assert back.preference_probs.tolist() == probs
        assert back.rewards.tolist() == data.rewards.tolist()
    else:
        assert back.rewards is None


def test_rewards_go_with_their_episodes():
    """Also where some episode is in no pair, so that the others have new numbers."""
    rows = [{"observation": [[k]], "action": [[0.0]], "return": k} for k in range(4)]
    data = PreferenceDataset.from_trajectories(rows, [(3, 1)])
    to_minari(replace(data, rewards=torch.tensor([5.0, 6.0, 7.0, 8.0])), "test/some-v0")
    back = from_minari("test/some-v0")
    assert back.rewards[back.ranked].tolist() == [[8.0, 6.0]]
    drawn = from_minari("test/some-v0", 20)  # other pairs of the same episodes
    assert torch.equal(drawn.rewards, drawn.returns + 5)


def test_pairs_of_a_filtered_data_set_are_asked_for():
    rows = [{"observation": [[k]], "action": [[0.0]], "return": k} for k in range(4)]
    data = PreferenceDataset.from_trajectories(rows, [(3, 1), (2, 0)])
    to_minari(data, "test/some-v0")
    some = minari.load_dataset("test/some-v0").filter_episodes(lambda e: e.rewards.sum() > 0)
    with pytest.raises(UserError, match=r"has been filtered, and its pairs are of all its episod"):
        from_minari(some)
    assert set(from_minari(some, 20).returns.tolist()) == {1.0, 2.0, 3.0}


def test_the_key_of_a_data_set_is_of_all_its_files():
    folder = Path(stored().storage.data_path)
    (folder / "0").mkdir()
    before = minari_digest(KIND)
    (folder / "0" / "part-0.arrow").write_bytes(b"episodes")
    assert minari_digest(KIND) != before


def test_a_damaged_episode_is_told_in_one_line():
    import h5py

    path = Path(stored().storage.data_path) / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        del file["episode_2"]
    with pytest.raises(UserError, match=r"test/episodes-v0: episode 2 is damaged: "):
        from_minari("test/episodes-v0", 3)


def test_mistakes_are_told_in_one_line():
    stored()
    with pytest.raises(UserError, match=r"has no pairs of its own: say how many to draw"):
        from_minari("test/episodes-v0")
    with pytest.raises(UserError, match=r"nothing-v0 is no data set of Minari on this machine"):
        from_minari("test/nothing-v0", 3)
    stored("test/discrete-v0", done=Discrete(3))
    with pytest.raises(UserError, match=r"has actions of Discrete\(3\): policies here act by real"):
        from_minari("test/discrete-v0", 3)
    data = from_minari("test/episodes-v0", 3)
    with pytest.raises(UserError, match=r"Walker2d-v5 has observations of \(17,\) and actions of"):
        to_minari(data, "test/walker-v0", environment="Walker2d-v5")
    with pytest.raises(UserError, match=r"test/episodes-v0: "):
        to_minari(data, "test/episodes-v0", low=LOW, high=HIGH)
    stored("test/equal-v0", equal=True)
    with pytest.raises(UserError, match=r"there is nothing to compare"):
        from_minari("test/equal-v0", 3)


@pytest.mark.parametrize(
    "known",
    [
        *([], {"chosen": [0]}, {"chosen": [0], "rejected": [6]}, {"lists": [["a"]]}),
        *({"chosen": [0, 1], "rejected": [2]}, {"chosen": [], "rejected": []}),
        {"lists": [[0, 1]], "rewards": [1.0]},
    ],
)
def test_damaged_notes_of_pairs_are_told_in_one_line(known):
    stored().storage.update_metadata({PAIRS: known})
    with pytest.raises(UserError, match=r"what its metadata says of pairs is damaged; write it"):
        from_minari("test/episodes-v0")


def test_a_data_set_is_a_kind_of_data():
    stored()
    rows = {seed: preference_data(PoolConfig(pairs=9, seed=seed), KIND) for seed in (0, 1)}
    assert torch.equal(rows[1].chosen, from_minari("test/episodes-v0", 9, seed=1).chosen)
    assert not torch.equal(rows[0].chosen, rows[1].chosen)  # pairs of their own
    flipped = preference_data(PoolConfig(pairs=9), f"{KIND}+noisy:1")
    assert torch.equal(flipped.chosen, rows[0].rejected)
    assert describe(f"{KIND}+noisy:0.1")[0] == (KIND, PARTS["minari"].meaning)


def test_the_key_of_a_data_set_is_of_its_contents_and_of_the_choice():
    stored()
    config = parse_kind(KIND).pool(PoolConfig(pairs=9))
    others = [replace(config, pairs=8), replace(config, seed=1)]
    minari.delete_dataset("test/episodes-v0")
    stored(equal=True)
    others.append(parse_kind(KIND).pool(PoolConfig(pairs=9)))
    assert config.key() not in [other.key() for other in others]


def test_a_diagnosis_of_a_data_set(tmp_path, capsys):
    data = preference_data(PoolConfig(pairs=6, max_steps=9), "base", cache_dir=tmp_path)
    to_minari(data, "test/ants-v0")
    args = f"--preset smoke --losses sft --data minari:test/ants-v0 --out {tmp_path / 'run'}"
    assert main([*args.split(), "--episode_steps", "9", "--seeds", "1"]) == 0
    assert "minari:test/ants-v0" in (tmp_path / "run" / "report.html").read_text()
    assert main(["--data", "minari:test/none-v0", "--out", str(tmp_path / "none")]) == 2
    assert "minari download test/none-v0" in capsys.readouterr().err.splitlines()[-1]
