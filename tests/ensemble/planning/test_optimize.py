import pytest
import torch

from ensemble import LowRank, MemoryLimitError, ModelError
from ensemble.backends import BACKENDS, openvino
from ensemble.backends.workshop import Workshop
from ensemble.planning import optimize
from ensemble.planning.optimize import PRECISIONS, Step, follow, steps
from ensemble.planning.plan import Plan, Trial, Way
from tests.ensemble.test_structured import remade
from tests.reference import call, worst
from tests.scenarios import SCENARIOS, seeded

converts = pytest.mark.skipif(bool(openvino.missing(torch.device("cpu"))), reason="OpenVINO is not there")


@pytest.fixture
def ens(made):
    return remade(made("mlp"), LowRank(scale=0.3), members=6)


@pytest.fixture
def only_openvino(monkeypatch):
    """The compiler takes too long for a test that is about something else."""
    for kind in [kind for kind in BACKENDS if kind != "openvino"]:
        monkeypatch.delitem(BACKENDS, kind)


@pytest.fixture
def nothing_to_compile(monkeypatch):
    """What was measured without compiling is all that there is."""
    for kind in list(BACKENDS):
        monkeypatch.delitem(BACKENDS, kind)


@converts
@pytest.mark.usefixtures("only_openvino")
def test_a_plan_is_found_checked_and_there_again_without_compiling(ens, made, tmp_path, monkeypatch):
    told = []
    plan = ens.optimize((1, 4), cache=tmp_path / "c", progress=told.append)
    assert any("openvino for 4 rows" in text for text in told)
    for way in plan.ways:
        compiled = [trial for trial in way.trials if trial.compiled]
        assert all(trial.error < 1e-5 for trial in compiled)
        assert way.seconds == min(trial.seconds for trial in way.trials)
    assert [trial.kind for trial in plan.ways[1].trials].count("openvino") == 1
    inputs = SCENARIOS["mlp"].inputs(4)
    states = [ens.member(index) for index in range(6)]
    assert worst(call(ens, inputs), seeded(SCENARIOS["mlp"]), states, inputs) <= 1e-5
    # The next process: neither measured nor compiled.
    again = remade(made("mlp"), LowRank(scale=0.3), members=6)
    monkeypatch.setattr(type(again), "measure", None)
    monkeypatch.setattr(Workshop, "_ask", None)
    second = again.optimize((1, 4), cache=tmp_path / "c")
    assert [way.rows for way in second.ways] == [1, 4]
    assert worst(call(again, inputs), seeded(SCENARIOS["mlp"]), states, inputs) <= 1e-5
    # Another precision or other sizes are another plan.
    with Workshop(tmp_path / "c") as workshop:
        assert again.recall((1, 4), workshop) is not None
        assert again.recall((1, 2), workshop) is None
        assert again.recall((1, 4), workshop, "bfloat16") is None


def test_a_backend_that_fails_is_not_asked_again_and_the_plan_says_why(ens):
    ens.measure((1, 2), seconds=0.1)
    asked = []

    def refuse(step, left):
        asked.append(step.kind)
        raise ModelError("no room")

    todo = steps(ens._runner, (1, 2))
    follow(ens._runner, todo, compile=refuse, adopt=ens.adopt, seconds=10)
    assert len(asked) == len(set(asked)) == len({step.kind for step in todo})
    assert {kind: ens.plan.failures[kind] for kind in asked} == dict.fromkeys(asked, "no room")


def test_no_step_is_begun_when_the_time_is_spent(ens):
    ens.measure((1,), seconds=0.1)
    todo = [Step(kind, 1, 6, "float32") for kind in ("openvino", "inductor")]
    assert not follow(ens._runner, todo, compile=None, adopt=None, seconds=0)
    told = set(ens.plan.failures.values())
    assert {f"no time was left for {step}" for step in todo if not BACKENDS[step.kind].missing(ens.device)} <= told


@converts
def test_a_lower_precision_that_is_not_good_enough_stops_itself_only(ens):
    ens.measure((1, 2), seconds=0.1)
    tried = []

    def compile(step, left):
        tried.append(str(step))
        assert 0 < left <= 10
        if step.precision == "bfloat16":
            raise ModelError("too far")
        return step

    todo = [step for step in steps(ens._runner, (1, 2), "bfloat16") if step.kind == "openvino"]
    assert follow(ens._runner, todo, compile=compile, adopt=bool, seconds=10)
    assert [step for step in tried if "bfloat16" not in step] == [str(s) for s in todo if s.precision == "float32"]
    assert [step for step in tried if "bfloat16" in step] == [str(todo[1])]
    assert ens.plan.failures["openvino in bfloat16"] == "too far"
    assert "openvino" not in ens.plan.failures


def test_a_plan_for_which_memory_or_time_was_lacking_is_not_kept(ens, tmp_path, monkeypatch):
    def lacking(step, workshop, left):
        raise MemoryLimitError("4 GiB")

    monkeypatch.setattr(ens, "steps", lambda **_: [Step(kind, 1, 6, "float32") for kind in BACKENDS])
    monkeypatch.setitem(BACKENDS, "openvino", None)
    monkeypatch.setattr(optimize, "missing", lambda _: {})
    monkeypatch.setattr(ens, "compile", lacking)
    for seconds, reason in ((5, "4 GiB"), (0, "no time was left for openvino")):
        plan = ens.optimize((1,), cache=tmp_path / "c", seconds=seconds)
        assert reason in plan.failures["openvino"]
        with Workshop(tmp_path / "c") as workshop:
            assert ens.recall((1,), workshop) is None


