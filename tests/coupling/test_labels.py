"""The union-find over labels against one written from the definition, and short ways of `meet`."""

import pytest
import torch

from prunus.coupling.computed import Computed
from prunus.coupling.labels import CONSTANT, DATA, FIRST, WRITTEN, Labels


def represented(count, pairs):
    """The lowest label of each label's class, by joining sets one pair after another."""
    classes = {n: {n} for n in range(count)}
    for a, b in pairs:
        joined = classes[a] | classes[b]
        for n in joined:
            classes[n] = joined
    return [min(classes[n]) for n in range(count)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 5, 2000])  # from where on it pays to flatten all is between
def test_the_lowest_label_stands_for_its_class(seed, size):
    draw = torch.Generator().manual_seed(seed)
    labels, pairs = Labels(), []
    for _ in range(6):
        labels.new(int(torch.randint(1, 40, (1,), generator=draw)))
        one, other = torch.randint(FIRST, labels.count, (2, size), generator=draw)
        labels.unite(one, other)
        pairs += zip(one.tolist(), other.tolist(), strict=True)
        some = torch.randint(FIRST, labels.count, (3,), generator=draw)
        expected = represented(labels.count, pairs)
        assert labels.find(some).tolist() == [expected[n] for n in some.tolist()]
    every = torch.arange(-5, labels.count)
    assert labels.find(every).tolist() == [*range(-5, 0), *expected]
    assert labels.find(every.repeat(50)).tolist() == [*range(-5, 0), *expected] * 50


def test_a_long_chain_is_one_class():
    labels = Labels()
    chain = labels.new(500)
    for a, b in zip(chain[:-1].flip(0), chain[1:].flip(0), strict=True):
        labels.unite(a[None], b[None])
    assert labels.find(chain).tolist() == [FIRST] * 500


PARTNERS = {"constants": CONSTANT, "written": WRITTEN, "data": DATA, "entries": -7}


@pytest.mark.parametrize("partner", PARTNERS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_classes_that_meet_one_kind_of_values(partner, turned, alike):
    """As where one value of another kind stands beside, which takes the long way."""
    said = []
    for beside in ([], [CONSTANT if partner != "constants" else WRITTEN]):
        labels = Labels()
        classes = labels.new(6)
        values = torch.full((6,), PARTNERS[partner])
        if partner == "entries":
            values = values - torch.arange(6)
        other = torch.cat([values, torch.tensor(beside, dtype=torch.int64)])
        mine = torch.cat([classes, torch.full((len(beside),), CONSTANT)])
        sizes = (mine.shape, (1,) if alike else other.shape)
        given = (other, mine, "add", sizes[::-1]) if turned else (mine, other, "add", sizes)
        found = labels.meet(*given)
        said.append(
            (
                found[:6].tolist(),
                [(c.tolist(), why) for c, why in labels.reasons],
                [(a.tolist(), c.tolist()) for a, c in labels.met],
                [[part[:6].tolist() for part in w] for w in labels.written],
            )
        )
    assert said[0] == said[1]
    assert said[0][0] == classes.tolist()


def numbers_met(computed, *parts):
    found = computed.met(
        [(-1 - torch.tensor(numbers), torch.tensor(own)) for numbers, own in parts]
    )
    return [(entries.tolist(), classes.tolist()) for entries, classes in found]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([([2, 5], [1, 0])], [([2, 5], [1, 0])]),
        ([([5, 2, 2], [1, 0, 0])], [([2, 5], [0, 1])]),
        ([([2, 2], [1, 0])], [([2, 2], [0, 1])]),
        ([([7], [3]), ([2, 5], [1, 0])], [([7], [3]), ([2, 5], [1, 0])]),
        ([([2, 5], [1, 0]), ([5, 2], [1, 0])], [([2, 5], [1, 0]), ([2, 5], [0, 1])]),
    ],
    ids=["ordered", "turned", "twice", "two parts", "a part turned"],
)
def test_entries_are_met_in_order_and_once_for_a_class(parts, expected):
    assert numbers_met(Computed(10), *parts) == expected
    assert Computed(10).met([]) == []


def test_what_meets_a_computed_value_meets_its_entries():
    computed = Computed(10)
    one = computed.of(-1 - torch.tensor([3, 1, 3]))  # values 10 and 11, of entries 1 and 3
    assert (-1 - one).tolist() == [11, 10, 11]
    two = computed.of(-1 - torch.tensor([5, 2, 5]), -1 - torch.tensor([3, 3, 3]))
    assert (-1 - two).tolist() == [13, 12, 13]
    both = computed.of(one[:2], two[:2])  # of computed values: of 3 and of 5 and 3; of 1, 2 and 3
    assert (-1 - both).tolist() == [15, 14]
    assert numbers_met(computed, ([10, 11], [4, 6])) == [([1, 3], [4, 6])]
    assert numbers_met(computed, ([12, 13], [4, 6])) == [([2, 3, 3, 5], [4, 4, 6, 6])]
    assert numbers_met(computed, ([15, 14, 0], [4, 6, 8])) == [
        ([0, 1, 2, 3, 3, 5], [8, 6, 6, 4, 6, 4])
    ]
