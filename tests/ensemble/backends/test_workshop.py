import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ensemble import LowRank, ModelError
from ensemble.backends import workshop as module
from ensemble.backends.job import Job
from ensemble.backends.workshop import Workshop
from tests.ensemble.test_structured import remade

# A worker that never answers, one that ends at once, one that says no, and one that does what it is told.
HANGING = "import time; time.sleep(60)"
ENDING = "pass"
REFUSING = 'import sys; [print(\'{"error": "no such operation"}\', flush=True) for _ in sys.stdin]'
BUILDING = """
import json, pathlib, sys
for line in sys.stdin:
    count = pathlib.Path(sys.argv[1], "count")
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    for suffix in (".xml", ".bin"):
        pathlib.Path(sys.argv[1], sys.argv[2]).with_suffix(suffix).write_text("built")
    print('{"error": ""}', flush=True)
"""


@pytest.fixture
def job(made):
    ens = remade(made("mlp"), LowRank(scale=0.3))
    return ens._runner.job("openvino", ens.example(2), len(ens))


def working(monkeypatch, program, *arguments):
    """Workers run this instead; the directory comes first among their arguments."""
    script = f"import sys; sys.argv = ['', sys.argv[-1], *sys.argv[1:-1]]\n{program}"
    monkeypatch.setattr(module, "_WORKER", [sys.executable, "-c", script, *arguments])


def test_a_job_that_takes_too_long_is_given_up_and_its_process_ended(job, monkeypatch, tmp_path):
    working(monkeypatch, HANGING)
    with Workshop(tmp_path / "c", seconds=0.5) as workshop:
        started = []
        monkeypatch.setattr(
            module, "_kill", lambda process, kill=module._kill: (started.append(process), kill(process))
        )
        with pytest.raises(
            ModelError, match=r"openvino cannot compile this call here: it took longer than 0\.5 seconds"
        ):
            workshop.build(job)
        assert started[0].poll() == -9


def test_a_process_that_ends_is_told_and_the_next_job_gets_another(job, monkeypatch, tmp_path):
    with Workshop(tmp_path / "c") as workshop:
        working(monkeypatch, ENDING)
        with pytest.raises(ModelError, match="the compiling process ended"):
            workshop.build(job)
        working(monkeypatch, BUILDING, job.key)
        assert workshop.build(job).with_suffix(".xml").read_text() == "built"


def test_what_a_compiler_says_is_handed_on(job, monkeypatch, tmp_path):
    working(monkeypatch, REFUSING)
    with Workshop(tmp_path / "c") as workshop, pytest.raises(ModelError, match="here: no such operation"):
        workshop.build(job)


def test_nothing_is_built_twice_not_even_by_another_workshop(job, monkeypatch, tmp_path):
    working(monkeypatch, BUILDING, job.key)
    for _ in range(2):
        with Workshop(tmp_path / "c") as workshop:
            workshop.build(job)
            assert workshop.has(job)
            workshop.build(job)
    assert (tmp_path / "c" / "count").read_text() == "1"


def test_closing_ends_a_job_that_is_under_way(job, monkeypatch, tmp_path):
    working(monkeypatch, HANGING)
    workshop, said = Workshop(tmp_path / "c"), []

    def build():
        with pytest.raises(ModelError) as caught:
            workshop.build(job)
        said.append(str(caught.value))

    thread = threading.Thread(target=build)
    thread.start()
    while workshop._process is None:
        time.sleep(0.01)
    begun = time.perf_counter()
    workshop.close()
    thread.join()
    assert time.perf_counter() - begun < 10
    assert "the compiling process ended" in said[0]


def test_its_directory_is_for_this_user_alone(tmp_path):
    found = Workshop(tmp_path / "new" / "c").directory
    assert found == tmp_path / "new" / "c"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    workshop = Workshop(shared)
    assert workshop.directory != shared
    assert stat.S_IMODE(workshop.directory.stat().st_mode) == 0o700


def test_a_place_where_no_directory_can_be_made_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    assert os.access(Workshop(tmp_path / "file" / "c").directory, os.W_OK)


def test_documents_are_kept_and_what_is_broken_is_none(tmp_path):
    workshop = Workshop(tmp_path / "c")
    workshop.remember("plan-a", {"ways": [1.5]})
    assert workshop.recall("plan-a") == {"ways": [1.5]}
    assert workshop.recall("plan-b") is None
    (tmp_path / "c" / "plan-a.json").write_text("{")
    assert workshop.recall("plan-a") is None


