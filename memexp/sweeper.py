"""Hydra's basic sweep, every combination of `params`, for each of a list of `cases` that have little else in common."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from memexp.config import ConfigError


class CasesSweeper(BasicSweeper):
    """`hydra.sweeper.cases=[[model=resnet,model.depth=32],[model=revnet,model.depth=38]]`

    A case is a list of overrides; what is typed on the command line comes after it and wins.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        cases: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        if cases is not None and not (cases and all(case and not isinstance(case, str) for case in cases)):
            raise ConfigError(
                [f"hydra.sweeper.cases: {cases!r} is not allowed; it takes a list of lists of overrides."]
            )
        self.cases = [[str(text) for text in case] for case in cases or [[]]]

    def split_arguments(  # type: ignore[override]  # there it is static, but called on self
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        combinations = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
        jobs = [[*case, *job] for job in combinations for case in self.cases]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))
