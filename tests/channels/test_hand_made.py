"""Groups of the hand-made networks, as counted by hand, and narrowed against masked."""

import counted
import equality
import flattened
import hand_made as made
import normed
import picked
import pytest
import recurrent
import torch
import unseen

from memexp import channels

# sizes of the groups, in order of their first parameter
GROUPS: dict[type[made.Network], list[int]] = {
    made.CatWithItself: [6],
    made.CatIntoLinear: [4, 10],
    made.Flattened: [6],
    made.UnequalSplit: [6, 10],
    made.FixedSplit: [7],
    made.ToImage: [6, 8],
    made.Twice: [6],
    made.TwiceOnTwo: [6, 4],
    made.SumOfSlice: [6],
    made.SumOfFixedSlice: [6],
    made.SumOfCountedSlice: [6, 6],
    made.StackedBranches: [6],
    made.FlattenedStack: [6],
    made.PaddedShortcut: [6, 6],
    made.FixedPad: [6],
    made.Shuffled: [2],
    made.Depthwise: [8, 4],
    made.Sigmoids: [8, 6],
    made.Normed: [4, 10],
    made.Attention: [16, 4],
    made.TorchAttention: [16, 4],
    made.Weighed: [8],
    made.PixelShuffled: [4],
    made.Embedded: [8],
    made.HalvesOfStreams: [6],
    made.WeightsMasked: [6],
    made.Expanded: [6],
    made.Uniform: [6, 8, 4],
    made.InstanceNormed: [6],
    made.Standardised: [6],
    made.Einsum: [6, 8],
    **unseen.GROUPS,
    **flattened.GROUPS,
    **counted.GROUPS,
    **normed.GROUPS,
    **picked.GROUPS,
    **recurrent.GROUPS,
}


def example(kind: type[made.Network]) -> torch.Tensor:
    return torch.randint(11, (2, 6)) if kind is made.Embedded else torch.randn(kind.shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "kind",
    [*made.NETWORKS, *(kind for kind in GROUPS if kind not in made.NETWORKS)],
    ids=lambda kind: kind.__name__,
)
def test_groups_and_narrowed_equals_masked(kind: type[made.Network]) -> None:
    torch.manual_seed(0)
    network = equality.randomise(kind().double())
    inputs = example(kind)
    graph = channels.trace(network, inputs)
    assert [group.size for group in graph.groups] == GROUPS[kind]
    for ratio in (0.1, 0.3, 0.5, 0.7):
        kept = equality.choose(graph, ratio)
        narrowed, error = equality.difference(network, graph, kept, inputs)
        assert error < 1e-12
        if ratio == 0.7:
            assert equality.parameters(narrowed) < equality.parameters(network)


@pytest.mark.parametrize("name", picked.BETWEEN)
def test_channels_pass_what_works_on_positions(name: str) -> None:
    torch.manual_seed(0)
    network = equality.randomise(picked.Between(picked.BETWEEN[name]).double())
    inputs = example(picked.Between)
    graph = channels.trace(network, inputs)
    assert [group.size for group in graph.groups] == [6]
    assert equality.difference(network, graph, {0: [1, 4, 5]}, inputs)[1] < 1e-12


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN], ids=lambda kind: kind.__name__)
def test_a_recurrent_layer_takes_fewer_inputs(kind: type[torch.nn.RNNBase]) -> None:
    """In float32 it is one operation."""
    torch.manual_seed(0)
    network = equality.randomise(recurrent.Recurrent(kind))
    inputs = torch.randn(recurrent.Recurrent.shape)
    graph = channels.trace(network, inputs)
    assert [group.size for group in graph.groups] == [8, 9]
    narrowed, error = equality.difference(network, graph, {0: [1, 2, 7]}, inputs)
    assert error < 1e-5
    assert narrowed.layers.input_size == 3


def test_narrowed_is_traced_and_narrowed_again() -> None:
    """Rounds of pruning: heads, pads and split sizes follow a second time."""
    for kind in (made.TorchAttention, made.PaddedShortcut, made.UnequalSplit, made.Depthwise, made.Normed):
        torch.manual_seed(0)
        network = equality.randomise(kind().double())
        inputs = example(kind)
        graph = channels.trace(network, inputs)
        network, _ = equality.difference(network, graph, equality.choose(graph, 0.3), inputs)
        again = channels.trace(network, inputs)
        assert sum(g.size for g in again.groups) < sum(g.size for g in graph.groups)
        assert equality.difference(network, again, equality.choose(again, 0.5), inputs)[1] < 1e-12