@pytest.mark.usefixtures("nothing_to_compile")
def test_a_plan_whose_sizes_were_not_all_measured_is_not_kept_and_the_next_time_measures_them(ens, tmp_path):
    plan = ens.optimize((1, 2, 4), cache=tmp_path / "c", seconds=0)
    assert [way.rows for way in plan.ways] == [1]
    with Workshop(tmp_path / "c") as workshop:
        assert ens.recall((1, 2, 4), workshop) is None
    plan = ens.optimize((1, 2, 4), cache=tmp_path / "c", seconds=30)
    assert [way.rows for way in plan.ways] == [1, 2, 4]
    assert all(way.loop_seconds for way in plan.ways)
    with Workshop(tmp_path / "c") as workshop:
        assert ens.recall((1, 2, 4), workshop) == []
    assert ens.plan == plan


@pytest.mark.parametrize("lacking", ["a size", "a loop"])
def test_a_plan_that_an_older_version_kept_though_something_was_lacking_is_not_used(ens, tmp_path, lacking):
    plan = ens.measure((1, 2), seconds=30)
    without_loop = Plan((plan.ways[0], Way.of(2, [Trial("vmap", 6, 2, 1e-3)])))
    kept = Plan(plan.ways[:1]) if lacking == "a size" else without_loop
    with Workshop(tmp_path / "c") as workshop:
        workshop.remember(ens._plan_key((1, 2), "float32"), kept.to_json())
        assert ens.recall((1, 2), workshop) is None
        assert ens.plan is plan
        workshop.remember(ens._plan_key((1, 2), "float32"), plan.to_json())
        assert ens.recall((1, 2), workshop) == []


def test_a_plan_of_before_is_not_used_once_another_backend_is_there(ens, tmp_path, monkeypatch):
    ens.measure((1,), seconds=0.1)
    with Workshop(tmp_path / "c") as workshop:
        monkeypatch.setattr(optimize, "missing", lambda _: {"inductor": "install g++"})
        ens.remember((1,), workshop)
        assert ens.recall((1,), workshop) == []
        monkeypatch.setattr(optimize, "missing", lambda _: {})
        assert ens.recall((1,), workshop) is None


@converts
@pytest.mark.usefixtures("only_openvino")
def test_a_file_that_was_damaged_is_made_again(ens, made, tmp_path):
    step = Step("openvino", 2, 6, "float32")
    with Workshop(tmp_path / "c") as workshop:
        ens.compile(step, workshop)
        [file] = (tmp_path / "c").glob("*.xml")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        ens.measure((2,), seconds=0.1)
        ens.adopt(ens.compile(step, workshop))
        assert len(file.read_bytes()) > 0.9 * len(whole)


@pytest.mark.parametrize("rows", [1, 64, 100_000])
def test_chunks_divide_the_members_and_their_activations_are_bounded(made, rows):
    ens = remade(made("cnn"), LowRank(scale=0.3), members=24)
    found = steps(ens._runner, (rows,))
    for step in found:
        assert 24 % step.chunk == 0
        assert step.chunk == 1 or step.chunk * rows * ens._runner.program.activation_bytes <= 2**30
        assert 24 // step.chunk <= 16 or step.kind == "inductor"


@converts
def test_lower_precision_is_tried_where_it_is_good_enough_only(ens):
    assert PRECISIONS == ("float32", "bfloat16")
    assert {step.precision for step in steps(ens._runner, (1,))} == {"float32"}
    both = [step.precision for step in steps(ens._runner, (1,), "bfloat16") if step.kind == "openvino"]
    assert both == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {"ways": [], "failures": {}},
        {"ways": [{"rows": 1, "trials": []}], "failures": {}},
        {"ways": [{"rows": 1, "trials": [{"kind": "vmap"}]}], "failures": {}},
        {
            "ways": [{"rows": 1, "trials": [{"kind": "openvino", "chunk": 6, "rows": 1, "seconds": 1.0}]}],
            "failures": {},
        },
        {"ways": [{"rows": 1, "trials": [{"kind": "vmap", "chunk": 600, "rows": 1, "seconds": 1.0}]}], "failures": {}},
    ],
)
def test_a_plan_that_was_kept_and_does_not_fit_is_as_if_there_were_none(ens, tmp_path, broken):
    with Workshop(tmp_path / "c") as workshop:
        key = ens._plan_key((1,), "float32")
        workshop.remember(key, broken)
        assert ens.recall((1,), workshop) is None
    assert ens.plan is None


def test_a_plan_survives_its_json(ens):
    plan = ens.measure((1, 2), seconds=0.2)
    assert Plan.from_json(plan.with_failure("inductor", "no compiler").to_json()) == plan.with_failure(
        "inductor", "no compiler"
    )
