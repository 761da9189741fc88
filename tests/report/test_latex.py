"""A report's LaTeX in a document, by a TeX of the distribution."""

import shutil
import subprocess

import pytest
from report_runs import add

from memexp.report import tables, write_report

DOCUMENT = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\n\\end{document}\n"
HOSTILE = ["[3, 3, 3]", "*", "a_b^c~d%e&f#g$h", "{x}\\frac", "größe → 数据", '<a> "b" `c` | d', "1:00 ± 2", "-"]
HOSTILE += ["".join(map(chr, range(0xA1, 0x180))), "a|b--c---d"]


@pytest.fixture
def compiled(tmp_path):
    def compiled(text):
        (tmp_path / "paper.tex").write_text(DOCUMENT % text)
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
        return tmp_path / "paper.pdf"

    return compiled


@pytest.mark.long
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
class TestCompiled:
    def test_a_papers_table(self, tmp_path, compiled):
        for depth in (32, 110):
            for seed in (0, 1):
                add(tmp_path, f"a{depth}{seed}", depth=depth, seed=seed, top1=90.0 + seed)
        assert compiled(write_report([tmp_path], tmp_path / "out", form="latex", paper="revnet/table3", plots=False))

    def test_whatever_a_run_is_called(self, tmp_path, compiled):
        for number, name in enumerate(HOSTILE):
            add(tmp_path, f"a{number}", model=name, backprop=name, top1=number)
        assert compiled(write_report([tmp_path], tmp_path / "out", form="latex", plots=False))


def test_no_row_begins_with_what_the_break_before_it_takes_for_its_own(tmp_path):
    for number, model in enumerate(("[3, 3, 3]", "*")):
        add(tmp_path, f"a{number}", model=model)
    text = write_report([tmp_path], tmp_path / "out", form="latex", plots=False)
    assert [row[:3] for row in text.split("\\midrule")[1].splitlines()[1:3]] == ["{[}", "{*}"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a|b", r"a\textbar{}b"),
        ("a--b---c", "a-{}-b-{}-{}-c"),
        ("gęś «", r"g\textbackslash{}u0119ś \textbackslash{}u00ab"),
    ],
)
def test_a_name_is_printed_as_it_is(name, written):
    """pdflatex prints | and -- as dashes, and ends where its own fonts lack a letter."""
    assert tables.latex(tables.Table(["x"], [[name]])).splitlines()[4] == rf"{written} \\"
