import os
import sys
from types import SimpleNamespace

import pytest
import torch

from ensemble.backends import inductor, toolchain
from ensemble.backends.toolchain import cuda_home, lacking

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a C++ compiler, PyTorch for CUDA 13 and its headers, Triton, and nothing else of CUDA's."""
    programs, packages = {"g++": "/usr/bin/g++"}, {"triton": SimpleNamespace(), "nvidia": None}
    (tmp_path / "torch" / "include" / "torch").mkdir(parents=True)
    monkeypatch.setattr(toolchain, "_COMPILER", "g++")
    monkeypatch.setattr(toolchain, "_TOOLKIT", tmp_path / "usr" / "local" / "cuda")
    monkeypatch.setattr(toolchain.shutil, "which", programs.get)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", packages.get)
    monkeypatch.setattr(toolchain.torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(toolchain.torch.version, "cuda", "13.0")
    for variable in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    return SimpleNamespace(programs=programs, packages=packages, torch=tmp_path / "torch")


def toolkit(place, *headers):
    for header in headers or ("cuda_runtime_api.h", "crt/host_defines.h", "nv/target"):
        (place / "include" / header).parent.mkdir(parents=True, exist_ok=True)
        (place / "include" / header).write_text("")
    return place


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_without_a_compiler_or_headers_nothing_is_compiled_on_any_device(machine, monkeypatch, tmp_path, device):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "toolkit")))
    assert inductor.missing(device) == ""
    machine.programs.clear()
    assert inductor.missing(device) == "there is no C++ compiler; install g++"
    # PyTorch looks for no other than g++, or the one that CXX names.
    machine.programs["clang++"] = "/usr/bin/clang++"
    assert inductor.missing(device) == "there is no C++ compiler; install g++"
    monkeypatch.setenv("CXX", "clang++")
    assert inductor.missing(device) == ""
    monkeypatch.setenv("CXX", "gone")
    assert inductor.missing(device) == "CXX names no compiler: 'gone'"
    monkeypatch.delenv("CXX")
    machine.programs["g++"] = "/usr/bin/g++"
    (machine.torch / "include" / "torch").rmdir()
    assert inductor.missing(device) == "PyTorch's headers were removed; install torch again"


def test_on_a_gpu_triton_and_the_headers_of_cuda_are_needed_too(machine, monkeypatch, tmp_path):
    assert lacking(CPU) == ""
    assert "cuda-toolkit[cccl,crt]" in lacking(CUDA)
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "runtime", "cuda_runtime_api.h")))
    assert lacking(CUDA).startswith("there are no CUDA headers")
    monkeypatch.setenv("CUDA_PATH", str(toolkit(tmp_path / "toolkit")))
    assert lacking(CUDA) == ""
    del machine.packages["triton"]
    assert lacking(CUDA) == "Triton is not installed; pip install triton"


def test_a_toolkit_is_found_where_pytorch_looks_and_where_pip_puts_one(machine, monkeypatch, tmp_path):
    assert cuda_home() is None
    installed = toolkit(tmp_path / "site-packages" / "nvidia" / "cu13")
    machine.packages["nvidia"] = SimpleNamespace(submodule_search_locations=[str(installed.parent)])
    assert cuda_home() == installed
    there = toolkit(toolchain._TOOLKIT)
    assert cuda_home() == there
    compiler = toolkit(tmp_path / "cuda") / "bin" / "nvcc"
    machine.programs["nvcc"] = str(compiler)
    assert cuda_home() == tmp_path / "cuda"
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "named")))
    assert cuda_home() == tmp_path / "named"


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch's setting is not what it uses there")
def test_it_is_the_compiler_that_pytorch_takes():
    from torch._inductor import config

    assert config.cpp.cxx[1] == os.environ.get("CXX", toolchain._COMPILER)