@pytest.mark.parametrize("kind", [counted.SplitByShare, counted.SlicedByShare], ids=lambda kind: kind.__name__)
def test_halves_of_an_attribute_stay_halves(kind: type[made.Network]) -> None:
    graph = channels.trace(kind(), example(kind).float())
    assert graph.removable("a.weight") == tuple(range(12))


def test_attention_that_returns_its_weights() -> None:
    torch.manual_seed(0)
    network = equality.randomise(made.TorchAttention(need_weights=True).double())
    inputs = example(made.TorchAttention)
    graph = channels.trace(network, inputs)
    kept = {1: [0, 3]}
    narrowed, error = equality.difference(network, graph, kept, inputs)
    assert error < 1e-12
    assert narrowed.attention.num_heads == 2
    assert narrowed.attention.in_proj_weight.shape == (3 * 2 * 4, 16)


def test_members_of_a_concatenation_with_itself() -> None:
    graph = channels.trace(made.CatWithItself(), torch.randn(made.CatWithItself.shape))
    (group,) = graph.groups
    found = {(m.name, m.dim): (m.role, m.indices[2]) for m in group.members}
    assert found == {("a.weight", 0): ("out", (2,)), ("a.bias", 0): ("bias", (2,)), ("b.weight", 1): ("in", (2, 8))}


def test_members_of_a_flattened_convolution() -> None:
    graph = channels.trace(made.Flattened(), torch.randn(made.Flattened.shape))
    members = {m.name: m for m in graph.groups[0].members}
    assert members["b.weight"].indices[1] == tuple(range(64, 128))
    assert members["norm.running_var"].role == "norm"


def test_whole_groups_and_both_outputs_of_a_channel() -> None:
    graph = channels.trace(made.Depthwise(), torch.randn(made.Depthwise.shape))
    members = {(m.name, m.dim): m for m in graph.groups[0].members}
    assert members["b.weight", 0].indices[3] == (6, 7)
    assert members["excite.weight", 0].indices[3] == (6, 7)
    assert members["a.weight", 0].indices[3] == (3,)


@pytest.mark.parametrize(
    ("kind", "name", "dim", "words"),
    [
        (made.CatWithItself, "a.weight", 1, "the network's"),
        (made.CatWithItself, "b.weight", 0, "output"),
        (made.FixedSplit, "a.weight", 0, "fixed in the source"),
        (made.SumOfFixedSlice, "b.weight", 0, "fixed in the source"),
        (made.FixedPad, "b.weight", 0, "width of the pad"),
        (made.Shuffled, "b.weight", 1, "within a group"),
        (made.Embedded, "words.weight", 0, "looked up"),
        (unseen.SummedFeatures, "q.weight", 0, "summed as they are"),
        (unseen.Energy, "b.weight", 0, "summed as they are"),
        (unseen.StandardisedByBatchNorm, "b.weight", 1, "the statistics are over it"),
        (unseen.ClassToken, "token", 1, "mixes channels"),
        (unseen.Counted, "a.weight", 0, "itself a value"),
        (unseen.Counted, "b.weight", 0, "itself a value"),
        (unseen.Counted, "c.weight", 0, "itself a value"),
        (recurrent.Recurrent, "layers.weight_hh_l0", 0, "reads all of its channels"),
        (unseen.BlurredByConstant, "a.weight", 0, "its filters are a constant"),
    ],
)
def test_frozen_says_why(kind: type[made.Network], name: str, dim: int, words: str) -> None:
    graph = channels.trace(kind(), torch.randint(11, (2, 6)) if kind is made.Embedded else torch.randn(kind.shape))
    assert words in graph.frozen[name, dim]


def test_part_of_a_dimension_is_removable() -> None:
    graph = channels.trace(made.SumOfFixedSlice(), torch.randn(made.SumOfFixedSlice.shape))
    assert graph.removable("a.weight") == (6, 7, 8, 9, 10, 11)
    assert graph.removable("b.weight") == ()
    with pytest.raises(channels.ChannelError, match=r"'c\.gain' has no dimension 0"):
        graph.removable("c.gain")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "kind", ["LeakyReLU", "Hardswish", "ReLU6", "ELU", "SELU", "CELU", "Mish", "Hardsigmoid", "SiLU"]
)
def test_channels_pass_every_activation_whatever_tags_its_operation_has(kind: str, inplace: bool) -> None:
    layers = torch.nn.Conv2d(3, 6, 3), getattr(torch.nn, kind)(inplace=inplace), torch.nn.Conv2d(6, 5, 3)
    assert [group.size for group in channels.trace(torch.nn.Sequential(*layers), torch.randn(2, 3, 8, 8)).groups] == [6]
