"""Data as people hold them: loaders, data sets, encodings of a tokenizer."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunus


class Classifier(nn.Module):
    """Takes token numbers and a mask; a loss where labels are given."""

    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(30, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.words(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        out = {"logits": self.b(torch.relu(self.a(x)))}
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(out["logits"].mean(1), labels)
        return out


def model_and_ids():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier().eval(), torch.randint(1, 30, (12, 7))


def grams(model, data):
    found = prunus.calibrate(model, data)
    return found.samples, {name: layer.gram for name, layer in found.items()}


def same(one, other):
    assert one[0] == other[0] == 12
    for name, gram in one[1].items():
        torch.testing.assert_close(gram, other[1][name], rtol=1e-12, atol=1e-14)


def test_loaders_lists_and_mappings_say_the_same():
    model, ids = model_and_ids()
    whole = grams(model, {"input_ids": ids})
    same(grams(model, [{"input_ids": part} for part in ids.split(5)]), whole)
    same(grams(model, DataLoader(TensorDataset(ids, torch.zeros(12)), batch_size=5)), whole)
    rows = [{"input_ids": row} for row in ids]
    same(grams(model, DataLoader(rows, batch_size=5)), whole)


def test_hugging_face_data_sets():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    model, ids = model_and_ids()
    held = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": [0, 1, 2] * 4})
    held = held.with_format("torch")
    whole = grams(model, {"input_ids": ids, "labels": torch.tensor([0, 1, 2] * 4)})
    same(grams(model, DataLoader(held, batch_size=5)), whole)
    same(grams(model, held.iter(batch_size=5)), whole)


def test_encodings_with_padding_on_either_side():
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    model, ids = model_and_ids()
    ids = ids[:2]
    short = ids[1, :4]
    plain = prunus.calibrate(model, [{"input_ids": ids[:1]}, {"input_ids": short[None]}])
    for left in (True, False):
        padded = torch.zeros(2, 7, dtype=torch.long)
        mask = torch.zeros(2, 7, dtype=torch.long)
        padded[0], mask[0] = ids[0], 1
        place = slice(3, 7) if left else slice(0, 4)
        padded[1, place], mask[1, place] = short, 1
        encoding = transformers.BatchEncoding({"input_ids": padded, "attention_mask": mask})
        found = prunus.calibrate(model, [encoding])
        assert found["a"].samples == 11
        torch.testing.assert_close(found["a"].gram, plain["a"].gram, rtol=1e-10, atol=1e-12)