def test_a_job_survives_its_text_and_its_key_tells_jobs_apart(made, job):
    assert Job.from_json(job.to_json()) == job
    ens = remade(made("mlp"), LowRank(scale=0.3))
    others = [
        ens._runner.job("inductor", ens.example(2), len(ens)),
        ens._runner.job("openvino", ens.example(3), len(ens)),
        remade(made("mlp"), LowRank(scale=0.3, rank=2))._runner.job("openvino", ens.example(2), len(ens)),
        remade(made("mlp"), LowRank(scale=0.3), members=3)._runner.job("openvino", ens.example(2), 3),
    ]
    assert len({job.key, *(other.key for other in others)}) == 5
    # What the weights are does not matter, only their shapes.
    same = remade(made("mlp"), LowRank(scale=0.9))._runner.job("openvino", ens.example(2), len(ens))
    assert same.key == job.key


def test_weights_of_another_dtype_are_another_job(made, job):
    half = remade(made("mlp"), LowRank(scale=0.3)).to(dtype=torch.bfloat16)
    assert half._runner.job("openvino", half.example(2), len(half)).key != job.key


def test_a_job_may_have_less_time_than_the_workshop_gives(job, monkeypatch, tmp_path):
    working(monkeypatch, HANGING)
    with Workshop(tmp_path / "c") as workshop, pytest.raises(ModelError, match=r"longer than 0\.3 seconds"):
        workshop.build(job, 0.3)


def test_what_is_not_kept_is_told_with_the_reason(tmp_path, caplog, monkeypatch):
    # Converting in this process, as another test does, sets the level of every logger.
    caplog.set_level("WARNING", "ensemble.workshop")
    shared = tmp_path / "open"
    shared.mkdir()
    shared.chmod(0o777)
    Workshop(shared)
    (tmp_path / "file").write_text("")
    Workshop(tmp_path / "file" / "c")

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.Path, "expanduser", homeless)
    assert os.access(Workshop().directory, os.W_OK)
    told = [record.getMessage() for record in caplog.records if record.name == "ensemble.workshop"]
    assert all("until this process ends only" in text for text in told)
    assert "chmod go-w" in told[0]
    assert "Not a directory" in told[1]
    assert "home directory" in told[2]


def test_the_threads_that_inductor_writes_into_its_loops_are_part_of_a_job(made):
    ens, threads = remade(made("mlp"), LowRank(scale=0.3)), torch.get_num_threads()
    keys = {kind: set() for kind in ("inductor", "openvino")}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for kind, found in keys.items():
                found.add(ens._runner.job(kind, ens.example(2), len(ens)).key)
    finally:
        torch.set_num_threads(threads)
    assert {kind: len(found) for kind, found in keys.items()} == {"inductor": 2, "openvino": 1}


