"""Compressed files of pruned networks: equal networks come back, whatever the values."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from models import MLP, ZOO, build
from prunus.compression import RateDistortion, compress, decompress
from prunus.compression.books import k_means, share, stored_book
from prunus.compression.rate import quantised
from prunus.compression.tune import tuned


def pruned_mlp(density=0.3, seed=0):
    model, x = build("mlp-relu", seed=seed)
    return prunus.prune(model.float(), "magnitude", density, data=[x.float()])


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        flat = value.contiguous().reshape(-1)
        assert torch.equal(flat.view(torch.uint8), other[name].reshape(-1).view(torch.uint8)), name


LOSSLESS = ("mlp-norm", "cnn-relu", "tied", "lstm", "attention", "conv3d")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((n, 4) for n in ZOO if not n.startswith(("mlp-g", "mlp-s", "cnn-g", "cnn-s"))),
        *((n, None) for n in LOSSLESS),
    ],
)
def test_every_architecture_comes_back(name, values, tmp_path):
    model, x = build(name)
    pruned = prunus.prune(model.eval(), "magnitude", 0.4, data=[x])
    before = {key: value.clone() for key, value in pruned.model.state_dict().items()}
    found = compress(pruned, tmp_path / "small.st", values=values)
    same(before, pruned.model.state_dict())
    own = found.pruned.model.state_dict()
    if values is None:
        same(own, before)
    same(decompress(found.path), own)
    back = decompress(found.path, lambda: build(name)[0])
    same(back.model.state_dict(), own)
    for key, mask in found.pruned.masks.items():
        assert torch.equal(back.masks[key], mask)
    assert back.recipe == pruned.recipe
    assert back.seed == pruned.seed
    assert found.bytes == found.path.stat().st_size
    assert found.bytes == pytest.approx(sum(sum(own.values()) for own in found.parts.values()))
    assert "times smaller" in " ".join(found.summary().split())
    for key in own:
        if values is not None and key in found.layers and own[key].numel():
            kept = own[key][found.pruned.masks.get(key, own[key] != 0)]
            assert len(kept.unique()) <= values


def test_nodes_are_stored_compact(tmp_path):
    model, x = build("cnn-relu")
    pruned = prunus.prune(model.eval(), "importance-node", 0.5, data=[x])
    found = compress(pruned, tmp_path / "small.st", values=8)
    small = found.pruned.compact()
    back = decompress(found.path, lambda: build("cnn-relu")[0])
    same(back.model.state_dict(), small.state_dict())
    assert torch.equal(back.model(x), small(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_values_by_layer(tmp_path):
    pruned = pruned_mlp()
    found = compress(pruned, tmp_path / "a.st", values={"layers.0": 3, "layers.*": 5})
    most = {"layers.0.weight": 3, "layers.2.weight": 5, "layers.4.weight": 5}
    for name, k in most.items():
        own = found.pruned.model.state_dict()[name]
        assert len(own[found.pruned.masks[name]].unique()) == found.layers[name]["k"] <= k
    some = compress(pruned, tmp_path / "b.st", values={"layers.0": 3}, half=False)
    own, before = some.pruned.model.state_dict(), pruned.model.state_dict()
    assert torch.equal(own["layers.2.weight"], before["layers.2.weight"])
    assert torch.equal(own["layers.0.bias"], before["layers.0.bias"])
    assert not torch.equal(own["layers.0.weight"], before["layers.0.weight"])


def test_negative_zeros_and_zeros_inside_the_mask(tmp_path):
    pruned = pruned_mlp()
    weight, mask = pruned.model.layers[0].weight, pruned.masks["layers.0.weight"]
    with torch.no_grad():
        weight[~mask] = -0.0
        places = mask.nonzero()
        weight[tuple(places[0])] = -0.0
        weight[tuple(places[1])] = 0.0
    found = compress(pruned, tmp_path / "small.st")
    back = decompress(found.path, lambda: build("mlp-relu")[0].float())
    own = back.model.layers[0].weight
    assert not torch.signbit(own[~mask]).any()
    assert torch.signbit(own[tuple(places[0])])
    assert torch.equal(back.masks["layers.0.weight"], mask)
    assert torch.signbit(pruned.model.layers[0].weight[~mask]).all()  # the input stays


def test_published_file_has_the_same_network(tmp_path):
    pruned = pruned_mlp()
    ours = compress(pruned, tmp_path / "a.st", values=8)
    theirs = compress(pruned, tmp_path / "b.st", values=8, coder="published", bits=4)
    same(decompress(ours.path), decompress(theirs.path))
    assert {facts["coder"] for facts in theirs.layers.values()} == {"huffman"}
    assert {facts["bits"] for facts in theirs.layers.values()} == {4}


def test_k_means_of_the_specification():
    values = np.array([-1, -0.9, -0.2, 0.1, 0.15, 0.5, 0.55, 2.0])
    centroids, codes = k_means(values, 4)
    np.testing.assert_allclose(centroids, [-0.95, 0.05 / 3, 0.525, 2.0])
    assert codes.tolist() == [0, 0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("k", [1, 2, 7, 4096])
def test_k_means_is_a_fixed_point_of_lloyd(k):
    values = np.random.default_rng(k).normal(size=500)
    centroids, codes = k_means(values, k)
    assert len(centroids) <= k
    nearest = np.abs(values[:, None] - centroids).argmin(1)
    np.testing.assert_array_equal(codes, nearest)
    for place, centroid in enumerate(centroids):
        assert centroid == pytest.approx(values[codes == place].mean(), abs=1e-9)


def test_books_are_half_where_half_holds_them():
    assert stored_book(torch.tensor([1.0, -0.5]), torch.float32).dtype == torch.float16
    for wide in (1e6, 1e-7):
        assert stored_book(torch.tensor([wide, -wide / 3]), torch.float32).dtype == torch.float32
    assert stored_book(torch.zeros(0), torch.float32).dtype == torch.float16


def test_a_values_gradient_is_the_sum_over_its_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(5, 6)
    mask = torch.rand(4, 6) < 0.6
    shared = share(mask, model.weight, 3)
    with torch.no_grad():
        model.weight.copy_(shared.weight(torch.float32))
    model(x).square().sum().backward()
    sums = torch.zeros(len(shared.book)).index_add(
        0, torch.from_numpy(shared.codes.astype(np.int64)), model.weight.grad[mask]
    )
    bias = model.bias.grad.clone()
    model.zero_grad()
    kind = type(model)

    def step(given):
        given(x).square().sum().backward()
        book = given.parametrizations.weight.original
        torch.testing.assert_close(book.grad, sums)
        torch.testing.assert_close(given.bias.grad, bias)
        torch.optim.SGD(given.parameters(), 0.01).step()

    after = tuned(model, {"weight": shared}, step)["weight"]
    torch.testing.assert_close(
        after.book.float(), (shared.book.float() - 0.01 * sums).half().float()
    )
    assert type(model) is kind
    assert dict(model.named_parameters()).keys() == {"weight", "bias"}


def test_training_the_values_moves_them_and_keeps_mask_and_codes(tmp_path):
    pruned = pruned_mlp()
    x, y = torch.randn(64, 12), torch.randint(0, 5, (64,))

    def train(model):
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    plain = compress(pruned, tmp_path / "a.st", values=4)
    found = compress(pruned, tmp_path / "b.st", values=4, fine_tune=train)

    def loss(model):
        return float(F.cross_entropy(model(x), y).detach())

    assert loss(found.pruned.model) < loss(plain.pruned.model)
    same(decompress(found.path), found.pruned.model.state_dict())
    for key in plain.layers:
        assert plain.layers[key]["kept"] == found.layers[key]["kept"]
        one, other = (c.pruned.model.state_dict()[key] for c in (plain, found))
        assert torch.equal(one != 0, other != 0)


def test_what_was_removed_stays_removed_while_values_train(tmp_path):
    pruned = pruned_mlp()
    x = torch.randn(64, 12)

    def train(model):
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    found = compress(pruned, tmp_path / "a.st", values={"layers.0": 4}, fine_tune=train)
    own = found.pruned.model.state_dict()
    same(decompress(found.path), own)
    for name in ("layers.2.weight", "layers.4.weight"):  # layers that share no values
        mask = pruned.masks[name]
        assert not own[name][~mask].any()
        assert not torch.equal(own[name], pruned.model.state_dict()[name])


def test_weights_that_are_no_numbers_keep_their_bits(tmp_path):
    pruned = pruned_mlp()
    kept = pruned.masks["layers.0.weight"].nonzero()
    with torch.no_grad():
        own = pruned.model.layers[0].weight.view(torch.int32)
        own[tuple(kept[0])] = 0x7FC01234
        own[tuple(kept[1])] = -0x800000  # minus infinity
        pruned.model.layers[2].bias[0] = float("nan")
    found = compress(pruned, tmp_path / "a.st")
    same(found.pruned.model.state_dict(), pruned.model.state_dict())
    back = decompress(found.path, lambda: build("mlp-relu")[0].float())
    same(back.model.state_dict(), pruned.model.state_dict())
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*Shared values need finite weights"):
        compress(pruned, tmp_path / "a.st", values=4)
    same(decompress(found.path), pruned.model.state_dict())  # the older file stands


def test_values_that_diverge_are_refused(tmp_path):
    def spoil(model):
        for p in model.parameters():
            p.data.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"layers\.0\.weight.*lower its rate"):
        compress(pruned_mlp(), tmp_path / "a.st", values=4, fine_tune=spoil)
    assert not (tmp_path / "a.st").exists()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (0, r"`values` must be a whole number in \[1, 4096\], got 0"),
        (4097, "got 4097"),
        (True, "got True"),
        ({"layers.0": 2.5}, r"values\['layers.0'\]"),
        ({"layer.*": 4}, "Unknown layer or glob 'layer.\\*'"),
    ],
)
def test_bad_numbers_of_values(values, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        compress(pruned_mlp(), tmp_path / "a.st", values=values)


def test_bad_networks_and_files(tmp_path):
    pruned = pruned_mlp()
    found = compress(pruned, tmp_path / "a.st")
    with pytest.raises(ValueError, match="does not fit the model"):
        decompress(found.path, MLP((12, 16, 9, 5)))
    with pytest.raises(FileNotFoundError, match="no compressed network at"):
        decompress(tmp_path / "none.st")
    with pytest.raises(ValueError, match="max_bytes=100"):
        decompress(found.path, max_bytes=100)
    with pytest.raises(ValueError, match="Unknown coder 'zip'"):
        compress(pruned, tmp_path / "b.st", coder="zip")
    with pytest.raises(ValueError, match="shares values by number"):
        compress(pruned, tmp_path / "b.st", coder="published")
    with torch.no_grad():
        pruned.model.layers[0].weight.fill_(1.0)
    for values in (None, 4):
        with pytest.raises(ValueError, match="not zero outside its mask"):
            compress(pruned, tmp_path / "b.st", values=values)
    assert not (tmp_path / "b.st").exists()


def test_what_is_no_network_is_named(tmp_path):
    pruned = pruned_mlp()
    with pytest.raises(TypeError, match="`pruned` must be a Pruned as `prune` gives it, got MLP"):
        compress(pruned.model, tmp_path / "a.st")
    with pytest.raises(TypeError, match=r"`fine_tune` must be .* got int"):
        compress(pruned, tmp_path / "a.st", values=4, fine_tune=3)
    assert not list(tmp_path.iterdir())
    found = compress(pruned, tmp_path / "a.st")
    with pytest.raises(TypeError, match="a function that builds one, got str"):
        decompress(found.path, "mlp")
    with pytest.raises(TypeError, match="a function that builds one, got int from it"):
        decompress(found.path, lambda: 3)


def test_files_are_equal_under_other_dtypes_and_threads(tmp_path):
    pruned = pruned_mlp()
    one = compress(pruned, tmp_path / "a.st", values=4).path.read_bytes()
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        assert compress(pruned, tmp_path / "b.st", values=4).path.read_bytes() == one
        state = decompress(tmp_path / "a.st")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    same(state, decompress(tmp_path / "a.st"))


def test_rate_and_distortion_by_hand():
    """Two values far apart and one near zero: at some λ the small one is not worth its bits."""
    weight = np.array([-1.0, -1.0, 0.4, 1.0, 1.0])
    free, codes = quantised(weight, np.ones(5), 0.0, 5, 50)
    assert sorted(set(free[codes].round(6))) == [-1.0, 0.4, 1.0]
    centroids, codes = quantised(weight, np.ones(5), 5e-2, 5, 50)
    assert codes[2] == -1
    assert sorted(centroids) == [-1.0, 1.0]
    _, codes = quantised(weight, np.ones(5), 10.0, 5, 50)
    assert (codes == -1).all()
    _, codes = quantised(weight, np.array([1, 1, 1e2, 1, 1.0]), 5e-2, 5, 50)
    assert codes[2] != -1  # the loss is sharp along it


@pytest.mark.parametrize("lam", [1e-3, 0.02, 0.1])
def test_rate_and_distortion_end_where_no_weight_has_a_cheaper_value(lam):
    """Every weight has the value, zero among them, of least loss and bits, as coded at the end."""
    rng = np.random.default_rng(0)
    weight, curvature, size = rng.normal(size=400), rng.uniform(0.5, 2, 400), 1000
    centroids, codes = quantised(weight, curvature, lam, 8, size)
    counts = np.bincount(codes[codes >= 0], minlength=len(centroids))
    assert counts.all()
    assert (codes < 0).any()
    shares = np.append(1 - counts.sum() / size, counts / size)  # of the symbols, zero first
    values = np.append(0.0, centroids)
    cost = curvature + 1e-3 * curvature.mean()
    total = cost[:, None] * (weight[:, None] - values) ** 2 / 2 - lam * np.log2(shares)
    np.testing.assert_array_equal(total.argmin(1), codes + 1)
    means = [np.average(weight[codes == j], weights=cost[codes == j]) for j in range(len(counts))]
    np.testing.assert_allclose(centroids, means, rtol=1e-12)


def test_rate_and_distortion_keep_the_measured_loss(tmp_path):
    pruned = pruned_mlp(0.6)
    with torch.no_grad():
        for layer in (pruned.model.layers[i] for i in (0, 2, 4)):
            layer.weight *= 4  # else the biases decide and no weight is worth its bits
            layer.bias *= 0
    x = torch.randn(200, 12)
    with torch.no_grad():
        y = pruned.model(x).argmax(1)  # labels that damage takes away from

    def loss(model):
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    sizes = []
    for tolerance in (0.01, 0.1, 1.0):
        how = RateDistortion(loss=loss, tolerance=tolerance, data=[(x, y)], k=256)
        found = compress(pruned, tmp_path / "a.st", values=how, half=False)
        rise = loss(found.pruned.model) - loss(pruned.model)
        assert rise <= tolerance + 1e-6
        assert found.lam > 0
        same(decompress(found.path), found.pruned.model.state_dict())
        sizes.append(found.bytes)
    assert sizes[0] >= sizes[1] >= sizes[2] < sizes[0]
    assert found.lam > 0
    how = RateDistortion(loss=lambda m: float("nan"), tolerance=0.1)
    with pytest.raises(ValueError, match="held-out loss of the pruned network is nan"):
        compress(pruned, tmp_path / "b.st", values=how)
    with pytest.raises(ValueError, match="`tolerance`"):
        RateDistortion(loss=loss, tolerance=-1.0)
