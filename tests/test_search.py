"""The search: the formula of OpenAI-ES, learning something known, failures, kills and actors."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from evotorch.tools.ranking import rank

from torchmpo.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from torchmpo.cluster import Fitness, VectorProblem, chunk_rows, ray_actors
from torchmpo.errors import UserError
from torchmpo.files import write_atomic
from torchmpo.search import (
    SearchConfig,
    ask,
    centre_of,
    search,
    shape_fitness,
    start,
    tell,
)

TARGET = torch.linspace(-0.5, 0.5, 5)


def quadratic(vectors, generation):
    return -(vectors - TARGET).square().sum(1)


def problem(evaluate, dim=5, population=8, chunk_size=4, **kwargs):
    chunk = chunk_rows(population, chunk_size)
    return Fitness(VectorProblem(evaluate, dim, chunk=chunk, **kwargs))


# --- one step ---


@pytest.mark.parametrize("shaping", ["centered", "raw"])
def test_first_step_follows_the_antithetic_gradient(shaping):
    config = SearchConfig(population=6, sigma=0.1, learning_rate=0.02, fitness_shaping=shaping)
    centre = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    state = start(centre, config)
    members = ask(state, config, 0)
    fitness = torch.tensor([1.0, 5.0, 2.0, 3.0, 8.0, 0.0], dtype=torch.float64)
    new = tell(state, members, fitness, config)

    noise = (members[0::2] - centre) / 0.1  # ε, MATH: ∇ = 1/(2σN) Σ ε_i (F⁺ − F⁻)
    torch.testing.assert_close(members[1::2], centre - 0.1 * noise)
    utility = fitness.tolist()
    if shaping == "centered":
        utility = [sorted(utility).index(f) / 5 - 0.5 for f in utility]
    gradient = sum((utility[2 * i] - utility[2 * i + 1]) * noise[i] for i in range(3)) / (
        2 * 0.1 * 3
    )
    # Adam's first moment is (1 − β₁)·σ²·∇.
    torch.testing.assert_close(new.optimizer_state.m, 0.1 * 0.1**2 * gradient)
    step = 0.02 * gradient.sign()  # Adam's first step
    torch.testing.assert_close(centre_of(new), centre + step, atol=1e-6, rtol=0)
    torch.testing.assert_close(new.stdev, torch.full_like(centre, 0.1 * config.sigma_decay))


def test_perturbations_follow_from_seed_and_generation_only():
    config = SearchConfig(population=4, seed=3)
    state = start(torch.zeros(2), config)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ask(state, config, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(ask(state, config, 7), first)
    assert not torch.equal(ask(state, config, 8), first)
    assert not torch.equal(ask(state, SearchConfig(population=4, seed=4), 7), first)


def test_centred_ranks_are_evotorchs_when_nothing_ties():
    fitness = torch.randn(11, generator=torch.Generator().manual_seed(0))
    expected = rank(fitness, "centered", higher_is_better=True)
    torch.testing.assert_close(shape_fitness(fitness), expected)


def test_nan_ranks_worst_and_gives_no_direction_among_failures():
    nan, inf = float("nan"), float("inf")
    shaped = shape_fitness(torch.tensor([nan, 2.0, inf, 1.0, -inf]))
    torch.testing.assert_close(shaped, torch.tensor([-0.25, 0.5, -0.25, 0.25, -0.25]))
    raw = shape_fitness(torch.tensor([nan, 2.0, 1.0, 5.0]), "raw")
    torch.testing.assert_close(raw, torch.tensor([-1.25, -0.25, -1.25, 2.75]))
    for shaping in ("centered", "raw"):
        assert shape_fitness(torch.full((4,), nan), shaping).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"population": 5}, "population must be even"),
        ({"population": 0}, "population must be even"),
        ({"generations": 0}, "generations must be at least 1"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"sigma_decay": 1.1}, "sigma_decay must be in"),
        ({"fitness_shaping": "centred"}, "fitness_shaping must be centered or raw"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        SearchConfig(**setting)


# --- whole searches ---


@pytest.mark.parametrize("shaping", ["centered", "raw"])
def test_finds_the_maximum_of_a_quadratic(tmp_path, shaping):
    config = SearchConfig(population=16, generations=80, fitness_shaping=shaping)
    found = search(problem(quadratic, population=16), torch.zeros(5), config, tmp_path)
    assert found.log[-1]["centre"] > -0.01 > 0.05 * quadratic(torch.zeros(1, 5), 0).item()
    torch.testing.assert_close(quadratic(found.vector[None], 0)[0].item(), found.log[-1]["centre"])


def test_failures_are_counted_and_avoided(tmp_path):
    def half_fails(vectors, generation):
        return torch.where(vectors[:, 0] < 0, torch.nan, -vectors[:, 0])

    config = SearchConfig(population=8, generations=3)
    found = search(problem(half_fails, dim=2), torch.zeros(2), config, tmp_path)
    assert found.log[0]["nan"] == 4
    assert found.log[1]["centre"] < 0  # moved to the side that lives
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "generation,centre,mean,best,sigma,nan"
    assert len(rows) == 1 + 3 + 1


def test_a_search_in_which_everything_fails_stays_where_it_is(tmp_path):
    config = SearchConfig(population=4, generations=2)
    fitness = problem(lambda v, g: torch.full((len(v),), torch.nan), population=4)
    found = search(fitness, torch.ones(5), config, tmp_path)
    assert torch.equal(found.vector, torch.ones(5))
    assert load_checkpoint(tmp_path / "checkpoints").tensors["centre"].tolist() == [1.0] * 5


def test_every_chunk_has_the_same_shape_and_knows_its_generation(tmp_path):
    calls = []

    def record(vectors, generation):
        calls.append((tuple(vectors.shape), generation))
        return quadratic(vectors, generation)

    config = SearchConfig(population=8, generations=2)
    search(problem(record, chunk_size=4), torch.zeros(5), config, tmp_path)
    # 9 rows in three chunks of 3; the final centre alone in one chunk of 3
    assert calls == [((3, 5), 0)] * 3 + [((3, 5), 1)] * 3 + [((3, 5), 2)]


def test_chunk_size_does_not_matter(tmp_path):
    config = SearchConfig(population=8, generations=3)
    results = []
    for chunk_size in (1, 4, 100):
        folder = tmp_path / str(chunk_size)
        folder.mkdir()
        results.append(
            search(problem(quadratic, chunk_size=chunk_size), torch.zeros(5), config, folder)
        )
    for other in results[1:]:
        torch.testing.assert_close(other.vector, results[0].vector, atol=1e-6, rtol=0)


# --- checkpoints ---


def test_checkpoint_round_trip_keeps_bits_and_the_last_three(tmp_path):
    tensors = {"x": torch.randn(3), "t": torch.tensor(2.0)}
    for step in range(5):
        save_checkpoint(tmp_path, Checkpoint(step, tensors, {"fitness": -float("inf"), "a": 0.1}))
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["000002", "000003", "000004"]
    step, loaded, info = load_checkpoint(tmp_path)
    assert (step, info) == (4, {"fitness": -float("inf"), "a": 0.1})
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert load_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, {"x": torch.ones(4)}, {}))
    path = tmp_path / "000002.safetensors"
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    damaged = {
        "truncated": content[:-5],
        "empty": b"",
        "flipped": flipped,
        "foreign": b"not safetensors at all, but longer than a header",
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="000002.safetensors is damaged.*going back"):
        assert load_checkpoint(tmp_path).step == 1


def test_resume_after_damage_gives_the_same_bits(tmp_path):
    config = SearchConfig(population=4, generations=4)
    fitness = problem(quadratic, population=4)
    whole = search(fitness, torch.zeros(5), config, tmp_path)
    log = (tmp_path / "log.csv").read_bytes()
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    (tmp_path / "log.csv").write_bytes(log + b"a half-writ")
    with pytest.warns(UserWarning, match="damaged"):
        again = search(fitness, torch.zeros(5), config, tmp_path)
    assert torch.equal(again.vector, whole.vector)
    assert (tmp_path / "log.csv").read_bytes() == log


def test_write_atomic_leaves_the_old_file_when_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"


KILLED = """
    import os, signal, sys
    import torch
    from torchmpo.cluster import Fitness, VectorProblem
    from torchmpo.search import SearchConfig, search

    torch.set_num_threads(1)
    target = torch.linspace(-0.5, 0.5, 5)
    config = SearchConfig(population=4, generations=3)

    def run(folder, kill):
        count, rename = 0, os.replace
        def replace(old, new):  # renames are the only steps at which anything appears
            nonlocal count
            count += 1
            if (count, "before") == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new)
            if (count, "after") == kill:
                os.kill(os.getpid(), signal.SIGKILL)
        os.replace = replace
        fitness = lambda v, g: -(v - target * (1 + g)).square().sum(1)
        os.makedirs(folder, exist_ok=True)
        problem = VectorProblem(fitness, 5, chunk=5)
        found = search(Fitness(problem), torch.zeros(5), config, folder)
        with open(f"{folder}/found", "wb") as file:
            file.write(found.vector.numpy().tobytes())

    def in_child(folder, kill):
        pid = os.fork()
        if pid == 0:
            run(folder, kill)
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    def content(folder):
        return [open(f"{folder}/{name}", "rb").read() for name in ("log.csv", "found")]

    base = sys.argv[1]
    rename = os.replace
    run(f"{base}/warm", None)  # what a first call imports, children need not import again
    os.replace = rename
    assert in_child(f"{base}/whole", None) == 0
    kills = 0
    for count in range(1, 10):
        for when in ("before", "after"):
            folder = f"{base}/{count}{when}"
            kills += in_child(folder, (count, when)) == signal.SIGKILL
            assert in_child(folder, None) == 0
            assert content(folder) == content(f"{base}/whole"), folder
    print(kills)
