"""What the command lines share and tests of their own commands do not show."""

import errno
import os
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from torchmpo.runs import command
from torchmpo.runs.command import Command, duration
from torchmpo.runs.errors import UserError
from torchmpo.runs.options import plain


@dataclass(frozen=True)
class Settings:
    """A command.

    Args:
        size: a number.
        names: a word.
        where: may change.
        seeds: a count.
    """

    size: int = 1
    names: str = "a,b"
    where: str | None = None
    seeds: int = 5


COMMAND = Command(
    program="python -m mine",
    description="Nothing.",
    settings=Settings,
    presets={"small": {}, "large": {"size": 9}},
    work="torchmpo.nothing",
    extra="evolve",
    out="runs/mine",
    place=("where",),
    default_preset="large",
    grows=("names", "seeds"),
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def doing(body=lambda prepared, out: None, prepare=lambda config: config):
    return replace(COMMAND, work=SimpleNamespace(prepare=prepare, run=body))


def run(argv, body=lambda prepared, out: None, prepare=lambda config: config):
    return doing(body, prepare).main(argv.split())


def stored(folder="runs/mine"):
    return yaml.safe_load(Path(folder, "config.yaml").read_text())


def test_the_default_preset_is_the_commands_own():
    seen = []
    assert run("", lambda config, out: seen.append((config, out))) == 0
    assert seen == [(Settings(size=9), Path("runs/mine"))]
    assert stored() == asdict(Settings(size=9))
    assert run("--preset small --out other") == 0
    assert stored("other")["size"] == 1


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_exit_code_of_the_run(returned, code):
    assert run("", lambda config, out: returned) == code


def test_arguments_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mine", "--size", "4"])
    assert doing().main(None) == 0
    assert stored()["size"] == 4


def test_nothing_is_written_before_the_settings_are_checked(capsys, tmp_path):
    def refuse(config):
        assert list(tmp_path.iterdir()) == []
        raise UserError("size is odd")

    assert run("", prepare=refuse) == 2
    assert capsys.readouterr().err == "error: size is odd\n"
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_there_before_the_run_begins():
    def body(config, out):
        assert stored() == asdict(config)

    assert run("--size 3", body) == 0


def test_resume_writes_down_what_has_changed():
    run("--size 3")
    assert run("--resume --names a,b,c") == 0
    assert stored() == {"size": 3, "names": "a,b,c", "where": None, "seeds": 5}
    assert run("--resume") == 0
    assert stored()["names"] == "a,b,c"


def test_words_are_added_and_those_of_a_preset_are_not():
    assert run("--preset small --names c") == 0
    assert run("--resume --preset small") == 0
    assert stored()["names"] == "c"
    assert run("--resume --preset small --names d,c,e") == 0
    assert stored()["names"] == "c,d,e"


def test_a_comma_in_a_word_is_said_with_a_backslash():
    folder = "runs/a,b\\c/objective"
    written = command.word(folder)
    assert command.words("losses", f"orpo, {written} ,sft") == ["orpo", folder, "sft"]
    assert run(f"--names {written}") == 0
    assert run("--resume --names c") == 0
    assert command.words("names", stored()["names"]) == [folder, "c"]


def test_counts_rise_and_never_fall(capsys):
    assert run("--preset small --seeds 7") == 0
    assert run("--resume") == 0
    assert run("--resume --preset small") == 0  # its 5 is not given
    assert stored()["seeds"] == 7
    assert run("--resume --seeds 6") == 2
    error = capsys.readouterr().err
    assert "seeds is 6, but the run in runs/mine has 7 and can only grow" in error
    assert run("--resume --seeds 9") == 0
    assert stored()["seeds"] == 9


def test_the_line_after_ctrl_c_can_be_pasted(capsys):
    def interrupt(config, out):
        raise KeyboardInterrupt

    assert doing(interrupt).main(["--out", "two words"]) == 130
    line = capsys.readouterr().err.strip().rpartition("go on with: ")[2]
    argv = shlex.split(line)
    assert argv[:3] == ["python", "-m", "mine"]
    assert doing().main(argv[3:]) == 0


def test_a_refused_resume_leaves_the_configuration_alone(capsys):
    run("--size 3")
    before = Path("runs/mine/config.yaml").read_bytes()
    assert run("--resume --size 4 --names c") == 2
    assert "size is 4, but the run in runs/mine has 3" in capsys.readouterr().err
    assert Path("runs/mine/config.yaml").read_bytes() == before


def test_two_processes_do_not_share_a_folder(capsys):
    """Not the first's, whose run goes on, and whatever became of it, a third may take over."""

    def body(config, out):
        assert run("--resume --names c") == 2
        assert "error: another process is at work in runs/mine: wait" in capsys.readouterr().err
        assert stored()["names"] == "a,b"
        raise KeyboardInterrupt

    assert run("", body) == 130
    assert run("--resume --names c") == 0
    names = {path.name for path in Path("runs/mine").iterdir()}
    assert names == {".lock", "config.yaml", "made_of.json", "commands.json", "progress.html"}


def test_full_disk_is_one_line(capsys, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run("") == 2
    assert capsys.readouterr().err == "error: No space left on device: runs/mine/config.yaml\n"
    assert [path.name for path in Path("runs/mine").iterdir()] == [".lock"]  # no half of a file
    monkeypatch.undo()


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("CUDA out of memory. Tried …")])
def test_memory_that_is_not_there_is_one_line(capsys, raised):
    def body(config, out):
        raise raised

    assert run("", body) == 2
    line = f"error: not enough memory: {str(raised) or 'MemoryError'}\n"
    assert capsys.readouterr().err == line


