"""The page of a run is what the run printed, whoever looks at it and whenever."""

import sys

import pytest

from torchmpo.runs.live_page import FILE, live_page


def test_lines_are_on_the_page_while_the_run_goes_on_and_on_stdout(tmp_path, capsys):
    with live_page(tmp_path, "a run"):
        assert "Running since" in (tmp_path / FILE).read_text()  # before the first line
        print("σ = 1 <b>")
        page = (tmp_path / FILE).read_text("utf-8")
        assert "σ = 1 &lt;b&gt;" in page
        assert 'http-equiv="refresh"' in page
    page = (tmp_path / FILE).read_text("utf-8")
    assert "σ = 1 &lt;b&gt;" in page
    assert "come to its end" in page
    assert 'http-equiv="refresh"' not in page
    assert capsys.readouterr().out == "σ = 1 <b>\n"


def test_a_run_that_breaks_says_how_to_go_on(tmp_path):
    before = sys.stdout
    with pytest.raises(KeyboardInterrupt), live_page(tmp_path, "a run"):
        raise KeyboardInterrupt
    assert sys.stdout is before
    assert "--resume" in (tmp_path / FILE).read_text()


def test_a_folder_that_is_gone_ends_no_run(tmp_path, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    with live_page(folder, "a run"):
        (folder / FILE).unlink()
        folder.rmdir()
        print("still here")
    assert capsys.readouterr().out == "still here\n"
