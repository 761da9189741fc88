"""Which channels of which tensors are one and the same: found by tracing any network.

graph = trace(network, example_input)
edit = narrow_edit(graph, {0: [0, 2, 5]})       # of group 0 three channels, of the others all
narrowed = memexp.edits.apply(copy.deepcopy(network), edit)
masked(network, graph, {0: [0, 2, 5]})(x)       # what narrowed(x) must be
"""

from memexp.channels.graph import ChannelError, Graph, Group, Member
from memexp.channels.narrowing import masked, narrow_edit
from memexp.channels.tracing import trace
from memexp.channels.unread import warn_of_unread

__all__ = ["ChannelError", "Graph", "Group", "Member", "masked", "narrow_edit", "trace", "warn_of_unread"]
