"""What is wrong with the YAML of a user's own directories, by file and line, where Hydra does not say. No torch here."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import grammar_parser
from omegaconf.errors import OmegaConfBaseException

File = tuple[Path, str, str | None, yaml.Node | None]
MISSED = re.compile(r"Could not (?:find|load|override) '([^']+)'")  # Hydra, of an entry of a defaults list


def located(problems: Sequence[str], names: Sequence[str], directories: Sequence[str | Path]) -> list[str]:
    """The problems of a configuration, those that a user's own file makes with the file and the line in front.

    names: of the configs that are read, as Hydra has them, "config", "model/mine"; those that their defaults name are read,
    too. What is not below the user's `directories` is not looked at. A file that is none explains all else, and is told alone.
    """
    files = list(_files(names, directories))
    faults = [text for path, _, fault, root in files for text in ([fault] if fault else _interpolations(path, root))]
    return faults or [_placed(problem, files) for problem in problems]


def _placed(problem: str, files: Sequence[File]) -> str:
    missed = MISSED.search(problem)
    for path, name, _, root in files:
        if not isinstance(root, yaml.MappingNode):
            continue
        if missed is not None:
            for wanted, key, line in _defaults(root, name):
                if missed[1] in (wanted, key):
                    return f"{path}, line {line}: {problem.partition(' Config search path')[0]}"
        elif "nterpolation" in problem:
            group = "" if _is_global(path) else name.rpartition("/")[0].replace("/", ".")
            for key, node in _scalars(root, group):
                if "${" in node.value and problem.startswith(f"{key}: "):
                    return f"{path}, line {node.start_mark.line + 1}: {problem}"
    return problem


def _is_global(path: Path) -> bool:
    """Whether the keys of a group's file stand beside the group, as those of an experiment do."""
    return re.search(r"^#\s*@package\s+_global_\s*$", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _files(names: Sequence[str], directories: Sequence[str | Path]) -> Iterator[File]:
    """Path, name, fault if it is no configuration, and nodes of each file that is read."""
    left, seen = list(names), set()
    while left:
        name = left.pop(0).lstrip("/")
        paths = [path for directory in directories if (path := Path(directory) / f"{name}.yaml").is_file()]
        if name in seen or not paths:
            continue
        seen.add(name)
        fault, root = _read(paths[0])
        yield paths[0], name, fault, root
        if isinstance(root, yaml.MappingNode):
            left += [wanted for wanted, _, _ in _defaults(root, name)]


def _read(path: Path) -> tuple[str | None, yaml.Node | None]:
    """What keeps the file from being a configuration, and its nodes, which know their lines; none of an empty file."""
    try:
        raw = path.read_bytes()
        root = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}", None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return f"{path}, line {line}: byte 0x{raw[error.start]:02x} is no UTF-8; save the file as UTF-8", None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return f"{path}, line {mark.line + 1 if mark else 1}: no YAML: {error.problem}", None
    except yaml.reader.ReaderError as error:
        line = raw.decode("utf-8")[: error.position].count("\n") + 1
        return f"{path}, line {line}: no YAML: the character #x{error.character:04x} is not allowed", None
    if root is not None and not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        return (
            f"{path}, line {root.start_mark.line + 1}: it holds {kind}; a configuration holds keys, such as `name: x`",
            None,
        )
    return None, root


def _interpolations(path: Path, root: yaml.Node | None) -> Iterator[str]:
    """Values in which a `${` is not closed, or is no interpolation."""
    for _, node in _scalars(root):
        if "${" in node.value:
            try:
                grammar_parser.parse(node.value)
            except OmegaConfBaseException:
                line = node.start_mark.line + 1
                yield f"{path}, line {line}: {node.value!r} is no interpolation; write ${{key}}, or \\${{ for the characters"


def _scalars(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every single value, with its dotted path."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _scalars(child, f"{key}[{index}]")
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from _scalars(name, key)
            yield from _scalars(child, ".".join(filter(None, [key, str(name.value)])))


def _defaults(root: yaml.MappingNode, name: str) -> Iterator[tuple[str, str, int]]:
    """The configs that the defaults list of config `name` names, each with the group that it is of, and its line."""
    plain: Any = next((value for key, value in root.value if key.value == "defaults"), None)
    group = name.rpartition("/")[0]
    for node in plain.value if isinstance(plain, yaml.SequenceNode) else []:
        entry = yaml.SafeLoader("").construct_document(node)
        pairs = entry.items() if isinstance(entry, dict) else [("", entry)]
        for key, value in pairs:
            way = str(key).replace("override ", "").replace("optional ", "").partition("@")[0].strip()
            for option in value if isinstance(value, list) else [value]:
                if option is not None and option != "_self_":
                    place = way if way.startswith("/") or not group or not way else f"{group}/{way}"
                    parts = [place or ("" if str(option).startswith("/") else group), str(option)]
                    yield "/".join(filter(None, parts)).lstrip("/"), place.lstrip("/"), node.start_mark.line + 1
