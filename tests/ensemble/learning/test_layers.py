import pytest
import torch
from torch import nn

from ensemble.learning.layers import cut, final, inner, layers, listing, shifted, upto
from tests.reference import call, tensors
from tests.scenarios import SCENARIOS, seeded


def names(found):
    return [layer.name for layer in found]


def test_layers_are_linear_layers_and_convolutions_with_weights_of_their_own(exported):
    graph = exported("cnn").program.graph
    found = layers(graph)
    assert names(found) == ["features.0", "features.4", "head"]
    assert found[0].weights == ("features.0.weight", "features.0.bias")
    assert [layer.settings is None for layer in found] == [False, False, True]
    assert all(layer.columns_are_inputs for layer in found)
    # Tied weights and layers used twice are no layer's own; nor are weights that are computed.
    assert layers(exported("tied").program.graph) == []
    norms = layers(exported("norms").program.graph)
    assert names(norms) == ["body.0", "body.7"]
    assert not any(layer.columns_are_inputs for layer in norms)


@pytest.mark.parametrize(
    ("name", "want_inner", "want_final"),
    [
        ("mlp", ["3"], ["3"]),
        ("cnn", ["features.4", "head"], ["head"]),
        ("many_outputs", ["policy", "value"], ["policy", "value"]),
        ("attention", ["out"], ["out"]),
        ("many_inputs", [], ["left", "right"]),
    ],
)
def test_which_layers_read_no_inputs_and_which_the_outputs_read(exported, name, want_inner, want_final):
    graph = exported(name).program.graph
    assert names(inner(graph)) == want_inner
    assert names(final(graph)) == want_final


def test_of_a_transformer_the_first_projection_reads_an_embedding_which_was_trained(exported):
    graph = exported("encoder").program.graph
    assert names(inner(graph)) == names(layers(graph))
    assert names(final(graph)) == ["head"]


def test_the_next_layers_see_all_that_the_outputs_learn_of_one(exported):
    def following(name):
        graph = exported(name).program.graph
        return {layer.name: found and names(found) for layer in layers(graph) if (found := cut(graph, layer)) or True}

    assert following("mlp") == {"0": ["3"], "3": None}
    assert following("many_outputs") == {"body": ["policy", "value"], "policy": None, "value": None}
    encoder = following("encoder")
    assert encoder["encoder.layers.0.linear1"] == ["encoder.layers.0.linear2"]
    assert encoder["encoder.layers.1.linear2"] == ["head"]
    # The residual way passes what the first block gives by the layers of the second, which feed each other.
    assert encoder["encoder.layers.0.linear2"] is None
    assert encoder["encoder.layers.0.self_attn.in_proj_weight"] == ["encoder.layers.0.self_attn.out_proj"]
    assert encoder["head"] is None


def test_a_part_of_a_program_gives_what_a_layer_reads(exported):
    captured = exported("cnn")
    program, model = captured.program, seeded(SCENARIOS["cnn"]).eval()
    image = SCENARIOS["cnn"].inputs(4)
    part = upto(program, [layer.x for layer in layers(program.graph)])
    with torch.no_grad():
        got = part({name: captured.weights[name] for name in part.weight_names}, [image])
        want = [image, model.features[:4](image), model.features(image).flatten(1)]
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected)
    assert "head.weight" not in part.weight_names


@pytest.mark.parametrize("name", ["cnn", "encoder", "many_outputs"])
def test_a_shift_is_added_to_what_a_layer_gives(exported, name):
    captured, scenario = exported(name), SCENARIOS[name]
    inputs, layer = scenario.inputs(4), layers(captured.program.graph)[-1]
    program, model = shifted(captured.program, layer), seeded(scenario).eval()
    shift = torch.randn(4, captured.weights[layer.weight].shape[0])
    module = model.get_submodule(layer.name)
    module.register_forward_hook(lambda module, given, value: value + shift)
    flat = list(inputs) if isinstance(inputs, tuple) else [inputs]
    with torch.no_grad():
        *got, activation = program({n: captured.weights[n] for n in program.weight_names}, [*flat, shift])
        for value, want in zip(got, tensors(call(model, inputs)), strict=True):
            torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            nn.functional.linear(activation, module.weight, module.bias), module(activation) - shift
        )


def test_a_long_listing_is_cut(exported):
    found = layers(exported("encoder").program.graph)
    assert listing(found[:2]) == "'encoder.layers.0.self_attn.in_proj_weight', 'encoder.layers.0.self_attn.out_proj'"
    assert listing(found, 1) == "'encoder.layers.0.self_attn.in_proj_weight', ... (9 in all)"
    assert listing([]) == "(none)"
