"""Pairs of one's own: from lists, from files, and refused in a line."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pair_files import read_pair_file
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import PreferenceDataset, preference_data
from torchmpo.control.rounds import Rounds
from torchmpo.control.testbed import TestbedConfig, configure, prepare, prepare_fresh
from torchmpo.evolve.settings import EvolveConfig
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError


def trajectory(steps, seed, *, observations=27, actions=8):
    draw = np.random.default_rng(seed)
    return {
        "observation": draw.normal(size=(steps, observations)),
        "action": draw.uniform(-1, 1, size=(steps, actions)).tolist(),
        "rewards": torch.arange(steps, dtype=torch.float32),
    }


TRAJECTORIES = [trajectory(steps, seed) for seed, steps in enumerate((5, 3, 7, 4))]
PAIRS = [(2, 1), (0, 3), (1, 0), (3, 2)]  # the last two prefer the lower return


def made(**settings):
    return PreferenceDataset.from_trajectories(TRAJECTORIES, PAIRS, **settings)


def test_lists_become_padded_arrays():
    data = made(preference_probs=[0.9, 0.5, 1, 0.25])
    assert data.observation.shape == (4, 7, 27)
    assert (data.observation.dtype, data.lengths.dtype) == (torch.float32, torch.int64)
    assert data.lengths.tolist() == [5, 3, 7, 4]
    assert data.returns.tolist() == [10.0, 3.0, 21.0, 6.0]
    assert torch.equal(data.action[1, :3], torch.tensor(TRAJECTORIES[1]["action"]))
    assert data.action[1, 3:].eq(0).all()
    assert (data.chosen.tolist(), data.rejected.tolist()) == ([2, 0, 1, 3], [1, 3, 0, 2])
    assert data.preference_probs.tolist() == pytest.approx([0.9, 0.5, 1.0, 0.25])
    given = [{**TRAJECTORIES[0], "return": 4}, TRAJECTORIES[1]]
    del given[0]["rewards"]
    assert PreferenceDataset.from_trajectories(given, [(0, 1)]).returns.tolist() == [4.0, 3.0]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("probs", [None, [0.9, 0.5, 1.0, 0.25]])
def test_a_file_gives_back_what_was_written(tmp_path, suffix, probs):
    data = made(preference_probs=probs)
    data.save(tmp_path / f"own.{suffix}")
    read = read_pair_file(str(tmp_path / f"own.{suffix}"))
    assert read.keys() == {f for f, v in vars(data).items() if v is not None}
    assert all(torch.equal(read[name], getattr(data, name)) for name in read)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_what_losses_are_given_as_rewards_is_saved(tmp_path, suffix, monkeypatch):
    """Through the kind of data, as training reads it; a modifier of labels changes none."""
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path))
    config, path = PoolConfig(task="hopper", pairs=4, max_steps=20), tmp_path / f"x.{suffix}"
    data = preference_data(config, "objectives:0.7", progress=False)
    assert not torch.equal(data.rewards, data.returns)
    data.save(path)
    for kind in (path, f"{path}+noisy:0.5", f"{path}+bad_judge:10", f"{path}+pairs:2"):
        assert torch.equal(preference_data(config, str(kind)).rewards, data.rewards)
    # Who judges two objectives lets losses see one of them, whatever the file says.
    other = replace(data, rewards=data.rewards + 1)
    other.save(path)
    again = preference_data(config, f"{path}+objectives:0.7")
    assert torch.equal(again.rewards, data.rewards)
    made().save(path)  # without rewards
    assert preference_data(config, str(path)).rewards is None


def test_rounds_know_no_rewards_of_their_own_trajectories(tmp_path):
    settings = {"pool": PoolConfig(pairs=4), "data": str(tmp_path / "own.npz")}
    settings["inner"] = InnerConfig(minibatch_pairs=2)
    replace(made(), rewards=torch.arange(4.0)).save(tmp_path / "own.npz")
    bed = TestbedConfig(**settings)
    assert prepare([bed])[0].dataset.rewards.tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="which nobody knows of the trajectories that rounds add"):
        prepare([replace(bed, rounds=Rounds(2))])
    made().save(tmp_path / "own.npz")
    prepare([replace(bed, rounds=Rounds(2))])


def with_(index, **changes):
    return [t | changes if i == index else t for i, t in enumerate(TRAJECTORIES)]


NAN = np.array(TRAJECTORIES[2]["observation"])
NAN[4, 3] = np.nan


@pytest.mark.parametrize(
    ("trajectories", "pairs", "message"),
    [
        ([], PAIRS, "there are no trajectories"),
        (TRAJECTORIES, [], "pairs must be"),
        (TRAJECTORIES, [(0,), (1,)], "pairs must be"),
        (TRAJECTORIES, [(0, 4)], "rejected must name trajectories, from 0 to 3"),
        (TRAJECTORIES, [(-1, 0)], "chosen must name trajectories"),
        (TRAJECTORIES, [(0, 1), (2, 2)], "pair 1 compares a trajectory with itself"),
        (TRAJECTORIES, [(0.5, 1.0)], "chosen must be whole numbers"),
        ([{"action": [[1.0]]}], PAIRS, "trajectory 0 has no observation"),
        (with_(1, action=[[0.0] * 8]), PAIRS, "trajectory 1 has unequal lengths"),
        (with_(1, rewards=[1.0]), PAIRS, "trajectory 1 has unequal lengths"),
        (with_(2, observation=NAN), PAIRS, "observation of trajectory 2 is not finite at step 4"),
        (with_(3, rewards=[1.0, np.inf, 0, 0]), PAIRS, "return of trajectory 3 must be a finite"),
        (with_(1, observation=np.zeros(3)), PAIRS, r"observation of trajectory 1 must be \[time"),
        (with_(1, observation=np.zeros((3, 5))), PAIRS, "has 5 numbers a step, the first traj"),
        (with_(1, observation=[[1, 2], [3]]), PAIRS, "observation of trajectory 1 is not an array"),
        (with_(1, action=np.full((3, 8), "x")), PAIRS, "action of trajectory 1 is not an array"),
        ([{k: v for k, v in t.items() if k != "rewards"} for t in TRAJECTORIES], PAIRS, "neither"),
    ],
)
def test_what_is_wrong_with_lists_is_one_line(trajectories, pairs, message):
    with pytest.raises(UserError, match=message) as error:
        PreferenceDataset.from_trajectories(trajectories, pairs)
    assert "\n" not in str(error.value)


def test_probabilities_are_checked():
    with pytest.raises(UserError, match="must be between 0 and 1"):
        made(preference_probs=[0.9, 0.5, 1.1, 0.2])
    with pytest.raises(UserError, match="preference_probs has 1 pairs, but chosen has 4"):
        made(preference_probs=[0.9])


def arrays():
    return {name: value.numpy() for name, value in vars(made()).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": None}, "lengths missing"),
        ({"reward": np.zeros(4)}, "reward: there is no array of such a name"),
        ({"lengths": np.array([5.0, 3, 7, 4])}, "lengths must be whole numbers"),
        ({"returns": np.zeros(4, complex)}, "returns must be real numbers"),
        ({"returns": np.zeros(3)}, r"returns is of \(3,\), but observation of \(4, 7\)"),
        ({"lengths": np.array([5, 3, 8, 4])}, "lengths must be between 1 and 7"),
        ({"lengths": np.array([0, 3, 7, 4])}, "lengths must be between 1 and 7"),
        ({"action": np.zeros((4, 8))}, "action must have 3 dimensions"),
        ({"rejected": np.array([1])}, "rejected has 1 pairs"),
        ({"returns": np.array([0, np.nan, 1, 2])}, "returns must be finite"),
        ({"rewards": np.array([0, np.inf, 1, 2])}, "rewards must be finite"),
        ({"rewards": np.zeros(3)}, r"rewards is of \(3,\), but observation of \(4, 7\)"),
        ({"rewards": np.zeros((4, 7))}, "rewards must have 1 dimensions"),
        ({"chosen": np.array([], dtype=int)}, "chosen must have 1 dimensions"),
        ({"returns": np.array(["a"] * 4, dtype=object)}, "is not a readable file of pairs"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, change, message):
    path = tmp_path / "own.npz"
    np.savez(path, **{n: v for n, v in (arrays() | change).items() if v is not None})
    with pytest.raises(UserError, match=message) as error:
        read_pair_file(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["own.npz", "own.safetensors"])
def test_a_file_that_is_none_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"not at all")
    with pytest.raises(UserError, match="is not a readable file of pairs"):
        read_pair_file(str(tmp_path / name))


@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_one_line(tmp_path, packed):
    path = tmp_path / "own.npz"
    packed(path, **{name: value for name, value in arrays().items() if value is not None})
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is not a readable file of pairs"):
        read_pair_file(str(path))
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with suppress(UserError):  # or what was hit does not matter
            read_pair_file(str(path))


def test_shares_of_whole_lists_are_not_lost_without_a_word(tmp_path):
    lists = {"lists": np.array([[0, 1, 2], [2, 1, 0]]), "preference_probs": np.float32([0.9, 0.8])}
    three = [trajectory(3, k) for k in range(3)]
    made = PreferenceDataset.from_trajectories(three, [(0, 1)])
    own = {n: getattr(made, n).numpy() for n in ("observation", "action", "returns", "lengths")}
    np.savez(
        tmp_path / "own.npz", **own, chosen=np.array([0, 2]), rejected=np.array([2, 0]), **lists
    )
    path = tmp_path / "own.npz"
    assert prepare([bed_of(path, pairs=2)])[0].dataset.preference_probs.tolist() == pytest.approx(
        [0.9, 0.8]
    )
    with pytest.raises(UserError, match="has preference_probs of whole lists, which do not say"):
        prepare([bed_of(path, "+noisy:0.1", pairs=2)])


def test_nothing_is_read_past_the_end_of_a_trajectory(tmp_path):
    later = arrays()
    later["observation"] = later["observation"].copy()
    later["observation"][1, 3:] = np.nan  # its length is 3
    np.savez(tmp_path / "own.npz", **later)
    assert torch.equal(read_pair_file(str(tmp_path / "own.npz"))["observation"], made().observation)


def test_a_dataset_is_saved_under_a_known_suffix(tmp_path):
    with pytest.raises(UserError, match=r"a file of pairs ends in \.npz or \.safetensors"):
        made().save(tmp_path / "own.pt")


# --- a file as a kind of data


def bed_of(path, modifiers="", pairs=4):
    inner = InnerConfig(epochs=1, compile=False, steps_per_trajectory=2)
    pool = PoolConfig(pairs=pairs, max_steps=7)
    return TestbedConfig(pool=pool, data=f"{path}{modifiers}", inner=inner, num_threads=1)


def test_training_on_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHMPO_CACHE", str(tmp_path / "none"))
    path = tmp_path / "own+mine.npz"
    made(preference_probs=[0.9, 0.5, 1.0, 0.25]).save(path)
    bed, rejudged, flipped = prepare(
        [bed_of(path), bed_of(path, "+bad_judge:0"), bed_of(path, "+noisy:1")]
    )
    assert bed.dataset.chosen.tolist() == [2, 0, 1, 3]  # the file's labels, right or wrong
    assert bed.dataset.preference_probs.tolist() == pytest.approx([0.9, 0.5, 1.0, 0.25])
    assert rejudged.dataset.chosen.tolist() == [2, 0, 0, 2]  # by return
    assert rejudged.dataset.preference_probs is None
    assert flipped.dataset.rejected.tolist() == [2, 0, 1, 3]
    params = bed.train(resolve("soft_label_dpo"), {}, 1, 0)
    assert all(value.isfinite().all() for value in params.values())
    [again] = prepare_fresh([bed], 5)
    assert torch.equal(again.dataset.chosen, bed.dataset.chosen)
    assert not (tmp_path / "none").exists()  # no pool was built


def test_a_file_has_as_many_pairs_as_it_has(tmp_path):
    """Whatever the setting says, which is of pairs that are made."""
    path = tmp_path / "own.npz"
    PreferenceDataset.from_trajectories(TRAJECTORIES, [(0, 1), (1, 2), (2, 3), (3, 0)]).save(path)
    few = EvolveConfig(pairs=2, minibatch_pairs=4, learning_rate=1e-3)
    assert len(prepare([configure(few, str(path), 1)])[0].dataset) == 4
    parted = EvolveConfig(pairs=2, minibatch_pairs=2, rounds=2, learning_rate=1e-3)
    assert configure(parted, str(path), 1).on(f"{path}+noisy:1").rounds.count == 2
    with pytest.raises(UserError, match="must be at least minibatch_pairs"):
        configure(few, "base", 1)
    with pytest.raises(UserError, match="4 pairs in 4 rounds are too few for updates of 2"):
        prepare([configure(replace(parted, rounds=4), str(path), 1)])


def test_what_is_compared_begins_at_one_step(tmp_path):
    made = PreferenceDataset.from_trajectories(TRAJECTORIES, [(0, 1), (0, 2)])
    begins = torch.tensor([1, 1, 1, 0])
    replace(made, begins=begins).save(tmp_path / "own.npz")
    begins[2] = 0
    with pytest.raises(UserError, match=r"begins must be the same .* in pair 1 they are not"):
        replace(made, begins=begins).save(tmp_path / "other.npz")


def test_another_content_is_other_data(tmp_path):
    path = tmp_path / "own.npz"
    made().save(path)
    before = bed_of(path).data_pool.key()
    made(preference_probs=[1, 1, 1, 0]).save(path)
    assert bed_of(path).data_pool.key() != before


def test_pairs_of_another_robot_are_refused(tmp_path):
    path = tmp_path / "own.safetensors"
    own = [trajectory(3, seed, observations=17, actions=6) for seed in range(2)]
    PreferenceDataset.from_trajectories(own, [(0, 1), (1, 0)]).save(path)
    with pytest.raises(UserError, match=r"observations of 17 and actions of 6.*have 27 and 8"):
        prepare([bed_of(path)])


def test_too_few_pairs_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    PreferenceDataset.from_trajectories(TRAJECTORIES, [(0, 1)]).save(path)
    with pytest.raises(UserError, match="has 1 pairs, fewer than one minibatch of 2"):
        prepare([bed_of(path)])
