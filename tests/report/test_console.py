"""What a person sees while a run goes on."""

import io
import logging

import pytest
from rich.console import Console as RichConsole

from memexp.training import console

FIGURES = ("loss 0.1234", "epoch 12.50", "12,345 images/s", "peak 1024.0 MiB", "lr 0.05")


def drawn(width: int) -> str:
    out = io.StringIO()
    screen = RichConsole(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    progress = console._OneLine(console=screen)
    task = progress.add_task("", total=50_000, completed=0, figures=FIGURES)
    progress.update(task, completed=12_345)
    screen.print(*progress.get_renderables())
    return out.getvalue()


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_e4_the_bar_goes_first_and_step_loss_and_time_left_stay(width):
    text = drawn(width)
    lines = text.splitlines()
    assert len(lines) == 1
    assert len(lines[0]) <= width
    assert lines[0].startswith("step 12345/50000")
    assert "loss 0.1234" in lines[0]
    assert lines[0].rstrip()[-7:].count(":") == 2
    assert ("━" in text) == (width >= 120)
    assert ("lr 0.05" in text) == (width >= 120)


def test_e4_what_is_left_out_is_the_last():
    parts, bar = console.fitted("step 1/2", FIGURES, "0:00:01", 62)
    assert (parts, bar) == (["step 1/2", *FIGURES[:3], "0:00:01"], 0)
    assert console.fitted("step 1/2", FIGURES, "0:00:01", 10)[0] == ["step 1/2", "loss 0.1234", "0:00:01"]
    assert console.fitted("step 1/2", ("loss 1",), "0:00:01", 80) == (["step 1/2", "loss 1", "0:00:01"], 40)


def test_a_terminal_on_which_nothing_is_drawn_again_has_a_line_a_step(capsys, monkeypatch):
    monkeypatch.setattr(console, "_TERMINAL", RichConsole(force_terminal=True, _environ={"TERM": "dumb"}))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with unspoken(), console.spoken(), console.Console(2) as shown:
        shown.step(1, FIGURES)
    assert capsys.readouterr().out == f"step 1/2  {'  '.join(FIGURES)}\n"


def test_b7_a_line_that_quotes_a_file_is_shown_escaped(capsys):
    with unspoken(), console.spoken():
        logging.getLogger("memexp").warning("class \x1b[31mred\nsecond line")
    assert capsys.readouterr().out == "class \\x1b[31mred\nsecond line\n"


def test_e6_a_function_of_the_package_speaks_unless_its_caller_has_seen_to_the_lines(capsys):
    log = logging.getLogger("memexp")
    with unspoken():
        with console.spoken():
            log.info("heard")
        log.info("not any more")
        assert (log.level, log.propagate, log.handlers) == (logging.NOTSET, True, [])
        log.addHandler(logging.NullHandler())
        with console.spoken():
            log.info("the caller's")
    assert capsys.readouterr().out == "heard\n"


class unspoken:  # noqa: N801  a context
    """Loggers as a fresh interpreter has them."""

    def __enter__(self):
        self.loggers = logging.getLogger("memexp"), logging.getLogger()
        self.before = [(log.level, log.propagate, list(log.handlers)) for log in self.loggers]
        for log in self.loggers:
            log.propagate, log.handlers = True, []
        self.loggers[0].setLevel(logging.NOTSET)

    def __exit__(self, *_):
        for log, (level, propagate, handlers) in zip(self.loggers, self.before, strict=True):
            log.setLevel(level)
            log.propagate, log.handlers = propagate, handlers