def test_memory_that_cannot_be_had_is_what_torch_calls_it(capsys):
    def body(config, out):
        torch.empty(1 << 55)

    assert run("", body) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory: ")


def test_a_file_that_cannot_be_read_is_named(capsys):
    def body(config, out):
        Path("absent").read_text()

    assert run("", body) == 2
    assert capsys.readouterr().err == "error: No such file or directory: absent\n"


def test_a_folder_that_is_removed_meanwhile_is_told(capsys):
    def body(config, out):
        shutil.rmtree(out)
        out.mkdir()  # as one who writes into a folder below it does
        (out / "result").touch()

    assert run("", body) == 2
    line = "error: runs/mine was removed while the run was at work: begin it again\n"
    assert capsys.readouterr().err == line


def test_a_run_that_failed_before_any_work_does_not_claim_its_folder(capsys):
    def fails(config, out):
        raise UserError("no such server")

    def fails_later(config, out):
        (out / "work").touch()
        raise UserError("gone")

    assert run("", fails) == 2
    assert not Path("runs/mine/config.yaml").exists()
    assert run("--resume", fails) == 2
    assert "there is no run in runs/mine; start one without --resume" in capsys.readouterr().err
    assert run("", fails_later) == 2
    assert run("") == 2
    assert "runs/mine has a run: go on with --resume" in capsys.readouterr().err
    assert run("--resume", fails) == 2  # what has been done is not given up
    assert run("--resume") == 0


def test_a_run_does_not_take_a_folder_that_another_one_has_taken_meanwhile(capsys):
    """Who starts looks at the folder first, and prepares for seconds before it has it alone."""

    def slow(config):
        if config.size == 2:
            assert doing().main(["--size", "1"]) == 0
        return config

    assert doing(prepare=slow).main(["--size", "2"]) == 2
    assert "runs/mine has a run: go on with --resume" in capsys.readouterr().err
    assert yaml.safe_load(Path("runs/mine/config.yaml").read_text())["size"] == 1


def test_bugs_are_not_hidden():
    def body(config, out):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("", body)


