"""Graphs from files: what a hostile one may try, and that nothing of it becomes a program."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ensemble
from ensemble import ArtifactError, MemoryLimitError
from ensemble.program.graph import from_json, places, skeleton, to_json, used_weights
from tests.reference import alone, difference
from tests.scenarios import SCENARIOS
from tests.tampering import change_json, change_tensors, refused

CPU = torch.device("cpu")
V0 = {"node": "v0"}


def graph(*nodes, outputs=None):
    """A graph of one input and these operations."""
    written = [{"name": "v0", "input": True}]
    for number, (op, args, *kwargs) in enumerate(nodes, 1):
        written.append({"name": f"v{number}", "op": op, "args": args, "kwargs": kwargs[0] if kwargs else {}})
    return {"nodes": written, "outputs": outputs or [{"node": f"v{len(nodes)}"}]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_graph_goes_round_through_text(made, name):
    original = made(name).program.graph
    written = json.dumps(to_json(original))
    again = from_json(json.loads(written), CPU)
    assert json.dumps(to_json(again)) == written
    assert [str(n.target) for n in again.nodes if n.op == "call_function"] == [
        str(n.target) for n in original.nodes if n.op == "call_function"
    ]


NUMBERS = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats()


@given(st.lists(NUMBERS | st.lists(NUMBERS, max_size=3), max_size=4))
def test_numbers_and_lists_of_arguments_go_round(args):
    from ensemble.program.graph import _read, _write

    again = [_read(json.loads(json.dumps(_write(value, {}))), {}, CPU) for value in args]
    assert repr(again) == repr(args)


BAD = {
    "no graph": None,
    "a list": [],
    "no nodes": {"outputs": [V0]},
    "no outputs": {**graph(), "outputs": []},
    "outputs that are no nodes": {**graph(), "outputs": [1]},
    "outputs that are nested": {**graph(), "outputs": [[V0]]},
    "a node that is text": {"nodes": ["v0"], "outputs": [V0]},
    "a node without a name": {"nodes": [{"input": True}], "outputs": [V0]},
    "a name twice": {"nodes": [{"name": "v0", "input": True}, {"name": "v0", "input": True}], "outputs": [V0]},
    "a name that comes later": graph(("aten.relu.default", [{"node": "v2"}]), ("aten.relu.default", [V0])),
    "itself": graph(("aten.relu.default", [{"node": "v1"}])),
    "no arguments": {"nodes": [{"name": "v1", "op": "aten.relu.default"}], "outputs": [{"node": "v1"}]},
    "arguments that are none": graph(("aten.relu.default", {"self": V0})),
    "a keyword that there is not": graph(("aten.relu.default", [V0], {"x=1)\nimport os#": 1})),
    "a keyword of Python": graph(("aten.relu.default", [V0], {"class": 1})),
    "too many arguments": graph(("aten.relu.default", [V0, V0, V0])),
    "text": graph(("aten.add.Tensor", [V0, "__import__('os')"])),
    "a word that there is not": graph(("aten.gelu.default", [V0], {"approximate": {"word": "import os"}})),
    "two kinds": graph(("aten.add.Tensor", [V0, {"node": "v0", "float": "nan"}])),
    "an unknown kind": graph(("aten.add.Tensor", [V0, {"eval": "1"}])),
    "a dtype that is none": graph(("aten._to_copy.default", [V0], {"dtype": {"dtype": "nn"}})),
    "a dtype that is a path": graph(("aten._to_copy.default", [V0], {"dtype": {"dtype": "nn.functional"}})),
    "a device": graph(("aten._to_copy.default", [V0], {"device": {"device": "cuda:0"}})),
    "a number that no tensor holds": graph(("aten.add.Tensor", [V0, 2**63])),
    "deep nesting": graph(("aten.add.Tensor", [V0, json.loads("[" * 60 + "]" * 60)])),
    "arithmetic with lists": graph(("operator.mul", [[V0], 10**9])),
    "arithmetic with text": graph(("operator.mul", [{"word": "mean"}, 10**9])),
    "arithmetic with keywords": graph(("operator.add", [1, 2], {"x": 1})),
    "arithmetic with nothing": graph(("operator.add", [])),
    "an item by name": graph(("operator.getitem", [V0, {"word": "mean"}])),
    "an item of a number": graph(("operator.getitem", [1, 1])),
    "a weight without a name": {"nodes": [{"name": "v0", "weight": None}], "outputs": [V0]},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_graph_that_was_not_written_here_is_refused(kind):
    with pytest.raises(ArtifactError, match="graph: ") as caught:
        from_json(BAD[kind], CPU)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


CODE = ["x: __import__('os').system('touch owned')", "a\nimport os", "self", "torch", "device", "class", "None", "(",
        "é", "__class__.__init__", "__builtins__", "forward", "_modules.x", "'; import os; '", '"', "\\", "a" * 5000,
        "{0}", "training", "graph", "code", "*args", "**kw", "input_1", "weight_0", ""]  # fmt: skip


@pytest.mark.parametrize("text", CODE)
def test_no_name_of_a_file_becomes_code(text):
    data = {
        "nodes": [
            {"name": text, "input": True},
            {"name": "w", "weight": text},
            {"name": f"{text}2", "op": "aten.linear.default", "args": [{"node": text}, {"node": "w"}], "kwargs": {}},
        ],
        "outputs": [{"node": f"{text}2"}],
    }
    read = from_json(data, CPU)
    module = skeleton(read, {text: torch.zeros(3, 2)})
    assert places(read) == {text: "weight_0"}
    assert list(used_weights(read)) == [text]
    assert set("".join(module.code.split())) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_()=,;.:->[]{}'\"@#/"
    )
    for piece in ("import", "system", "owned", "builtins"):
        assert piece not in module.code
    x, w = torch.randn(4, 2), torch.randn(3, 2)
    (y,) = torch.func.functional_call(module, {"weight_0": w}, (x,))
    assert torch.equal(y, x @ w.T)


@pytest.mark.parametrize("text", CODE[:-1])
def test_weights_with_such_names_are_loaded_and_called_as_data(victim, text):
    def rename(data):
        for node in data["graph"]["nodes"]:
            node.update({"weight": text} if node.get("weight") == "3.weight" else {})
        data["state_names"] = [text if name == "3.weight" else name for name in data["state_names"]]
        data["inputs"][0]["name"] = text

    change_json(victim, "graph.json", rename)
    change_tensors(victim, "weights.safetensors", lambda t: t.update({f"weight/{text}": t.pop("weight/3.weight")}))
    change_tensors(victim, "example.safetensors", lambda t: t.update({text: t.pop("input")}))
    change_json(
        victim, "manifest.json", lambda m: m.update(perturbed=[text if n == "3.weight" else n for n in m["perturbed"]])
    )
    # The draw depends on the name, so these are other members than those that were saved.
    refused(victim, "not those that were saved")


class Layer(nn.Module):
    """Parameters with the names of what modules have themselves."""

    def __init__(self, name):
        super().__init__()
        self.inner = nn.ParameterDict({name: torch.randn(4)})
        self.key = name

    def forward(self, x):
        return x * self.inner[self.key]


@pytest.mark.parametrize("name", ["a b", "import os", "'", "é", "{0}", "1", "-", "code#", "weight/x"])
def test_odd_names_of_parameters_go_round(name, tmp_path):
    model, x = Layer(name), torch.randn(3, 4)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=x)
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert torch.equal(again(x), ens(x))
    assert difference(ens(x)[2], alone(model, again.member(2), x)[0]) <= 1e-6


def swapped(*nodes):
    """Another graph for the saved perceptron: its input, its weights, these operations."""

    def change(data):
        weights = [node for node in data["graph"]["nodes"] if "op" not in node]
        written = [*weights]
        for number, (op, args, *kwargs) in enumerate(nodes):
            name = f"n{number}"
            written.append({"name": name, "op": op, "args": args, "kwargs": kwargs[0] if kwargs else {}})
        source = next(node["name"] for node in weights if "input" in node)
        text = json.dumps({"nodes": written, "outputs": [{"node": f"n{len(nodes) - 1}"}]}).replace(
            '"INPUT"', f'"{source}"'
        )
        data["graph"] = json.loads(text)

    return change


X = {"node": "INPUT"}
N = [{"node": f"n{i}"} for i in range(80)]
RUNS = {
    "a list repeated": [("aten.split.Tensor", [X, 1]), ("operator.mul", [N[0], 10**10]), ("aten.relu.default", [X])],
    "a number that grows": [("aten.sym_size.int", [X, 0]), ("operator.mul", [N[0], 2**62])]
    + [("operator.mul", [N[i], N[i]]) for i in range(1, 70)]
    + [("aten.relu.default", [X])],
    "a division by nothing": [("operator.floordiv", [1, 0]), ("aten.relu.default", [X])],
    "a tensor as a number": [("operator.add", [X, X])],
    "an item that is not there": [("aten.split.Tensor", [X, 1]), ("operator.getitem", [N[0], 99])],
    "shapes that do not fit": [("aten.mm.default", [X, X])],
    "arguments of other kinds": [("aten.relu.default", [[1, 2]])],
    "arguments missing": [("aten.mm.default", [X])],
    "an output of another shape": [("aten.relu.default", [X])],
    "an output that is no tensor": [("aten.sym_size.int", [X, 0])],
    "several tensors as one": [("aten.split.Tensor", [X, 1])],
    "an index beyond": [("aten.select.int", [X, 1, 2**40])],
    "sizes that overflow": [("aten.expand.default", [X, [2**62, 2**62, 6]])],
    "a cast of nothing": [("aten._to_copy.default", [], {"dtype": {"dtype": "float64"}})],
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_graph_that_does_not_run_or_answers_something_else_is_refused(victim, kind):
    change_json(victim, "graph.json", swapped(*RUNS[kind]))
    refused(victim, "graph.json is damaged: .*Build the ensemble again")


@pytest.mark.parametrize("size", [2**33, 2**45, 2**62])
def test_a_graph_that_would_fill_the_memory_is_refused_before_it_runs(victim, size, monkeypatch):
    monkeypatch.setattr("ensemble.storage.artifact.available", lambda device: 2**32)
    fill = ("aten.full.default", [[size, 4], 1.0], {"dtype": {"dtype": "float32"}, "device": {"device": None}})
    change_json(victim, "graph.json", swapped(fill, ("aten.sum.dim_IntList", [N[0], [0]])))
    with pytest.raises(
        (MemoryLimitError, ArtifactError), match=r"makes a value of .* for one row|graph.json is damaged"
    ):
        ensemble.load(victim)


SIGNATURE = {
    "inputs": [None, [], {}, ["x"], [{}], [{"name": "x", "dtype": "float32", "shape": [6]}],
               [{"name": "x", "dtype": "float32", "shape": [-1, -1]}], [{"name": "x", "dtype": "os", "shape": [-1, 6]}],
               [{"name": "x", "dtype": "float32", "shape": [-1, 2**50]}],
               [{"name": "x", "dtype": "float32", "shape": [-1, 6]}] * 2],
    "outputs": [None, [], [{"name": "y", "dtype": "float32", "shape": [4]}],
                [{"name": "y", "dtype": "float32", "shape": [-1, 5]}],
                [{"name": "y", "dtype": "float64", "shape": [-1, 4]}],
                [{"name": "y", "dtype": "float32", "shape": [4, -1]}]],
    "positional": [None, "input", [1], ["other"], {"input": 0}],
    "arguments": [None, {}, {"tensor": 0}, {"dict": {}}, {"dict": {"input": {"tensor": 1}}}, {"dict": {"input": 0}},
                  {"dict": {"input": {"tensor": 0}, "b": {"tensor": 0}}}, {"list": [{"tensor": 0}]},
                  {"dict": {"input": {"constant": [1]}}}, {"dict": {"input": {"eval": "1"}}},
                  {"dict": {"input": json.loads('{"list":[' * 80 + '{"tensor":0}' + "]}" * 80)}}],
    "results": [None, {}, {"tensor": 1}, {"tensor": True}, {"tuple": [{"tensor": 0}, {"tensor": 0}]}, {"dict": []}],
    "state_names": [None, "x", [1], ["not.there"]],
    "aliases": [None, [], {"a": 1}, {"0.weight": "nowhere"}],
    "graph": [None, [], {}, "x"],
}  # fmt: skip


@pytest.mark.parametrize("field", SIGNATURE)
def test_every_field_of_the_signature_is_checked(victim, field):
    original = json.loads((victim / "graph.json").read_text())
    for value in SIGNATURE[field]:
        change_json(victim, "graph.json", lambda _, value=value: {**original, field: value})
        refused(victim)
    change_json(victim, "graph.json", lambda _: {k: v for k, v in original.items() if k != field})
    refused(victim)


def test_a_graph_file_that_is_no_object_is_refused(victim):
    for value in ([], "x", 1, None):
        change_json(victim, "graph.json", lambda _, value=value: value if value is not None else [None])
        refused(victim, "graph: not an object")
