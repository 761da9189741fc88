"""Studies: what an experiment measures without a training run, chosen by `case.study`.

A study is `study(cfg, directory) -> {figure: number}`, with `accuracy` as a stage has it where it classifies images; its
figures go to results.json under "study" and into the report's table, its plots to plots/ of the run directory.
"""