def test_where_nothing_can_be_written_it_says_so(monkeypatch, tmp_path):
    def refuse(**_):
        raise FileNotFoundError("No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module.tempfile, "mkdtemp", refuse)
    with pytest.raises(ModelError, match=r"There is no directory to compile in: .*No usable temporary directory"):
        Workshop(tmp_path / "file" / "c")


def test_what_was_not_used_for_long_is_cleared_away_and_use_counts(job, monkeypatch, tmp_path):
    directory = tmp_path / "c"
    working(monkeypatch, BUILDING, job.key)
    with Workshop(directory) as workshop:
        workshop.build(job)
        workshop.remember("plan-a", {})
    month, day = time.time() - 31 * 24 * 3600, time.time() - 25 * 3600
    for name, age in (("old.xml", month), ("plan-old.json", month), ("recent.xml", day), ("draft-1-x.xml", day)):
        (directory / name).write_text("")
        os.utime(directory / name, (age, age))
    for path in (directory / f"{job.key}.xml", directory / f"{job.key}.bin", directory / "plan-a.json"):
        almost = month + 2 * 24 * 3600
        os.utime(path, (almost, almost))
    second = Workshop(directory)
    assert second.recall("plan-a") == {}
    second.build(job)
    assert {path.name for path in directory.iterdir() if path.is_file()} - {"count"} == {
        "recent.xml", "plan-a.json", f"{job.key}.xml", f"{job.key}.bin"
    }  # fmt: skip
    assert all(time.time() - (directory / f"{job.key}{end}").stat().st_mtime < 3600 for end in (".xml", ".bin"))


# Leaves something where compilers put things, and says where that is.
LITTERING = """
import json, os, pathlib, sys
for line in sys.stdin:
    scratch = pathlib.Path(os.environ["TMPDIR"])
    (scratch / "torchinductor_me").mkdir(exist_ok=True)
    (scratch / "torchinductor_me" / "headers.h.gch").write_text("precompiled")
    with open(sys.argv[1] + "/places", "a") as places:
        print(scratch, file=places)
    print('{"error": "built nothing"}', flush=True)
"""


def littered(workshop, job):
    with pytest.raises(ModelError, match="built nothing"):
        workshop.build(job)
    return Path((workshop.directory / "places").read_text().split()[-1])


def test_what_compilers_leave_goes_with_their_process_and_not_with_anothers(job, monkeypatch, tmp_path):
    working(monkeypatch, LITTERING)
    with Workshop(tmp_path / "c") as one:
        first = littered(one, job)
        with Workshop(tmp_path / "c") as other:
            second = littered(other, job)
            assert {first, second} == set((tmp_path / "c" / "scratch").iterdir())
            assert stat.S_IMODE(second.stat().st_mode) == 0o700
        assert [*(tmp_path / "c" / "scratch").iterdir()] == [first]
        assert (first / "torchinductor_me" / "headers.h.gch").is_file()
        # The same process goes on where it was.
        assert littered(one, job) == first
    assert [*(tmp_path / "c" / "scratch").iterdir()] == []


def test_a_process_that_is_given_up_leaves_nothing(job, monkeypatch, tmp_path):
    working(monkeypatch, LITTERING.replace("print('", "import time; time.sleep(60); print('"))
    workshop = Workshop(tmp_path / "c")
    with pytest.raises(ModelError, match="longer than 5 seconds"):
        workshop.build(job, 5)
    assert (tmp_path / "c" / "places").exists()
    assert [*(tmp_path / "c" / "scratch").iterdir()] == []


def test_a_workshop_that_nobody_closes_leaves_nothing_when_python_ends(job, tmp_path):
    program = f"""
import sys
from ensemble import ModelError
from ensemble.backends import workshop
from ensemble.backends.job import Job
workshop._WORKER = [sys.executable, "-c", {LITTERING!r}]
try:
    kept = workshop.Workshop(workshop.Path({str(tmp_path / "c")!r}))
    kept.build(Job.from_json({job.to_json()!r}))
except ModelError as error:
    assert "built nothing" in str(error), error
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "c" / "places").exists()
    assert [*(tmp_path / "c" / "scratch").iterdir()] == []


def test_what_compilers_wrote_is_cleared_away_as_well(tmp_path):
    now = time.time()
    hour, day, month = now - 3600, now - 25 * 3600, now - 31 * 24 * 3600
    directory, outside = tmp_path / "c", tmp_path / "outside"
    outside.mkdir()
    ages = {
        "inductor/ab/old.cpp": month, "inductor/ab/old.so": 0, "inductor/ab/recent.so": day,
        "scratch/killed/headers.h.gch": 0, "scratch/killed/deep/a.o": 0, "scratch/at work/headers.h.gch": 0,
        "scratch/old": day, "scratch/recent": hour,
    }  # fmt: skip
    for name, age in ages.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("")
        os.utime(directory / name, (age, age))
    (outside / "old").write_text("somebody else's")
    os.utime(outside / "old", (0, 0))
    for name in ("inductor/link", "scratch/link"):
        (directory / name).symlink_to(outside)
    os.utime(directory / "scratch" / "killed", (day, day))
    os.utime(directory / "scratch" / "at work", (hour, hour))
    os.utime(directory / "scratch" / "link", (0, 0), follow_symlinks=False)
    directory.chmod(0o700)
    Workshop(directory)
    left = {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}
    assert left - {"inductor/link"} == {
        "inductor/ab/recent.so", "scratch/at work/headers.h.gch", "scratch/recent"
    }  # fmt: skip
    assert (outside / "old").is_file()


def test_a_process_whose_scratch_another_took_away_is_started_anew(job, monkeypatch, tmp_path):
    working(monkeypatch, LITTERING)
    with Workshop(tmp_path / "c") as workshop:
        first = littered(workshop, job)
        os.utime(first, (0, 0))
        # A job is a use.
        littered(workshop, job)
        Workshop(tmp_path / "c")
        assert first.is_dir()
        os.utime(first, (0, 0))
        Workshop(tmp_path / "c")
        assert not first.exists()
        second = littered(workshop, job)
        assert second != first
        assert second.is_dir()
