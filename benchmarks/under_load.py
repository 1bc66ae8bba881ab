"""How much slower are the commands while other processes keep the cores busy?

    python benchmarks/under_load.py --json results.json
    GOMP_SPINCOUNT=300000 python benchmarks/under_load.py     (threads that spin while they wait)

``torchmpo evolve``, ``diagnose`` and ``finetune fit`` run as a user starts them, with small
settings, and print a line for every generation, cell or epoch. From one line to the next, in turns,
the machine is quiet, or 1 or 4 other processes compute without a pause. With k of them on c cores
nobody can promise more than (k + c) / c of the quiet time; the goal is that times 1.3. The units
before the first turn, which build data and compile, do not count. Medians of the wall-clock
seconds, of their ratios to the quiet turn beside them, and of the CPU seconds, which tell what
waiting costs. The second line above is GNU OpenMP's own default, which the commands change
(``torchmpo.runs.threads``).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEIGHBOURS = (0, 1, 4)
SETTINGS = {
    "evolve": "--population 10 --pairs 128 --epochs 3 --episode_steps 250 --held_out_every 0",
    "diagnose": "--losses orpo --pairs 128 --epochs 3 --episode_steps 250 --trials 2 --seeds 3",
    "finetune": "--model.loss dpo --model.lora.r 8 --data.batch_size 8 --trainer.callbacks "
    "epoch_lines.EpochLines --trainer.enable_progress_bar false",
}
SMOKE = "--pairs 4 --epochs 1 --episode_steps 20 --compile false"
UNIT = {"evolve": "generation ", "diagnose": "orpo ", "finetune": "epoch "}  # how a line begins
REPETITIONS = 10  # of first_run's pairs, for an epoch of seconds
HERE = Path(__file__).resolve().parent


def arguments(command, units, smoke, folder):
    """The command's options for at least so many lines."""
    if command == "finetune":
        tiny, repeated = folder / "runs" / "tiny", 1 if smoke else REPETITIONS
        path = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        first = [sys.executable, "-m", "experiments.llm.first_run"]
        subprocess.run(first, cwd=folder, env=path, check=True, capture_output=True)
        rows = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()]
        rows = [
            row | {"question": f"{row['question']} ({i})"} for i in range(repeated) for row in rows
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = ["--model.model", str(tiny / "model"), "--data.train", str(folder / "pairs.jsonl")]
        return ["fit", *SETTINGS[command].split(), *files, "--trainer.max_epochs", str(units)]
    if command == "evolve":
        many = f"--generations {units}"
    else:  # kinds of data that cost the same
        many = "--data " + ",".join(f"noisy:{0.1 + 0.001 * i:.3f}" for i in range(units))
    return f"{SETTINGS[command]} {many} {SMOKE if smoke else ''}".split()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(command, rounds, smoke):
    """Wall and CPU seconds of the units, by neighbours."""
    rows = {k: [] for k in NEIGHBOURS}
    turns = [k for _ in range(rounds) for k in NEIGHBOURS]
    warm = 2
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out)
        options = arguments(command, len(turns) + warm, smoke, folder)
        paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        errors = open(f"{out}.err", "w+")  # noqa: SIM115, closed below
        child = subprocess.Popen(
            [sys.executable, "-m", "torchmpo", command, *options, "--out", str(folder / "run")],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        others = []
        try:
            lines = (line for line in child.stdout if line.startswith(UNIT[command]))
            for _ in range(warm):
                next(lines)
            for k in turns:
                busy = [sys.executable, "-c", "while True: pass"]
                others = [subprocess.Popen(busy) for _ in range(k)]
                began, spent = time.perf_counter(), cpu_seconds(child.pid)
                next(lines)
                rows[k].append((time.perf_counter() - began, cpu_seconds(child.pid) - spent))
                stop(others)
        except StopIteration:
            sys.exit(f"the command ended: {Path(errors.name).read_text()}")
        finally:
            stop([*others, child])
            errors.close()
            Path(errors.name).unlink()
    return rows


def stop(processes):
    for process in processes:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--smoke", action="store_true", help="seconds: see that it runs")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    cores, results = len(os.sched_getaffinity(0)), {}
    if os.getloadavg()[0] > 0.5:
        print(f"note: this machine is not quiet (load {os.getloadavg()[0]:.1f})", file=sys.stderr)
    print(f"{cores} cores\n{'':10}neighbours   seconds    CPU   of quiet   goal")
    for command in args.commands:
        rows = measure(command, args.rounds, args.smoke)
        for k, values in rows.items():
            ratio = statistics.median(v[0] / q[0] for v, q in zip(values, rows[0]))
            wall, cpu = (statistics.median(column) for column in zip(*values))
            goal = (k + cores) / cores * 1.3
            row = {"seconds": wall, "cpu": cpu, "of_quiet": ratio, "goal": goal}
            results.setdefault(command, {})[k] = row
            line = f"{command:10}{k:>10}{wall:10.2f}{cpu:7.2f}{ratio:11.2f}{goal:7.2f}"
            print(line, flush=True)
    if args.json:
        waiting = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        about = {"cores": cores, "rounds": args.rounds, **waiting}
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