def test_interrupt_before_there_is_a_folder(capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    assert run("--out somewhere", prepare=interrupt) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"  # there is nothing to go on with


def test_help_names_every_setting_and_preset(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    text = capsys.readouterr().out
    for word in ("--size", "--names", "--where", "small, large", "--resume", "runs/mine"):
        assert word in text


# --- options ---


def test_help_shows_the_settings_of_the_preset_before_it(capsys):
    for words, size in (("--help", 9), ("--preset small --help", 1)):
        with pytest.raises(SystemExit, match="0"):
            run(words)
        assert f"a number. (type: int, default: {size})" in capsys.readouterr().out


def test_help_explains_inherited_settings(capsys, monkeypatch):
    @dataclass(frozen=True)
    class More(Settings):
        """A command with more.

        Args:
            more: of everything.
        """

        more: int = 1

    command = replace(COMMAND, settings=More)
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    with_parser = capsys.readouterr().out
    monkeypatch.setattr("torchmpo.runs.command.find_spec", lambda name: None)
    assert command.main(["--help"]) == 0
    without = capsys.readouterr().out
    for text in (with_parser, without):
        for word in ("a number.", "a count.", "of everything."):
            assert word in text


def test_what_is_printed_can_be_read_back_and_starts_nothing(capsys, tmp_path):
    with pytest.raises(SystemExit, match="0"):
        run("--preset small --seeds 7 --out there --print_config")
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == asdict(Settings(seeds=7))
    assert list(tmp_path.iterdir()) == []
    Path("file.yaml").write_text(printed)
    assert run("--config file.yaml --out there") == 0
    assert stored("there") == asdict(Settings(seeds=7))


def test_a_file_does_not_say_where_a_run_is(capsys):
    Path("file.yaml").write_text("out: there\nresume: false\nsize: 3\n")
    assert run("--config file.yaml") == 2
    line = "error: give --out and --resume on the command line, not in a file\n"
    assert capsys.readouterr().err == line
    for number, words in enumerate(("--config file.yaml --out", "--size 4 --out")):
        assert run(f"{words} here{number} --config file.yaml") == 0
        assert stored(f"here{number}")["size"] == 3  # what comes later counts
    assert not Path("there").exists()


@pytest.mark.parametrize("content", ["", " \n", "# nothing\n", "size\n", "- size\n", "3\n"])
def test_a_file_without_settings_is_one_line(content, capsys):
    Path("file.yaml").write_text(content)
    assert run("--config file.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --config: the file must have settings such as  seed: 0; it has")
    assert error.count("\n") == 1


def test_no_file_at_all_is_one_line(capsys):
    assert run("--config=") == 2
    assert "config: " in capsys.readouterr().err


def test_what_comes_later_counts():
    Path("file.yaml").write_text("size: 3\nseeds: 2\n")
    assert run("--seeds 6 --config file.yaml --size 4") == 0
    assert (stored()["size"], stored()["seeds"]) == (4, 2)


def test_a_stored_setting_of_another_type(capsys):
    run("--preset small")
    path = Path("runs/mine/config.yaml")
    path.write_text(path.read_text().replace("size: 1", "size: one"))
    assert run("--resume") == 2
    assert "runs/mine/config.yaml is not the configuration of a run of python -m mine: size: " in (
        capsys.readouterr().err
    )


def test_the_first_line_says_what_begins(capsys):
    command = replace(doing(), headline=("names", "size"))
    assert command.main(["--size", "3"]) == 0
    assert capsys.readouterr().out == "mine: a, b, 3 → runs/mine\n"
    assert command.main(["--resume"]) == 0
    assert capsys.readouterr().out == "mine: a, b, 3 → runs/mine, resumed\n"


def test_a_complaint_of_the_parser_in_a_line():
    assert plain(TypeError("Parser key \"a.b\":\n  Expected a <class 'int'>")) == (
        "a.b: Expected a int"
    )
    assert plain(TypeError("in other words")) == "in other words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: " + "[" * 100_000, "nested more than 50 deep"),
        ("names: &a [*a]", "*a contains itself"),
        ("size: [" + ", ".join(["&a [1, 2]", *["*a"] * 50_000]) + "]", "more than 100000 values"),
    ],
)
def test_a_file_that_expands_without_end(capsys, text, message):
    Path("endless.yaml").write_text(text)
    assert run("--config endless.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --config: ")
    assert message in error
    assert run("--size 3") == 0
    Path("runs/mine/config.yaml").write_text(text)
    assert run("--resume") == 2
    error = capsys.readouterr().err
    assert "runs/mine/config.yaml is not the configuration of a run" in error
    assert message in error


# --- what a run is made of ---


def test_a_configuration_that_was_edited_is_refused(capsys):
    assert run("--size 3") == 0
    path = Path("runs/mine/config.yaml")
    before = path.read_text()
    path.write_text(before.replace("size: 3", "size: 4"))
    assert run("--resume") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: runs/mine/config.yaml has been changed: size is 4, but the run was made with 3; "
        "put it back, or choose another --out\n"
    )
    path.write_text(before.replace("seeds: 5", "seeds: 2").replace("a,b", "b"))  # these may
    assert run("--resume") == 0
    path.write_text(before)
    Path("runs/mine/made_of.json").unlink()  # a run that is older than this record
    assert run("--resume") == 0
    path.write_text(before.replace("size: 3", "size: 4"))
    assert run("--resume") == 2


@pytest.mark.parametrize("content", ["", "[]", '{"settings": []}', '{"settings": {}, "losses": 3}'])
def test_a_damaged_record_is_told(capsys, content):
    assert run("--size 3") == 0
    Path("runs/mine/made_of.json").write_text(content)
    assert run("--resume") == 2
    error = capsys.readouterr().err
    assert "runs/mine/made_of.json is damaged (" in error
    assert error.endswith("): delete it and --resume\n")


def test_losses_that_users_bring_must_not_change(capsys):
    losses = {"mine:a": "1", "mine:b": None}

    def go(argv=""):
        work = SimpleNamespace(
            prepare=lambda config: config, run=lambda *_: None, fingerprints=lambda _: losses
        )
        return replace(COMMAND, work=work).main(argv.split())

    assert go() == 0  # what cannot be told is no obstacle at the start
    assert go("--resume") == 2
    assert "nobody can tell whether mine:b has changed" in capsys.readouterr().err
    losses.pop("mine:b")  # no longer in the run
    assert go("--resume") == 0
    losses["mine:c"] = "3"  # added
    assert go("--resume") == 0
    losses["mine:a"] = "2"
    assert go("--resume") == 2
    assert "mine:a has changed since the run in runs/mine was made" in capsys.readouterr().err
    losses["mine:a"], losses["mine:c"] = "1", "4"
    assert go("--resume") == 2
    assert "mine:c has changed" in capsys.readouterr().err


# --- duration ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
