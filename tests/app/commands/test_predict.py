"""`ensembled predict`, of a directory and of the real service."""

from __future__ import annotations

import io
import json
import sys

import httpx
import numpy as np
import pytest

from tests.app.support import assert_same, expected, plain_body, rows_of
from tests.app.test_cli import run

INPUT = rows_of("classes", 3)["input"]


def write(path, name: str):
    file = path / name
    match name.rsplit(".")[-1]:
        case "npy" | "NPY":
            with file.open("wb") as stream:
                np.save(stream, INPUT)
        case "npz":
            np.savez(file, input=INPUT) if "named" in name else np.savez(file, INPUT)
        case "json":
            value = INPUT.tolist()
            if "named" in name:
                value = {"input": value}
            if "body" in name:
                value = {"inputs": value}
            file.write_text(json.dumps(value))
        case "csv":
            lines = [",".join(repr(float(x)) for x in row) for row in INPUT]
            file.write_text("\n".join((["a,n,e,f"] if "header" in name else []) + lines) + "\n",
                            "utf-8-sig" if "spreadsheet" in name else "utf-8")  # fmt: skip
    return file


FILES = ["a.npy", "a.NPY", "a.npz", "named.npz", "a.json", "named.json", "body.json", "body-named.json", "a.csv",
         "header.csv", "header-spreadsheet.csv"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_rows_of_every_kind_of_file(capsys, models, loaded, tmp_path, name):
    status, out, err = run(capsys, "predict", models / "classes" / "2", write(tmp_path, name), "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert (answer["model"], answer["version"], answer["members"], answer["seed"]) == ("classes", "2", 6, 2)
    assert_same(answer["outputs"], expected(loaded["classes"], {"input": INPUT}))


@pytest.mark.parametrize("text", [json.dumps(INPUT.tolist()), json.dumps(plain_body({"input": INPUT}))])
def test_rows_from_standard_input(capsys, models, loaded, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    _, out, _ = run(capsys, "predict", models / "classes" / "2", "-", "--json", "--outputs", "mean, members")
    assert_same(json.loads(out)["outputs"], expected(loaded["classes"], {"input": INPUT}, ["mean", "members"]))


@pytest.mark.parametrize("more", [[], ["--model", "classes"], ["--outputs", "std,label"]])
def test_a_service_says_the_same(capsys, models, service, tmp_path, more, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = write(tmp_path, "a.npy")
    served = run(capsys, "predict", service.url + "/", file, *more)
    saved = run(capsys, "predict", models / "classes" / "2", file, *(more if "--outputs" in more else []))
    assert served == saved
    assert served[0] == 0
    assert "model classes version 2 members 6 seed 2" in served[1]


def test_a_table_has_a_line_for_each_row_and_the_numbers_of_the_answer(capsys, models, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(
        capsys, "predict", models / "classes" / "2", write(tmp_path, "a.npy"), "--outputs", "label,mean,members"
    )
    want = expected(loaded["classes"], {"input": INPUT}, ["label", "mean", "members"])
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert len(lines) == 3
    for row, line in enumerate(lines):
        number, label, mean, members = (cell.strip() for cell in line.strip("│").split("│"))
        assert (int(number), int(label)) == (row, want["label"][row])
        assert mean == " ".join(f"{v:.4g}" for v in want["mean"][row])
        assert members.endswith(" …")


def test_a_model_in_no_particular_directory(capsys, loaded, tmp_path, monkeypatch):
    loaded["weather"].save(tmp_path / "w")
    np.save(tmp_path / "a.npy", rows_of("weather", 2)["x"])
    monkeypatch.chdir(tmp_path)
    _, out, _ = run(capsys, "predict", "w", "a.npy", "--json")
    assert_same(json.loads(out)["outputs"], expected(loaded["weather"], rows_of("weather", 2)))


BAD = {
    "missing.npy": (None, "cannot be read: No such file"),
    "empty.npy": (b"", "does not hold rows of numbers"),
    "cut.npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", "does not hold"),
    "not.npz": (b"PK\x03\x04 and so on", "does not hold rows of numbers"),
    "text.json": (b"[[1, 2", "does not hold rows of numbers"),
    "ragged.json": (b"[[1, 2], [3]]", "does not hold rows of numbers"),
    "words.json": (b'[["a", "b"]]', "is not a list of rows of numbers"),
    "number.json": (b"5", "is not a list of rows of numbers"),
    "nothing.json": (b"[]", "is not a list of rows of numbers"),
    "deep.json": (b"[" * 100_000, "does not hold rows of numbers"),
    "large.json": (b"[[1e400, 0, 0, 0]]", "holds NaN or infinity"),
    "nan.json": (b"[[NaN, 0, 0, 0]]", "holds NaN or infinity"),
    "latin.json": (b"\xff\xfe", "does not hold rows of numbers"),
    "words.csv": (b"a,b\nc,d\n", "does not hold rows of numbers"),
    "header.csv": (b"a,b\n", "it has no rows"),
    "empty.csv": (b"", "it has no rows"),
    "ragged.csv": (b"1,2\n3\n", "does not hold rows of numbers"),
    "rows.txt": (b"1", "rows are read from .npy, .npz, .json, .csv or -"),
    "wrong.json": (b"[[1, 2]]", "must have the shape [batch, 4], however: [1, 2]"),
    "one.json": (b"[1, 2, 3, 4]", "a single row is a batch of one"),
    "other.json": (b'{"other": [[1, 2, 3, 4]]}', "inputs must be named among 'input'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_rows_is_status_1_and_one_line(capsys, models, tmp_path, name):
    content, says = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, out, err = run(capsys, "predict", models / "classes" / "2", tmp_path / name)
    assert (status, out) == (1, "")
    assert err.startswith("ensembled predict: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_pickled_arrays_are_refused(capsys, models, tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", input=np.array([[{}]]), allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        status, _, err = run(capsys, "predict", models / "classes" / "2", tmp_path / name)
        assert status == 1
        assert "Object arrays cannot be loaded" in err


@pytest.mark.parametrize("dtype", [">f4", "<f8", "longdouble", "<f2"])
def test_numbers_as_other_machines_write_them(capsys, models, loaded, tmp_path, dtype):
    rounded = INPUT.astype(np.float16)
    np.save(tmp_path / "a.npy", rounded.astype(dtype))
    _, out, _ = run(capsys, "predict", models / "classes" / "2", tmp_path / "a.npy", "--json")
    assert_same(json.loads(out)["outputs"], expected(loaded["classes"], {"input": rounded.astype(np.float32)}))


def test_a_fraction_is_no_integer_for_either(capsys, models, service, tmp_path):
    np.savez(tmp_path / "a.npz", features=np.zeros((1, 4)), tokens=np.array([[0.5, 1]]))
    for target, more in ((models / "pair" / "1", []), (service.url, ["--model", "pair"])):
        status, _, err = run(capsys, "predict", target, tmp_path / "a.npz", *more)
        assert status == 1
        assert "element [0][0] is 0.5" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no/such/model", "{file}"), "There is no directory no/such/model"),
        (("{models}/classes/2", "{file}", "--outputs", "x"), "output must be one of 'label'"),
        (("{models}/classes/2", "{file}", "--device", "cuda:99"), "device 'cuda:99' is not there"),
        (("{models}/classes/2", "{file}", "--device", "x"), "device must be cpu, cuda, cuda:N or auto"),
        (("{models}/classes/2", "{file}", "--model", "x"), "--model is for a running service"),
        (("{url}", "{file}", "--model", "../x"), "answered 404: there is no such path"),
        (("{url}", "{file}", "--model", "nobody"), "answered 404: unknown model 'nobody'"),
        (("{url}", "{file}", "--outputs", "x"), "answered 400: output must be one of"),
        (("{url}/docs", "{file}"), "answered 404: there is no such path"),
        (("http://127.0.0.1:9", "{file}"), "http://127.0.0.1:9 does not answer"),
        (("http://[", "{file}"), "does not answer"),
        (("http://", "{file}"), "does not answer"),
    ],
)
def test_a_target_that_cannot_answer_is_status_1_and_one_line(capsys, models, service, tmp_path, arguments, says):
    file = write(tmp_path, "a.npy")
    status, out, err = run(capsys, "predict", *(a.format(models=models, file=file, url=service.url) for a in arguments))
    assert (status, out) == (1, "")
    assert err.startswith("ensembled predict: ")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", [b"<html>", b"[1]", b'"x"', b"{}"])
def test_another_kind_of_server_is_told_apart(capsys, tmp_path, monkeypatch, content):
    monkeypatch.setattr(httpx, "post", lambda *_, **__: httpx.Response(200, content=content))
    status, _, err = run(capsys, "predict", "http://127.0.0.1:1", write(tmp_path, "a.npy"))
    assert status == 1
    assert "answered 200, but not as ensembled does; is it the base URL?" in err
