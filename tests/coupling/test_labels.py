"""The union-find over labels against one written from the definition, and short ways of `meet`."""

import pytest
import torch

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
