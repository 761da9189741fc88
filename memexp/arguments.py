"""Parsers of the commands: the flags that several of them have."""

import argparse
from pathlib import Path

TRUST = "import what the run names; only for runs of your own"


def composed(parser: argparse.ArgumentParser) -> None:
    """The flags of `train` that say where the configuration comes from."""
    parser.add_argument("-cn", "--config-name", default="config", help="the configuration to begin with")
    directories(parser, "your own configs")


def overrides(parser: argparse.ArgumentParser, told: str = "key=value") -> None:
    parser.add_argument("overrides", nargs="*", type=_override, help=told)


def _override(text: str) -> str:
    from memexp.overriding import readable  # Hydra takes its time to import

    return text if Path(text).is_dir() else readable(text)  # a run directory, where one may be given


def directories(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument("-cd", "--config-dir", type=_directory, action="append", default=[], metavar="DIR", help=told)


def _directory(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {text}")
    return text


def own_names(parser: argparse.ArgumentParser) -> None:
    """The flags by which a user names classes and functions of their own again."""
    directories(parser, "your own configs, which the run used")
    parser.add_argument("--trust", action="store_true", help=TRUST)


def parser_of(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"memexp {command}",
        description=description,
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole(text: str) -> int:
    """The number that an argument is."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
