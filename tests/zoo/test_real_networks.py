"""Networks as people have them: every exact class, the cut, saving and loading, and reasons.

A slice of the table runs by default, all of it with the slow tests. Nothing of what is found in a
network is written down here but a few counts: new kinds of units are held to the same laws.
"""

import copy
import importlib.util

import pytest
import torch

import prunus
from prunus.ambient import quiet
from prunus.coupling import couple
from prunus.coupling.types import layer_of
from real_checks import compared, judge, outputs
from real_networks import NETWORKS, SECTION_0, build

FEW = ("SE gate", "U-Net", "einsum attention", "module called twice", "Llama (tied)", "BERT")
HF = importlib.util.find_spec("transformers") is not None
CAUSAL = [name for name in NETWORKS if name.startswith(("Llama", "Qwen", "Gemma2", "GPT", "OPT",
          "Phi3", "Mistral", "Mixtral", "OLMo2", "Cohere", "BLOOM"))]  # fmt: skip


def marked(names):
    """The names as parameters: those beyond the slice slow, those without their library skipped."""
    return [
        pytest.param(
            name,
            marks=[
                *([] if name in FEW else [pytest.mark.slow]),
                pytest.mark.skipif(
                    NETWORKS[name].hugging_face and not HF, reason="needs the extra `hf`"
                ),
            ],
        )
        for name in names
    ]


def test_the_zoo_is_large():
    assert len(SECTION_0) == 39
    assert len(NETWORKS) >= 40
    assert set(FEW) | set(CAUSAL) <= set(NETWORKS)


@pytest.mark.parametrize("name", marked(NETWORKS))
def test_every_class_is_right_and_what_stays_has_a_reason(name, tmp_path):
    model, examples = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = judge(model, examples)
    assert not found.wrong, "classes that are no classes"
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert found.removed, (found.refusal, dict(found.reasons))
    assert max(found.change) <= 1e-5, "compact and masked differ"
    assert found.parameters[1] < found.parameters[0]
    coupling = couple(model, examples[0])
    groups = [g for g in coupling.groups if g.name in found.removed]
    said = {layer for group in groups for layer in (*group.producers, *group.consumers)}
    said |= {layer_of(slot.parameter) for group in groups for slot in group.slots}  # tables too
    silent = [
        key
        for key, value in model.named_parameters()
        if value.ndim > 1
        and not any(
            layer_of(key) == known or layer_of(key).startswith(f"{known}.")
            for known in {*said, *found.reasons, *coupling.refused}
        )
    ]
    assert not silent, "neither pruned nor refused"
    assert all(reason.strip() for reason in found.reasons.values())
    with quiet():  # configurations that cannot say the widths are told by `save_hf`
        folder = found.pruned.save(tmp_path / "net", example=examples[0])
        again = prunus.load(folder, copy.deepcopy(model))
        small = again.compact()
    for batch in examples:
        assert compared(again.model, found.pruned.model, batch) == 0
        assert compared(small, found.pruned.model, batch) <= 1e-5


FAMILIES = [name for name in NETWORKS if NETWORKS[name].hugging_face]


@pytest.mark.slow
@pytest.mark.skipif(not HF, reason="needs the extra `hf`")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_by_from_pretrained(name, tmp_path):
    model, examples = build(name)
    pruned = prunus.prune(model, "importance-node", 0.6, data=examples[0])
    with quiet():
        found = pruned.save_hf(tmp_path / "net", example=examples[0])
    if "`from_pretrained` does not load" in found.notes[0]:
        assert "cannot say the widths of" in found.notes[0]
        return
    again = type(model).from_pretrained(tmp_path / "net").eval()
    for batch in examples:
        assert compared(pruned.model, again, batch) <= 1e-5
    assert max(check.error for check in found.checked) <= 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not HF, reason="needs the extra `hf`")
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_and_without_cache_agrees(name, tmp_path):
    model, examples = build(name)
    pruned = prunus.prune(model, "importance-node", 0.6, data=examples[0])
    ids = examples[0]["input_ids"]
    with quiet():
        found = pruned.save_hf(tmp_path / "net", example=examples[0])
        networks = [pruned.model, pruned.compact(examples[0])]
        if "does not load" not in found.notes[0]:
            networks.append(type(model).from_pretrained(tmp_path / "net").eval())
        said = [
            network.generate(
                ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=cache
            )
            for network in networks
            for cache in (True, False)
        ]
    assert said[0].shape[1] == ids.shape[1] + 12
    for other in said[1:]:
        assert torch.equal(other, said[0])


@pytest.mark.slow
@pytest.mark.skipif(not HF, reason="needs the extra `hf`")
def test_units_in_all_but_a_few_of_the_first_comparison():
    found = {}
    for name in SECTION_0:
        model, examples = build(name)
        found[name] = couple(model, examples[0]).groups
    without = [name for name, groups in found.items() if not groups]
    assert len(without) <= 39 - 33, without
    (kv,) = {g.size for g in found["Llama (sdpa)"] if g.name.endswith("q_proj")}
    assert kv == 2
    assert {g.size for g in found["BERT"]} == {4, 48, 32}  # heads, hidden units, the stream


def test_heads_matched_to_the_wrong_kv_head_are_noticed():
    """Query head h belongs to kv head h // r; h mod K is another network."""
    if not HF:
        pytest.skip("needs the extra `hf`")
    model, examples = build("Llama (sdpa)")
    group = next(
        g for g in couple(model, examples[0]).groups if g.name.endswith("0.self_attn.q_proj")
    )
    whole = outputs(model, examples[0])
    state = model.state_dict()
    changed = []
    for heads in ((0, 1), (0, 2)):  # of kv head 0: by h // r, and by h mod K
        with torch.no_grad():
            saved = {key: value.clone() for key, value in state.items()}
            for head in heads:
                state["model.layers.0.self_attn.o_proj.weight"][:, 8 * head : 8 * head + 8] = 0
            before = outputs(model, examples[0])
            state["model.layers.0.self_attn.v_proj.weight"][:8] = 1
            changed.append(float((outputs(model, examples[0])[0] - before[0]).abs().max()))
            model.load_state_dict(saved)
    assert group.size == 2
    assert changed[0] <= 1e-5 < 1e-3 < changed[1]
    assert torch.equal(outputs(model, examples[0])[0], whole[0])
