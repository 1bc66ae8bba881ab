"""What does bad input, a kill, a full disk or a bare machine do to the commands?

    python benchmarks/attack.py                       all of it; goes on where it was stopped
    python benchmarks/attack.py --only kills disk     parts
    python benchmarks/attack.py --only inputs --every 50

Parts: ``inputs``, files and options that are wrong, of every command (``tests/attack/cases.py``);
``calls`` from Python (``tests/attack/calls.py``); ``kills``, kill −9 at random moments and
``--resume``, which must give the same bytes; ``gone``, the folder of a run is removed while it
works; ``disk``, a file system of 4 MB that is nearly full, and ``--resume`` when there is room;
``descriptors``, 64 of them; ``bare``, without HOME, compiler, terminal or any that is writable.

A fault is a traceback, a wait without end, more than one line, a wrong result that is accepted, a
lost file, or code from data that ran. Each finished piece is a line of JSON in the file of results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "envs")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])

from attack.world import SMALL  # noqa: E402

if __name__ != "__mp_main__":  # the processes that are forked read this file, and need none of it
    from attack.calls import RIGHT, every, fault
    from attack.cases import unlike
    from attack.judged import USUAL, attacked, files
    from attack.warm import Ended, calls, finish, kill, saving_often, start
    from attack.world import build

# Runs that are killed, and what of each must have the same bytes in the end.
RUNS = {
    "evolve": f"evolve {SMALL} --rivals sft --generations 3 --out k",
    "diagnose": f"diagnose {SMALL} --losses sft,orpo --data base,noisy:0.3 --out k",
    "finetune": "finetune fit --config fit.yaml --trainer.max_epochs 3 --out k",
    "generate": "generate --model base --prompts many.json --max_new_tokens 16 --batch_size 1 "
    "--temperature 1 --device cpu --out k",
}
RESULTS = {
    "evolve": ("objective/*", "comparison.json", "rivals.json", "learning_rate.json", "log.csv"),
    "diagnose": ("cells/*.json", "scores.json", "leaderboard.csv", "anchors.json"),
    "finetune": ("adapter/adapter_*",),
    "generate": ("outputs.json",),
}
RESUMED = {
    "evolve": "evolve --resume --out k",
    "diagnose": "diagnose --resume --out k",
    "finetune": f"{RUNS['finetune']} --resume",
    "generate": "generate --resume --out k",
}
LIMIT = 300.0  # seconds, after which a run hangs
Piece = tuple[str, Callable[[], dict]]


class Attack:
    """Where it works, and what it found so far."""

    def __init__(self, folder: Path, rounds: int, step: int):
        self.folder, self.rounds, self.step = folder, rounds, step
        self.world, self.work, self.printed = folder / "world", folder / "work", folder / "printed"
        self.log = folder / "results.jsonl"

    def prepare(self) -> None:
        """Build the folder with a finished run of every command, where there is none."""
        if (self.world / "many.json").exists():
            return
        shutil.rmtree(self.world, ignore_errors=True)
        self.world.mkdir(parents=True)
        process = start(build, str(self.world), folder=self.world, printed=self.printed)
        ended = finish(process, self.printed, LIMIT)
        if ended.code:
            sys.exit(f"the runs to attack were not made: {ended.err}")
        prompts = [{"instruction": f"{i} Name a colour."} for i in range(16)]
        (self.world / "many.json").write_text(json.dumps(prompts))

    def fresh(self) -> Path:
        """A copy of it, to work in."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.world, self.work / "world")
        return self.work / "world"

    def run(self, words: str, folder: Path, **more) -> Ended:
        """A command in a folder, to its end."""
        process = start(saving_often, words, folder=folder, printed=self.printed, **more)
        return finish(process, self.printed, LIMIT)

    # The parts: names, and how each piece is done.

    def inputs(self) -> Iterator[Piece]:
        for case in unlike()[:: self.step]:

            def piece(case=case) -> dict:
                return attacked(case, self.world, self.work)._asdict()

            yield case.name, piece

    def calls(self) -> Iterator[Piece]:
        todo = [*every(), *RIGHT]
        for first in range(0, len(todo), 200 * self.step):
            some = todo[first : first + 200]

            def piece(some=some) -> dict:
                answers = self.folder / "calls.jsonl"
                answers.unlink(missing_ok=True)
                folder = self.fresh()
                process = start(calls, some, str(answers), folder=folder, printed=self.printed)
                ended = finish(process, self.printed, LIMIT)
                told = {
                    line[0]: line[1:] for line in map(json.loads, answers.read_text().splitlines())
                }
                faults = {
                    expression: fault(expression, told[expression])
                    if expression in told
                    else "it hangs, or ends the program"
                    for expression in some
                }
                wrong = {expression: text for expression, text in faults.items() if text}
                right = sum(expression in RIGHT for expression in some)
                return {
                    "kind": "one line",
                    "count": len(some),
                    "accepted": right,
                    "fault": f"{len(wrong)}: {wrong}" if wrong else "",
                    "seconds": ended.seconds,
                }

            yield f"calls {first} to {first + len(some) - 1}", piece

    def kills(self) -> Iterator[Piece]:
        for moment in range(self.rounds):
            for name in RUNS:

                def piece(name=name, moment=moment) -> dict:
                    return self.killed(name, random.Random(f"{name} {moment}"))

                yield f"{name}, moment {moment}", piece

    def killed(self, name: str, generator: random.Random) -> dict:
        whole, seconds = self.uninterrupted(name)
        ended = None
        while ended != -9:  # it may have been quicker than before
            folder, after = self.fresh(), generator.uniform(0, seconds)
            process = start(saving_often, RUNS[name], folder=folder, printed=self.printed)
            process.join(after)
            kill(process)
            ended, seconds = process.exitcode, 0.9 * seconds
        again = self.again(name, folder, "k")
        found = results(name, folder / "k")
        wrong = again.err[-300:] if again.code else ""
        if not wrong and found != whole:
            wrong = f"other bytes: {sorted(dict(whole.items() ^ found.items()))}"
        return {"kind": "same bytes", "fault": wrong, "seconds": again.seconds, "after": after}

    def again(self, name: str, folder: Path, out: str) -> Ended:
        """Go on, or begin where there is nothing to go on with yet."""
        begun = "last.ckpt" if name == "finetune" else "config.yaml"
        words = RESUMED if (folder / out / begun).exists() else RUNS
        return self.run(words[name].replace("--out k", f"--out {out}"), folder)

    def uninterrupted(self, name: str) -> tuple[dict, float]:
        """What a run leaves that nobody killed, and how long it took."""
        kept = self.folder / f"whole-{name}.json"
        if not kept.exists():
            folder = self.fresh()
            ended = self.run(RUNS[name], folder)
            assert ended.code == 0, ended.err
            kept.write_text(json.dumps([results(name, folder / "k"), ended.seconds]))
        return tuple(json.loads(kept.read_text()))

    def gone(self) -> Iterator[Piece]:
        for name in RUNS:
            for part in (0.3, 0.6, 0.9):

                def piece(name=name, part=part) -> dict:
                    return self.removed(name, part)

                yield f"{name}, after {part} of its time", piece

    def removed(self, name: str, part: float) -> dict:
        """The folder of a run is gone after a part of its time; what is left is whole, or told."""
        whole, seconds = self.uninterrupted(name)
        folder = self.fresh()
        process = start(saving_often, RUNS[name], folder=folder, printed=self.printed)
        process.join(part * seconds)
        while process.is_alive() and not (folder / "k").exists():
            time.sleep(0.01)
        if not process.is_alive():
            return told(finish(process, self.printed, LIMIT)) | {"text": "it was quicker"}
        shutil.rmtree(folder / "k", ignore_errors=True)
        found = told(finish(process, self.printed, LIMIT))
        left = (folder / "k").exists()  # otherwise it had done its work before
        if found["kind"] == "done" and left and results(name, folder / "k") != whole:
            found["fault"] = found["fault"] or "it says that all is well, and files are missing"
        return found

    def disk(self) -> Iterator[Piece]:
        for name in RUNS:
            for kilobytes in (0, 4, 16, 64, 256):

                def piece(name=name, kilobytes=kilobytes) -> dict:
                    return self.full(name, kilobytes)

                yield f"{name}, {kilobytes} kB free", piece

    def full(self, name: str, kilobytes: int) -> dict:
        """A run on a file system of 4 MB with so much room, and then with all of it."""
        whole, _ = self.uninterrupted(name)
        folder = self.fresh()
        disk = folder / "disk"
        disk.mkdir()
        mounted = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
        if subprocess.run(mounted, capture_output=True).returncode:
            return {"kind": "skipped", "fault": "", "text": "a mount needs root", "seconds": 0}
        try:
            room = shutil.disk_usage(disk).free
            (disk / "filling").write_bytes(bytes(max(0, room - 1024 * kilobytes)))
            found = told(self.run(RUNS[name].replace("--out k", "--out disk/k"), folder))
            (disk / "filling").unlink()
            again = self.again(name, folder, "disk/k")
            if again.code:
                found["fault"] = found["fault"] or f"no resume: {again.err[-300:]}"
            elif results(name, disk / "k") != whole:
                found["fault"] = found["fault"] or "other bytes after --resume"
            return found
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def descriptors(self) -> Iterator[Piece]:
        for name in RUNS:

            def piece(name=name) -> dict:
                whole, _ = self.uninterrupted(name)
                folder = self.fresh()
                ended = self.run(RUNS[name], folder, limits={resource.RLIMIT_NOFILE: 64})
                found = told(ended)
                if ended.code == 0 and results(name, folder / "k") != whole:
                    found["fault"] = "other bytes"
                return found

            yield f"{name}, 64 descriptors", piece

    def bare(self) -> Iterator[Piece]:
        for name in RUNS:
            for what, change in BARE.items():

                def piece(name=name, what=what, change=change) -> dict:
                    return self.barely(name, what, change)

                yield f"{name}, {what}", piece

    def barely(self, name: str, what: str, change: dict[str, str | None]) -> dict:
        """A run as a user starts it, in a process that imports everything anew."""
        whole, _ = self.uninterrupted(name)
        folder = self.fresh()
        variables = {**os.environ, "TORCHMPO_CACHE": str(folder / "cache"), **change}
        given = {key: value for key, value in variables.items() if value is not None}
        words = RUNS[name] + (" --compile true" if "compiler" in what and name in COMPILED else "")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "torchmpo", *words.split()],
            cwd=folder,
            env=given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            start_new_session=True,  # no terminal, not even one to open
        )
        ended = Ended(done.returncode, done.stdout, done.stderr, False, time.monotonic() - began)
        found = told(ended)
        same = "compiler" not in what and results(name, folder / "k") != whole
        if ended.code == 0 and same:
            found["fault"] = "other bytes"
        return found