"""


def test_killed_anywhere_and_resumed_is_the_same_run(tmp_path):
    script = textwrap.dedent(KILLED)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 18  # 1 log at the start, then checkpoint and log, four times


# --- actors ---


def test_two_actors_one_of_which_dies_equal_none(tmp_path):
    marker = str(tmp_path / "died")
    config = SearchConfig(population=8, generations=2)

    def noisy(vectors, generation, mortal=False):
        if mortal and generation == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(1)
        noise = torch.Generator().manual_seed(generation)
        return -(vectors - torch.randn(5, generator=noise)).square().sum(1)

    found = {}
    for actors in (0, 2):
        folder = tmp_path / str(actors)
        folder.mkdir()
        with ray_actors(actors, 1):
            fitness = problem(
                lambda v, g, mortal=actors > 0: noisy(v, g, mortal), num_actors=actors
            )
            found[actors] = search(fitness, torch.zeros(5), config, folder)
    assert Path(marker).exists()
    assert torch.equal(found[0].vector, found[2].vector)
    assert (tmp_path / "0/log.csv").read_bytes() == (tmp_path / "2/log.csv").read_bytes()


def test_log_is_json_safe(tmp_path):
    config = SearchConfig(population=4, generations=1)
    found = search(problem(quadratic, population=4), torch.zeros(5), config, tmp_path)
    assert json.loads(json.dumps(found.log)) == found.log
