from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ensemble import InputError, ModelError
from ensemble.program.structure import Arguments, Structure, as_call

leaf = st.builds(lambda value: torch.tensor(float(value)), st.integers(0, 99))
constant = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
key = st.text(st.characters(exclude_characters="."), min_size=1, max_size=4)
nested = st.recursive(
    leaf | constant,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(key, inner, max_size=3),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


@given(nested)
def test_whatever_is_taken_apart_is_put_together_again(value):
    structure, tensors = Structure.of(value, "x")
    assert len(structure.names) == len(tensors) == len(set(structure.names))
    assert same(structure.pack(tensors), value)
    assert all(a is b for a, b in zip(structure.flatten(value, "x"), tensors, strict=True))


def test_names_join_the_keys():
    t = torch.zeros(())
    assert Structure.of(t, "x")[0].names == ("x",)
    assert Structure.of((t, t), "x")[0].names == ("x_0", "x_1")
    assert Structure.of({"a": t, "b": [t, {"c": t}]}, "x")[0].names == ("a", "b.0", "b.1.c")


def test_containers_of_other_kinds():
    @dataclass
    class Data:
        y: torch.Tensor
        z: None = None

    pair = namedtuple("pair", "left right")
    t = torch.zeros(())
    assert Structure.of(Data(t), "x")[0].layout == {"dict": {"y": {"tensor": 0}, "z": {"constant": None}}}
    structure = Structure.of(pair(t, t), "x")[0]
    assert structure.names == ("left", "right")
    assert structure.flatten((t, t), "x") == [t, t]
    assert Structure.of(OrderedDict(b=t, a=t), "x")[0].names == ("b", "a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "'x' is a object"),
        ({"a": {1, 2}}, "'a' is a set"),
        ({1: torch.zeros(())}, "Keys of a dict"),
        ({"a.b": torch.zeros(()), "a": {"b": torch.zeros(())}}, "Two tensors would have the name 'a.b'"),
    ],
)
def test_what_cannot_be_written_down_is_refused(value, text):
    with pytest.raises(ModelError, match=text):
        Structure.of(value, "x")


def forward(a, b=None, *rest, flag=True, **more):
    pass


def test_arguments_are_bound_as_python_binds_them():
    t = [torch.tensor(float(i)) for i in range(5)]
    arguments = Arguments.of(forward, (t[0], t[1], t[2]), {"flag": False, "other": t[3]})
    assert arguments.positional == ("a", "b", "rest_0")
    assert arguments.names == ("a", "b", "rest_0", "other")
    assert arguments.bind((t[4], t[1], t[2]), {"other": t[3]}) == [t[4], t[1], t[2], t[3]]
    called = arguments.call(lambda *args, **kwargs: (args, kwargs), t[:4])
    assert called == ((t[0], t[1], t[2]), {"flag": False, "other": t[3]})


def test_constants_of_the_example_hold_for_every_call():
    t = torch.zeros(2)
    arguments = Arguments.of(forward, (t,), {"flag": False})
    assert arguments.bind((t,), {}) == [t]
    with pytest.raises(InputError, match="a constant in it, differs"):
        arguments.bind((t,), {"flag": True})


def test_an_example_is_a_call():
    t = torch.zeros(1)
    assert as_call(t) == ((t,), {})
    assert as_call((t, 1)) == ((t, 1), {})
    assert as_call({"a": t}) == ((), {"a": t})
    assert as_call([t]) == (([t],), {})