COMPILED = ("evolve", "diagnose")
BARE: dict[str, dict[str, str | None]] = {
    "no terminal": {},
    "no HOME": {"HOME": None, "TORCHINDUCTOR_CACHE_DIR": None, "USER": None},
    "a HOME that is not there": {"HOME": "/nowhere/at/all"},
    "no compiler": {"CXX": "/nowhere/c++", "CC": "/nowhere/cc", "PATH": "/nowhere"},
}


def results(name: str, out: Path) -> dict[str, str]:
    """What must be the same twice; how long a cell took need not."""
    for path in out.glob("cells/*.json"):
        cell = json.loads(path.read_text())
        path.write_text(json.dumps({**cell, "seconds": 0}))
    kept = {path.relative_to(out) for pattern in RESULTS[name] for path in out.glob(pattern)}
    return {name: digest for name, digest in files(out).items() if Path(name) in kept}


def told(ended: Ended) -> dict:
    """Whether a run that could not be done said so in a line, or was done."""
    lines = [line for line in ended.err.splitlines() if not USUAL.match(line)]
    wrong = ""
    if ended.late:
        wrong = "it hangs"
    elif "Traceback" in ended.err or ended.code is None or ended.code < 0 or ended.code == 1:
        wrong = "a traceback"
    elif ended.code and (not lines or not lines[-1].startswith("error: ")):
        wrong = "no line that says what is wrong"
    elif ended.code and sum(line.startswith("error: ") for line in lines) > 1:
        wrong = "more than one line"
    kind = "one line" if ended.code else "done"
    text = "\n".join(lines[-3:])[-1500:]
    return {"kind": kind, "fault": wrong, "text": text, "seconds": ended.seconds}


