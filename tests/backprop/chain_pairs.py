"""Each strategy that recomputes, beside stored."""

import pytest
from chain_networks import chain

RECOMPUTING = [
    ("checkpointed", {}),
    ("checkpointed", {"every": 3}),
    ("reversible", {}),
    ("reversible", {"exact": True}),
]


recomputing = pytest.mark.parametrize(("backprop", "options"), RECOMPUTING)


def pair(steps, backprop, options):
    """The same steps under `stored` and under the strategy; `exact` is part of the function, so both have it."""
    exact = {"exact": True} if options.get("exact") else {}
    return chain(steps, "stored", **exact), chain(steps, backprop, **options)


def tolerance(backprop, options):
    return 1e-4 if backprop == "reversible" and not options.get("exact") else 0.0
