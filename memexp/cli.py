"""The command line. Nothing here imports torch before a command needs it."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from memexp.commands import COMMANDS, HYDRA_ONLY, follows
from memexp.explained import fail, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 the run failed, 2 wrong input, 128+n stopped by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as the process lives
        elif stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="replace")  # a terminal of few characters ends no run
            _outlive_the_reader(stream)
    if follows() and not _trains(arguments):
        return 0  # what is no run the first process does alone
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from memexp.version import version

        print(f"memexp {version()}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in ("-sc", "--shell-completion"):
        return guarded(_complete, rest)
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return fail(f"'{command}' is not a command; there are {', '.join(COMMANDS)}.{hint}", 2)
    return guarded(COMMANDS[command][1], rest)


def _trains(arguments: Sequence[str]) -> bool:
    """Whether this command begins or goes on with one run, in which all of torchrun's processes take part."""
    asks = (*HYDRA_ONLY, "-h", "--help", "--cfg", "-c", "experiment=list", "-m", "--multirun", "hydra.mode=MULTIRUN")
    asked = any(text in asks or text.split("=")[0] in (*HYDRA_ONLY, "--cfg") for text in arguments)
    return bool(arguments) and arguments[0] in ("train", "resume") and not asked


def _outlive_the_reader(stream: Any) -> None:
    """A run goes on when nobody reads its lines any more (`memexp train | head -1`): what is written then is lost."""

    def lasting(call: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                return len(arguments[0]) if arguments else None

        return write

    stream.write, stream.flush = lasting(stream.write), lasting(stream.flush)


def _overview() -> str:
    lines = [f"  {name:<12} {text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: memexp COMMAND ...   (memexp COMMAND --help for each)",
            "",
            "Trains networks deeper than the memory of a GPU; records accuracy beside peak memory and step time.",
            "",
            *lines,
        ]
    )


def _complete(arguments: list[str]) -> int:
    """What the shell asks while a person types; it prints the words that fit, or nothing at all."""
    if not any(argument.startswith("query=") for argument in arguments):
        from memexp import hydra_app

        return hydra_app.train(["-sc", *arguments], hydra_only=True)  # the function of the shell that asks
    from memexp import completion

    line = os.environ.get("COMP_LINE", "")
    try:
        print("\n".join(completion.words(line[: int(os.environ.get("COMP_POINT") or len(line))], COMMANDS)))
    except Exception:
        return 1  # silence: whatever is printed would stand in the line that is being typed
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