PARTS = ("inputs", "calls", "kills", "gone", "disk", "descriptors", "bare")


def table(log: Path, parts: tuple[str, ...]) -> int:
    """Print what was found, a line for each part; returns the number of faults."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print(f"\n{'part':12} {'command':10} {'pieces':>6} {'one line':>9} {'fine':>6} {'faults':>7}")
    total = 0
    for part in parts:
        groups: dict[str, Counter] = {}
        for row in (row for row in rows if row["part"] == part):
            who = "Python" if part == "calls" else row["command"]
            count, accepted = row.get("count", 1), row.get("accepted", row["kind"] != "one line")
            faults = int(row["fault"].split(":")[0]) if part == "calls" and row["fault"] else None
            groups.setdefault(who, Counter()).update(
                pieces=count,
                fine=int(accepted),
                line=count - int(accepted),
                faults=bool(row["fault"]) if faults is None else faults,
            )
        for who, n in sorted(groups.items()):
            counts = f"{n['pieces']:>6} {n['line']:>9} {n['fine']:>6} {n['faults']:>7}"
            print(f"{part:12} {who:10} {counts}")
            total += n["faults"]
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("runs/attack"), help="folder of results")
    parser.add_argument("--rounds", type=int, default=50, help="kills of each command")
    parser.add_argument("--every", type=int, default=1, help="one in so many inputs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    attack = Attack(args.out.resolve(), args.rounds, args.every)
    attack.prepare()
    done = set()
    if attack.log.exists():
        done = {
            (row["part"], row["name"])
            for row in map(json.loads, attack.log.read_text().splitlines())
        }
    with open(attack.log, "a") as log:
        for part in args.only:
            for name, piece in getattr(attack, part)():
                if (part, name) in done:
                    continue
                row = {"part": part, "name": name, "command": command_of(part, name), **piece()}
                log.write(json.dumps(row) + "\n")
                log.flush()
                if row["fault"]:
                    print(f"{part}: {name}: {row['fault']}\n    {row.get('text', '')}", flush=True)
    return 1 if table(attack.log, args.only) else 0


def command_of(part: str, name: str) -> str:
    """The command of a piece."""
    if part == "inputs":
        return next(case.words.split()[0] for case in unlike() if case.name == name)
    return name.split(",")[0]


if __name__ == "__main__":
    sys.exit(main())
