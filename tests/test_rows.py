"""Rows are known again in any batch, order, shape and number format, and only then."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus import rows as rows_module
from prunus.calibration.batches import Fingerprint
from prunus.rows import RowSet, checksum, row_hashes, rows_of
from prunus.theory.gap import InSampleWarning


def rows(count: int = 64, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_batches_order_shape_and_format_do_not_matter():
    x = rows()
    want = row_hashes(x)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(row_hashes(x[order]), want[order])
    assert torch.equal(torch.cat([row_hashes(x[:5]), row_hashes(x[5:])]), want)
    assert torch.equal(row_hashes(x.reshape(64, 3, 4)), want)
    assert torch.equal(row_hashes(x.double()), want)
    assert torch.equal(row_hashes(x.T.contiguous().T), want)
    assert torch.equal(row_hashes((x, torch.arange(64))), want)
    assert torch.equal(row_hashes([x, torch.arange(64)]), want)
    assert torch.equal(row_hashes(x.numpy()), want)
    counts = torch.randint(0, 256, (8, 5), dtype=torch.uint8)
    assert torch.equal(row_hashes(counts), row_hashes(counts.float()))
    assert torch.equal(
        row_hashes(torch.tensor([[-0.0, 1.0]])), row_hashes(torch.tensor([[0.0, 1]]))
    )
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert len(row_hashes(nan[:, None]).unique()) == 1


def test_large_batches_are_hashed_in_pieces(monkeypatch):
    x = rows(1000, 7)
    want = row_hashes(x)
    monkeypatch.setattr("prunus.rows.ENTRIES", 20)
    assert torch.equal(row_hashes(x), want)


@pytest.mark.parametrize("change", [0, 5, 11])
def test_one_changed_entry_is_another_row(change):
    x = rows()
    other = x.clone()
    other[:, change] = torch.nextafter(other[:, change], torch.tensor(9.0))
    assert not torch.isin(row_hashes(other), row_hashes(x)).any()


def test_entries_that_change_places_are_another_row():
    x = rows()
    assert not torch.isin(row_hashes(x.flip(1)), row_hashes(x)).any()


def test_no_two_of_many_rows_collide():
    # small whole numbers, whose bits are mostly zero: 160 000 pairs of digits, 2⁻⁶⁴ per pair
    grid = torch.cartesian_prod(torch.arange(400.0), torch.arange(400.0))
    assert len(row_hashes(grid).unique()) == 160_000
    assert len(row_hashes(torch.arange(100_000.0)[:, None]).unique()) == 100_000


def test_mappings_leave_out_padding():
    ids = torch.tensor([[7, 8, 9, 5], [4, 2, 5, 5]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    alone = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3)}
    assert torch.equal(row_hashes(batch)[:1], row_hashes(alone))
    assert torch.equal(row_hashes(dict(reversed(batch.items()))), row_hashes(batch))
    named = {"a": rows(4), "b": rows(4, seed=1)}
    swapped = {"a": rows(4, seed=1), "b": rows(4)}
    assert not torch.isin(row_hashes(named), row_hashes(swapped)).any()


def test_an_only_tensor_is_the_same_sample_under_every_name():
    x = rows(6)
    for form in ({"input": x}, {"x": x}, ({"x": x}, torch.arange(6)), {"x": x, "size": 2}):
        assert torch.equal(row_hashes(form), row_hashes(x))
    ids = torch.tensor([[7, 8, 9, 5], [4, 2, 5, 5]])
    masked = {"input_ids": ids, "attention_mask": torch.ones(2, 4), "labels": ids + 1}
    assert torch.equal(row_hashes(masked), row_hashes(ids))


def test_constants_do_not_count_and_what_cannot_be_cut_is_one_row():
    x = rows(6)
    with_bias = {"x": x, "causal": torch.ones(12, 12), "scale": torch.tensor(2.0)}
    assert len(row_hashes(with_bias)) == 6
    assert torch.equal(row_hashes({**with_bias, "x": x[:2]}), row_hashes(with_bias)[:2])
    graph = {"nodes": x, "adjacency": torch.eye(6)}
    assert len(row_hashes(graph)) == 1
    other = {"nodes": x, "adjacency": torch.eye(6).roll(1, 0)}
    assert not torch.equal(row_hashes(graph), row_hashes(other))


def test_sets_join_count_and_travel_as_text():
    x = rows()
    one, other = rows_of([x[:40]]), rows_of([x[30:]])
    assert len(one) == 40
    assert len(one | other) == 64
    assert one.among(row_hashes(x[35:60])) == 5
    assert torch.equal(RowSet.from_text(one.to_text()).hashes, one.hashes)
    assert len(rows_of([])) == 0


def test_a_fingerprint_keeps_its_rows():
    x = rows()
    kept = Fingerprint()
    for piece in x.split(10):
        kept.add(piece)
    assert torch.equal(kept.rows.hashes, rows_of([x]).hashes)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


def note(certificate):
    return " ".join(certificate.notes)


def labels(certificate):
    from_data = [s for s in certificate.statements if s.kind != "sup"]
    return {s.in_sample for s in (*from_data, *certificate.held_out)}


@pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")
class TestLabels:
    def test_calibration_rows_in_any_batches_are_in_sample(self, net):
        x = rows()
        pruned = prunus.prune(net, "obs", 0.5, data=x.split(20))
        for data in (x, [x[:10], x[10:]], x[:9], x.flip(0), x.numpy(), [(x, x[:, 0])]):
            with pytest.warns(InSampleWarning):
                found = prunus.certify(net, pruned, data=data)
            assert labels(found) == {True}
            assert "rows were used to calibrate" in note(found)

    def test_the_overlap_is_counted(self, net):
        x = rows()
        pruned = prunus.prune(net, "obs", 0.5, data=x[:37])
        with pytest.warns(InSampleWarning):
            found = prunus.certify(net, pruned, data=x)
        assert "37 of 64 rows were used to calibrate" in note(found)
        assert "37 of 64 rows were used to calibrate" in found.summary()

    def test_fresh_rows_carry_no_label(self, net):
        pruned = prunus.prune(net, "obs", 0.5, data=rows())
        found = prunus.certify(net, pruned, data=rows(seed=1))
        assert labels(found) == {False}
        assert not found.notes

    @pytest.mark.parametrize("kind", ["predicted", "mean_square", "changed"])
    def test_data_that_made_or_verified_a_plan_are_in_sample(self, net, kind):
        x = rows(400)
        plan = prunus.plan(net, 0.3, kind=kind, data=x)
        assert len(plan.rows) == 400
        pruned = prunus.prune(net, "magnitude", plan)
        with pytest.warns(InSampleWarning):
            found = prunus.certify(net, pruned, data=x[390:])
        assert labels(found) == {True}
        assert "10 of 10 rows were used to plan" in note(found)

    def test_a_gap_budget_plans_and_verifies_on_its_rows(self, net):
        x = rows(400)
        budget = prunus.Budget(gap=0.3, kind="changed")
        pruned = prunus.prune(net, "magnitude", budget, data=x)
        with pytest.warns(InSampleWarning):
            found = prunus.certify(net, pruned, data=x)
        assert "400 of 400 rows" in note(found)

    def test_repeated_rows_are_mentioned(self, net):
        x = rows(40)
        found = prunus.certify(net, copy.deepcopy(net), data=torch.cat([x, x]))
        assert "40 of 80 rows are distinct" in note(found)
        assert labels(found) == {False}

    def test_rows_are_saved_and_merged(self, net, tmp_path):
        x = rows()
        first, second = prunus.calibrate(net, x[:20]), prunus.calibrate(net, x[20:])
        both = first + second
        both.save(tmp_path / "calibration")
        loaded = prunus.Calibration.load(tmp_path / "calibration")
        assert torch.equal(loaded.rows.hashes, rows_of([x]).hashes)
        plan = prunus.plan(net, 0.3, data=rows(seed=2))
        pruned = prunus.prune(net, "obs", plan, data=loaded)
        pruned.save(tmp_path / "pruned")
        again = prunus.load(tmp_path / "pruned", model=net)
        for data, use in ((x, "calibrate"), (rows(seed=2), "plan")):
            with pytest.warns(InSampleWarning):
                found = again.certify(data)
            assert f"64 of 64 rows were used to {use}" in note(found)
        assert not again.certify(rows(seed=3)).notes

    def test_folders_of_older_versions_load_without_rows(self, net, tmp_path):
        found = prunus.calibrate(net, rows())
        found.rows = None  # as version 0.1 wrote it
        found.save(tmp_path / "old")
        assert prunus.Calibration.load(tmp_path / "old").rows is None
        old = copy.copy(found) + prunus.calibrate(net, rows(seed=1))
        assert old.rows is None

    def test_a_bare_layer_keeps_its_rows(self, tmp_path):
        layer = nn.Linear(12, 3)
        prunus.calibrate(layer, rows()).save(tmp_path / "bare")
        assert len(prunus.Calibration.load(tmp_path / "bare").rows) == 64


def test_the_hash_is_the_one_that_folders_hold():
    # saved folders of one version must be known by the next
    assert row_hashes(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [-7603970783215830366]
    named = {"ids": torch.tensor([[1.0, 2.0]]), "pixels": torch.tensor([[3.0]])}
    assert row_hashes(named).tolist() == [5414477643541477438]


def test_the_checksum_of_a_state_is_the_one_that_folders_hold():
    state = {
        "wide": torch.arange(300_001, dtype=torch.int32),
        "small": torch.tensor([1.5, -2.0]),
        "odd": torch.tensor([1.0, 2.0, -3.0]),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "none": torch.zeros(0),
        "half": torch.ones(5, dtype=torch.bfloat16),
    }
    assert checksum(state) == "4deb596350b97e12"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_small_tensors_are_summed_up_as_each_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 0, 1, 3, 64, 100, 5000, 8)
    state = {f"{n}": torch.randn(n, dtype=dtype, generator=generator) for n in sizes}
    state["every second"] = torch.randn(16, dtype=dtype, generator=generator)[::2]
    sums = rows_module._sums(state)
    assert list(map(sums.get, state)) == [rows_module._sum(tensor) for tensor in state.values()]
    assert len({*sums.values()}) == len(state)
    assert checksum(state) != checksum({**state, "8": state["8"].flip(0)})
