"""What the loop sets between steps (depth, window, rotary base), stacking, value embeddings and residual scalars."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from cram.config import load
from cram.errors import CramError
from cram.model import build
from cram.ops import Documents
from cram.optim import partition
from cram.schema import Model

IDS = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(0))
DOCUMENTS = Documents.from_lengths([5, 4, 7])
SWITCHES = {"value_embeddings": True, "residual_scalars": True}


def make(causal=False, **changes):
    return build(Model(**{"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "zero_init": False, "init_std": 0.3} | changes),
                 50, causal, seed=0)


def gradients(model):
    """By name, of a loss that every parameter has a part in."""
    loss = model.logits(model(IDS, DOCUMENTS)).logsumexp(-1).square().sum()
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True)))


@pytest.mark.parametrize("built, name, value", [
    ({"window": 3}, "window", 3), ({"rope_base": 50.0}, "rope_base", 50.0), ({"window": None}, "window", None)])
def test_what_is_set_between_steps_equals_a_model_built_so(built, name, value):
    other, model = make(**built), make(**{name: 2})
    assert not torch.equal(model(IDS, DOCUMENTS), other(IDS, DOCUMENTS))
    setattr(model, name, value)
    assert torch.equal(model(IDS, DOCUMENTS), other(IDS, DOCUMENTS))
    assert model.flops_per_token(16) == other.flops_per_token(16)


def test_causal_can_be_asked_for_each_call():
    masked, causal = make(causal=False), make(causal=True)
    assert torch.equal(masked(IDS, DOCUMENTS, causal=True), causal(IDS, DOCUMENTS))
    assert torch.equal(causal(IDS, DOCUMENTS, causal=False), masked(IDS, DOCUMENTS))
    assert not torch.equal(causal(IDS, DOCUMENTS), masked(IDS, DOCUMENTS))
    assert masked.flops_per_token(16, causal=True) == causal.flops_per_token(16) < masked.flops_per_token(16)
    assert causal.flops_per_token(16, causal=False) == masked.flops_per_token(16)


def test_the_final_values_come_first():
    model = make(window=4, rope_base=100.0, rope_base_end=500.0)
    assert (model.depth, model.window, model.rope_base, model.recompute) == (3, 4, 500.0, "none")
    assert make(rope_base=100.0).rope_base == 100.0


def test_a_shallower_model_runs_its_first_blocks_only():
    model, small = make(), make(layers=2)
    small.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("blocks.2")})
    model.depth = 2
    assert torch.equal(model(IDS, DOCUMENTS), small(IDS, DOCUMENTS))
    assert model.flops_per_token(16) == small.flops_per_token(16)
    assert {name for name, gradient in gradients(model).items() if gradient is None} == {
        name for name, _ in model.named_parameters() if name.startswith("blocks.2")}


def test_stacking_copies_the_model_onto_itself():
    model = make(layers=5)
    model.depth, before = 2, {name: value.clone() for name, value in model.state_dict().items()}
    pairs = model.stack(5)
    state, named = model.state_dict(), dict(model.named_parameters())
    assert model.depth == 5 and len(pairs) == 3 * len(list(model.blocks[0].parameters()))
    names = {id(parameter): name for name, parameter in named.items()}
    for layer, original in ((0, 0), (1, 1), (2, 0), (3, 1), (4, 0)):
        for name, _ in model.blocks[0].named_parameters():
            assert torch.equal(state[f"blocks.{layer}.{name}"], before[f"blocks.{original}.{name}"])
    found = {(names[id(a)], names[id(b)]) for a, b in pairs}
    assert found == {(f"blocks.{original}.{name}", f"blocks.{layer}.{name}") for layer, original in ((2, 0), (3, 1), (4, 0))
                     for name, _ in model.blocks[0].named_parameters()}
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)  # copies, not the same memory
    assert all(gradient is not None for gradient in gradients(model).values())


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_stacking_to_less_or_more_than_there_is_is_refused(depth):
    model = make(layers=5)
    model.depth = 2
    with pytest.raises(CramError, match=f"cannot stack 2 blocks to {depth}; give more than 2 and at most model.layers=5"):
        model.stack(depth)
    assert model.depth == 2


def test_a_stacked_block_computes_what_its_original_does():
    """Also where only the copy has a value embedding: with 1 block of 4, block 1 copies block 0, which has none."""
    model = make(layers=4, **SWITCHES)
    model.depth = 1
    with torch.no_grad():
        model.residual_scalars.a_L[0], model.residual_scalars.b_L[0] = 0.5, 0.25
    pairs = model.stack(2)
    assert model.residual_scalars.a_L.tolist() == [0.5, 0.5, 1, 1] and model.residual_scalars.b_L.tolist() == [0.25, 0.25, 0, 0]
    assert not model.blocks[1].attention.value_embedding.table.weight.any()
    assert len(pairs) == len(list(model.blocks[0].parameters()))
    stacked = model(IDS, DOCUMENTS)
    model.blocks[1] = model.blocks[0]
    assert torch.equal(model(IDS, DOCUMENTS), stacked)

    even = make(layers=4, value_embeddings=True)
    even.depth = 2
    even.stack(4)
    for name in ("table", "gate"):
        original, copy = (getattr(even.blocks[layer].attention.value_embedding, name).weight for layer in (1, 3))
        assert torch.equal(original, copy)


@pytest.mark.parametrize("layers, having", [(1, [0]), (3, [0, 2]), (4, [1, 3])])
def test_every_other_layer_and_the_last_have_value_embeddings(layers, having):
    model = make(layers=layers, value_embeddings=True)
    assert [layer for layer, block in enumerate(model.blocks) if block.attention.value_embedding is not None] == having


def test_the_switches_leave_the_other_weights_and_at_first_the_model_alone():
    plain, model = make(zero_init=False), make(**SWITCHES)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    expected, before = plain(IDS, DOCUMENTS), gradients(plain)
    assert torch.equal(make(residual_scalars=True)(IDS, DOCUMENTS), expected)
    after = gradients(make(residual_scalars=True))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(model(IDS, DOCUMENTS), expected)
    for layer in (0, 2):
        torch.nn.init.zeros_(model.blocks[layer].attention.value_embedding.table.weight)
    assert torch.equal(model(IDS, DOCUMENTS), expected)


def test_a_value_embedding_starts_as_its_table_times_one():
    model = make(layers=2, value_embeddings=True)
    layer = model.blocks[1].attention.value_embedding
    assert torch.equal(layer(IDS, torch.randn(16, 32)).flatten(1), layer.table.weight[IDS])
    assert layer.table.weight.shape == (50, 16) and layer.gate.weight.shape == (2, 32)  # 2 key/value heads of 8
    assert layer.table.weight.std().item() == pytest.approx(0.3, rel=0.1)


def test_a_bigram_starts_as_nothing_and_learns_what_pairs_ask_of_it():
    """Its gradient reaches the rows of the pairs that are there, no other; the first of a document is a pair with nothing."""
    plain, model = make(), make(bigram_rows=997)
    assert torch.equal(model(IDS, DOCUMENTS), plain(IDS, DOCUMENTS))
    assert model.flops_per_token(16) == plain.flops_per_token(16)
    rows_N = gradients(model)["bigrams.table.weight"].abs().sum(1).nonzero()[:, 0]
    before = [-1, *IDS[:4].tolist(), -1, *IDS[5:8].tolist(), -1, *IDS[9:15].tolist()]
    pairs = {((first + 1) * 27191 ^ second * 36313) % 997 for first, second in zip(before, IDS.tolist())}
    assert set(rows_N.tolist()) == pairs and len(pairs) > 12
    assert any(p is model.bigrams.table.weight for p in partition(model)["embeddings"])


@pytest.mark.parametrize("causal, reached", [
    (True, {3: [3, 4], 4: [4], 5: [5, 6]}), (False, {3: [2, 3, 4], 4: [3, 4], 5: [5, 6]})])
def test_a_bigram_looks_at_its_neighbours_and_not_beyond_its_document(causal, reached):
    """Back alone in a causal model, to both sides in a masked one; the first document ends with token 4."""
    model = make(causal=causal, layers=1, bigram_rows=997)
    for table in (model.bigrams, model.bigrams_after):
        if table is not None:
            torch.nn.init.normal_(table.table.weight)
    seen = model.embedded
    views = []
    model.embedded = lambda view: views.append(seen(view)) or views[-1]
    for changed, expected in reached.items():
        ids = IDS.clone()
        ids[changed] = (ids[changed] + 1) % 50
        model(IDS, DOCUMENTS), model(ids, DOCUMENTS)
        differs = (views[-1] != views[-2]).any(1).nonzero()[:, 0].tolist()
        assert differs == expected


def test_the_switches_learn_and_their_parameters_have_their_places():
    model = make(**SWITCHES)
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model).values())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {kind: {names[id(p)] for p in group} for kind, group in partition(model).items()}
    assert {"residual_scalars.a_L", "residual_scalars.b_L"} <= groups["vectors"]
    assert "blocks.2.attention.value_embedding.table.weight" in groups["embeddings"]
    assert "blocks.2.attention.value_embedding.gate.weight" in groups["matrices"]


def test_gates_are_counted_and_look_ups_are_free():
    assert make(**SWITCHES).flops_per_token(16) == make().flops_per_token(16) + 2 * 6 * 2 * 32


def test_the_switches_run_in_bfloat16():
    model = make(**SWITCHES)
    expected = model(IDS, DOCUMENTS)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(IDS, DOCUMENTS).float(), expected, rtol=0.1, atol=0.1)


def test_one_graph_for_each_combination_and_none_twice():
    torch._dynamo.reset()  # its limit of graphs counts those of other tests
    model, counter = make(layers=2, **SWITCHES), CompileCounter()
    model.backend = "triton"  # its twin on the CPU
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    combinations = [(2, None, 10000.0), (1, None, 10000.0), (2, 2, 500.0), (2, 2, 700.0)]
    for model.depth, model.window, model.rope_base in combinations * 2:
        assert torch.equal(compiled(IDS, DOCUMENTS), model(IDS, DOCUMENTS))
    assert counter.frame_count == len(combinations)


def test_without_a_first_attention_norm_the_embedding_norm_serves():
    model = make(first_attention_norm=False, norm="layernorm")
    assert isinstance(model.blocks[0].attention_norm, torch.nn.Identity)
    assert all(isinstance(block.attention_norm, torch.nn.LayerNorm) for block in model.blocks[1:])
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model).values())
    other = make(norm="layernorm")
    other.load_state_dict(model.state_dict(), strict=False)
    assert not torch.equal(model(IDS, DOCUMENTS), other(IDS, DOCUMENTS))
    other.blocks[0].attention_norm = torch.nn.Identity()
    assert torch.equal(model(IDS, DOCUMENTS), other(IDS, DOCUMENTS))


@pytest.mark.parametrize("overrides, message", [
    (["model.embedding_norm=false"], "leaves the first block's attention to the embedding norm, but model.embedding_norm is false"),
    (["model.layers=4", "train.layer_schedule=[[0, 2], [0.5, 4]]"], "the first block, which has no norm to copy, would be stacked")])
def test_a_missing_first_attention_norm_is_refused_where_nothing_serves(overrides, message):
    assert load("demo", ["model.first_attention_norm=false"]).model.embedding_norm
    with pytest.raises(CramError, match=message):
        load("demo", ["model.first_attention_norm=false", *overrides])
