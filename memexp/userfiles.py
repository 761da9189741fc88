"""What is wrong with the YAML of a user's own directories, by file and line, where Hydra does not say. No torch here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import grammar_parser
from omegaconf.errors import OmegaConfBaseException


def faults(names: Sequence[str], directories: Sequence[str | Path]) -> list[str]:
    """One sentence for each fault of the files that are read for these configs and of those that their defaults name.

    names: as Hydra has them, "config", "model/mine". What is not below the user's `directories` is not looked at.
    """
    found: list[str] = []
    left, seen = list(names), set()
    while left:
        name = left.pop(0).lstrip("/")
        paths = [path for directory in directories if (path := Path(directory) / f"{name}.yaml").is_file()]
        if name in seen or not paths:
            continue
        seen.add(name)
        fault, root = _read(paths[0])
        found += [fault] if fault is not None else [*_interpolations(paths[0], root)]
        if isinstance(root, yaml.MappingNode):
            left += _defaults(root, name)
    return found


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
    for node in _scalars(root):
        if "${" in node.value:
            try:
                grammar_parser.parse(node.value)
            except OmegaConfBaseException:
                line = node.start_mark.line + 1
                yield f"{path}, line {line}: {node.value!r} is no interpolation; write ${{key}}, or \\${{ for the characters"


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _scalars(part)


def _defaults(root: yaml.MappingNode, name: str) -> Iterator[str]:
    """The configs that the defaults list of config `name` names."""
    plain: Any = next((value for key, value in root.value if key.value == "defaults"), None)
    group = name.rpartition("/")[0]
    for entry in yaml.SafeLoader("").construct_document(plain) if isinstance(plain, yaml.SequenceNode) else []:
        pairs = entry.items() if isinstance(entry, dict) else [("", entry)]
        for key, value in pairs:
            way = str(key).replace("override ", "").replace("optional ", "").partition("@")[0].strip()
            for option in value if isinstance(value, list) else [value]:
                if option is not None and option != "_self_":
                    place = way if way.startswith("/") or not group or not way else f"{group}/{way}"
                    yield "/".join(filter(None, [place or ("" if str(option).startswith("/") else group), str(option)]))
