"""Programs and their tests in two processes: what crosses, what a verdict rests on, when nothing is run."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import random
import secrets
import signal
import struct
import subprocess
import time
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import arena
from attacks.attack import TESTS
from peftlab.errors import UserError
from peftlab.sandbox import layers, margins, nursing, running, supervising, trying, verdict, ways
from peftlab.sandbox.inside import seccomp, wire
from peftlab.sandbox.limits import MIB, Limits
from peftlab.sandbox.programs import Outcome, Program
from peftlab.sandbox.supervising import Seen

LIMITS = Limits(cpu_seconds=5, wall_seconds=60, memory_bytes=512 * MIB, output_bytes=MIB)
QUICK = Limits(cpu_seconds=1, wall_seconds=60, memory_bytes=256 * MIB, output_bytes=MIB // 4)


def isolating() -> ways.Way | None:
    return next((way for way in ("kernel", "bubblewrap") if trying.attempt(way, os.geteuid()).works), None)


def outcomes(*programs: Program, limits: Limits = LIMITS) -> list[Outcome]:
    way = isolating()
    if way is None:
        pytest.skip("nothing isolates processes here")
    found = dict(running.run_in(way, programs, limits, workers=2))
    return [found[position] for position in range(len(programs))]


# ------------------------------------------------------------------------------------------------- what crosses


def opaque(value: Any) -> bytes:
    return wire.handle_bytes(7, 1, type(value).__name__)


def there_and_back(value: Any) -> Any:
    return wire.decode(wire.encode(value, opaque, MIB), lambda number, flags, name: (number, flags, name))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=())) | st.binary() | st.fractions() | st.dates() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    | st.tuples(inner, inner) | st.frozensets(st.integers() | st.text(max_size=3), max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
@settings(max_examples=40, deadline=None)
def test_plain_data_come_back_as_they_were(value: Any) -> None:
    back = there_and_back(value)
    assert back == value and type(back) is type(value)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    with contextlib.suppress(wire.NotData):
        wire.decode(data, lambda number, flags, name: None)


@given(PLAIN, st.data())
@settings(max_examples=40, deadline=None)
def test_spoilt_bytes_are_a_value_or_refused(value: Any, draw: st.DataObject) -> None:
    body = bytearray(wire.encode(value, opaque, MIB))
    body[draw.draw(st.integers(0, len(body) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with contextlib.suppress(wire.NotData):
        wire.decode(bytes(body), lambda number, flags, name: None)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def test_instances_of_subclasses_become_their_plain_base() -> None:
    for given_, plain in (
        (Liar(3), 3),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        ([Liar(3), {Liar(4): Liar(5)}], [3, {4: 5}]),
        (os.stat_result(range(10)), tuple(range(10))),
    ):
        back = there_and_back(given_)
        assert back == plain and type(back) is type(plain)
    assert type(there_and_back([Liar(1)])[0]) is int


def test_other_exact_types_that_are_data() -> None:
    moment = datetime.datetime(2020, 2, 29, 1, 2, 3, 4)
    for one in (Decimal("1.10"), Fraction(2, 3), moment, deque([1]), range(1, 9, 2), bytearray(b"x"), ..., int, {1, 2}):
        assert there_and_back(one) == one and type(there_and_back(one)) is type(one)
    assert math.isnan(there_and_back(math.nan)) and math.copysign(1, there_and_back(-0.0)) == -1
    assert there_and_back("\ud800") == "\ud800"


def test_what_is_not_data_is_a_handle() -> None:
    for one in (object(), len, iter([]), datetime.datetime.now(datetime.UTC), Liar):
        assert there_and_back(one) == (7, 1, type(one).__name__)


def test_depth_and_size_are_limited_on_both_sides() -> None:
    deep: list[Any] = []
    for _ in range(wire.DEPTH + 1):
        deep = [deep]
    for value in (deep, "x" * 5001, [[0] * 100] * 100):
        with pytest.raises(wire.NotData):
            wire.encode(value, opaque, 5000)
    for data in (b"l\0\0\0\1" * 200 + b"N", b"l\xff\xff\xff\xff", b"s\0\0\0\5ab", b"NN", b"?", b"y\0\0\0\4eval"):
        with pytest.raises(wire.NotData):
            wire.decode(data, lambda number, flags, name: None)


# ----------------------------------------------------------------------------------------------- kinds of outcome

ENDINGS = {
    "right": ("passed", "def f(x):\n    return 2 * x\n"),
    "wrong": ("assertion", "def f(x):\n    return 2 * x + (x == 4)\n"),
    "no python": ("syntax", "def f(x) return 2\n"),
    "truncated": ("syntax", "def f(x):\n    return 2 * (x"),
    "empty": ("exception", ""),
    "raises": ("exception", "def f(x):\n    return {}[x]\n"),
    "names what is not there in an annotation": ("exception", "def f(x: List[int]):\n    return 2 * x\n"),
    "raises when read": ("exception", "import no_such_module\n"),
    "its own assertion": ("exception", "def f(x):\n    assert False, 'mine'\n"),
    "loops": ("timeout", "def f(x):\n    while True: pass\n"),
    "hoards": ("memory", "def f(x):\n    return len([bytes(1 << 24) for _ in range(100)])\n"),
    "prints": ("output", "def f(x):\n    while True: print('passed' * 1000)\n"),
    "returns too much": ("output", "def f(x):\n    return 'x' * (1 << 24)\n"),
    "leaves": ("lost", "import os\nos._exit(0)\n"),
    "kills its parent": ("exception", "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return 2 * x\n"),
    "reads the machine": ("exception", "def f(x):\n    open('/etc/passwd')\n    return 2 * x\n"),
    "forks": ("exception", "import os\ndef f(x):\n    os.fork()\n    return 2 * x\n"),
    "opens a socket": ("exception", "import socket\ndef f(x):\n    socket.socket()\n    return 2 * x\n"),
    "equals everything": ("assertion", "class A(int):\n    __eq__ = lambda *a: True\ndef f(x):\n    return A(1)\n"),
}


@pytest.fixture(scope="module")
def endings() -> dict[str, Outcome]:
    programs = [Program(code=code, tests=TESTS, entry="f") for _, code in ENDINGS.values()]
    return dict(zip(ENDINGS, outcomes(*programs, limits=QUICK), strict=True))


@pytest.mark.parametrize("name", ENDINGS)
def test_every_kind_of_ending_is_told_apart(endings: dict[str, Outcome], name: str) -> None:
    assert endings[name].kind == ENDINGS[name][0], endings[name].detail


def test_an_outcome_says_what_happened(endings: dict[str, Outcome]) -> None:
    assert endings["raises"].detail == "KeyError: 21"
    assert endings["empty"].detail == "NameError: the program does not define 'f'"
    assert endings["its own assertion"].detail == "AssertionError: mine"
    assert "1 s of CPU time" in endings["loops"].detail
    used = endings["right"].cpu_seconds
    assert used is not None and 0 < used < 1


STATEMENTS = {
    "a builtin's name under test": ("def sum(a, b):\n    return a * b\n", "assert sum(3, 4) == 12"),
    "a builtin stays one": ("def set(x):\n    return 0\ndef g():\n    return [1]\n", "assert set(g()) != set([2])"),
    "a class": (
        "class Node:\n    def __init__(self, v):\n        self.v = v\n        self.next = None\n"
        "def total(n):\n    return n.v + (total(n.next) if n.next else 0)\n",
        "a = Node(1)\na.next = Node(2)\nassert total(a) == 3\nassert a.next.v == 2",
    ),
    "a generator": ("def g(n):\n    yield from range(n)\n", "assert list(g(3)) == [0, 1, 2]\nassert max(g(3)) == 2"),
    "an argument that is changed": (
        "def grow(xs, d):\n    xs.append(4)\n    xs[0].append(1)\n    d['k'] = 2\n",
        "a, d = [[0], 3], {}\ninner = a[0]\nassert grow(a, d) is None\n"
        "assert a == [[0, 1], 3, 4] and d == {'k': 2}",
    ),
    "an inner list that is changed": (
        "def put(m):\n    m[0][0] = 9\n",
        "m = [[0], [1]]\nr = m[0]\nput(m)\nassert r == [9]",
    ),
    "an exception by its kind": (
        "class Own(KeyError): pass\ndef f():\n    raise Own('why')\n",
        "try:\n    f()\n    assert False\nexcept KeyError as e:\n    assert 'why' in str(e)",
    ),
    "a constant and a module": (
        "import math\nTWO = 2\ndef f(x):\n    return x * TWO\n",
        "assert math.isclose(f(1.0), TWO)",
    ),
    "keywords": ("def f(a, *, b=1):\n    return a - b\n", "assert f(3, b=2) == 1"),
    "a match object is true": (
        "import re\ndef f(s):\n    return re.match('a', s)\n",
        "assert f('ab')\nassert not f('b')",
    ),
    "an empty deque is not": ("from collections import deque\ndef f():\n    return deque()\n", "assert not f()"),
    "sets of strings in one order": ("def f():\n    return list(set('hello world'))\n", "assert f() == f()"),
}  # fmt: skip


def test_statements_see_the_programs_names_objects_and_changes() -> None:
    found = outcomes(*(Program(code=code, tests=tests) for code, tests in STATEMENTS.values()))
    assert {name: one.detail or one.kind for name, one in zip(STATEMENTS, found, strict=True)} == dict.fromkeys(
        STATEMENTS, "passed"
    )


def test_a_program_cannot_end_a_loop_of_its_tests() -> None:
    code = "class R:\n    def __getitem__(self, key): raise StopIteration\ndef f(x):\n    return R()\n"
    (found,) = outcomes(Program(code=code, tests="assert all(map(lambda p: f(p[0])[0] == p[1], [(1, 2)]))"))
    assert (found.kind, "StopIteration" in found.detail) == ("exception", True)


@pytest.mark.slow
def test_tests_that_never_end_and_tests_that_are_none() -> None:
    right = "def f(x):\n    return 2 * x\n"
    endless, broken, no_check = outcomes(
        Program(code=right, tests="def check(candidate):\n    while True: pass\n", entry="f"),
        Program(code=right, tests="def check(candidate:\n", entry="f"),
        Program(code=right, tests="pass", entry="f"),
        limits=QUICK,
    )
    assert endless.kind == "timeout" and endless.detail.startswith("its tests")
    assert broken.kind == "lost" and "do not compile" in broken.detail
    assert no_check.kind == "lost" and "check" in no_check.detail


# -------------------------------------------------------------------------------------- what a verdict rests on


def test_a_pass_needs_the_secret_and_every_limit() -> None:
    ended = nursing.Ending(code=0, cpu_seconds=1.0)
    passed = {"kind": "passed", "detail": ""}

    def kind(**changed: Any) -> str:
        plain: dict[str, Any] = {"report": passed, "program": ended, "tests": ended, "started": True}
        return verdict.outcome(Seen(**{**plain, **changed}), LIMITS).kind

    assert kind() == "passed"
    assert kind(report=None) == "lost"
    assert kind(report={"kind": "PASSED", "detail": ""}) == "lost"
    assert kind(printed=LIMITS.output_bytes + 1) == "output"
    assert kind(waited=True) == "timeout"
    late = nursing.Ending(code=0, cpu_seconds=LIMITS.cpu_seconds + 0.01)
    assert kind(program=late) == kind(tests=late) == "timeout"
    assert kind(program=nursing.Ending(code=128 + signal.SIGXCPU, cpu_seconds=None)) == "timeout"
    assert kind(program=nursing.Ending(code=128 + signal.SIGKILL, cpu_seconds=None)) == "timeout"
    lost = {"kind": "lost", "detail": "the program's process ended"}
    assert kind(report=lost, program=nursing.Ending(code=128 + signal.SIGKILL, cpu_seconds=1.0)) == "memory"
    assert kind(report=lost, program=nursing.Ending(code=0, cpu_seconds=1.0)) == "lost"


def test_a_report_without_the_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    way = isolating()
    if way is None:
        pytest.skip("nothing isolates processes here")
    tokens = iter(["one", "two"])
    program = Program(code="def f(x):\n    return 2 * x\n", tests=TESTS, entry="f")
    with nursing.nursery(way) as nursery:
        assert supervising.supervise(nursery, program, LIMITS).report == {"kind": "passed", "detail": ""}
        # the tests' process is told another secret than the one that counts
        monkeypatch.setattr(secrets, "token_hex", lambda _: next(tokens))
        monkeypatch.setattr(secrets, "compare_digest", lambda told, mine: told == "two")
        assert supervising.supervise(nursery, program, LIMITS).report is None


# --------------------------------------------------------------------------------------------- refusing, and going on


def test_without_isolation_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(way: ways.Way, user: int) -> ways.Found:
        return ways.Found(way=way, works=False, text="not here", facts={})

    monkeypatch.setattr(trying, "attempt", nothing)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("something was started"))
    with pytest.raises(UserError, match="bubblewrap: not here; kernel: not here") as refused:
        running.run([Program(code="", tests="")], LIMITS)
    assert "--allow-unsafe-code" in str(refused.value)
    assert trying.chosen(allow_unsafe=True) == "none"
    assert [one.present for one in layers.layers()] == [False] * 6
    assert layers.refused() == "bubblewrap: not here; namespaces: not here"


def test_a_process_that_is_not_isolated_is_recognised() -> None:
    good = {"uid": 65534, "capabilities": 0, "pid": 2, "interfaces": ["lo"], "files": ["tmp", "usr"]}
    assert ways.judged("kernel", good).works
    for change in ({"uid": 0}, {"capabilities": 1}, {"pid": 4000}, {"interfaces": ["eth0", "lo"]}, {"files": ["home"]}):
        assert not ways.judged("kernel", {**good, **change}).works


def test_programs_run_without_isolation_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "chosen", lambda *, allow_unsafe: "none" if allow_unsafe else pytest.fail("not asked"))
    before = set(Path("/tmp").glob("peftlab-program-*"))
    program = Program(code="def f(x):\n    return 2 * x\n", tests=TESTS, entry="f")
    assert [one.kind for _, one in running.run([program], LIMITS, allow_unsafe=True)] == ["passed"]
    assert set(Path("/tmp").glob("peftlab-program-*")) == before


def test_an_evaluation_survives_the_end_of_its_nursery(monkeypatch: pytest.MonkeyPatch) -> None:
    way = isolating()
    if way is None:
        pytest.skip("nothing isolates processes here")
    started = []
    first = nursing.Nursery.start

    def start(self: nursing.Nursery, *rest: Any) -> int:
        number = first(self, *rest)
        started.append(number)
        if len(started) == 2:
            self.kill()
        return number

    monkeypatch.setattr(nursing.Nursery, "start", start)
    program = Program(code="def f(x):\n    return 2 * x\n", tests=TESTS, entry="f")
    found = dict(running.run_in(way, [program] * 3, LIMITS, workers=1))
    assert [found[at].kind for at in range(3)] == ["passed"] * 3
    assert arena.survivors() == set()


@pytest.mark.parametrize(("times", "kind"), [(1, "passed"), (3, "lost")])
def test_tests_without_a_verdict_are_run_again(monkeypatch: pytest.MonkeyPatch, times: int, kind: str) -> None:
    """The tests' box ends as when the system kills it for memory, or bubblewrap cannot make it."""
    way = isolating()
    if way is None:
        pytest.skip("nothing isolates processes here")
    asked = []
    first = supervising.supervise

    def supervise(*given: Any) -> Seen:
        seen = first(*given)
        asked.append(seen)
        if len(asked) <= times:
            seen.report, seen.tests = None, nursing.Ending(code=1, cpu_seconds=None)
        return seen

    monkeypatch.setattr(running, "supervise", supervise)
    program = Program(code="def f(x):\n    return 2 * x\n", tests=TESTS, entry="f")
    ((_, found),) = running.run_in(way, [program], LIMITS, workers=1)
    assert (found.kind, len(asked)) == (kind, min(times + 1, 3))


def test_an_evaluation_that_is_left_early_leaves_nothing() -> None:
    way = isolating()
    if way is None:
        pytest.skip("nothing isolates processes here")
    waits = Program(code="import time\ntime.sleep(1000)\n", tests=TESTS, entry="f")
    program = Program(code="def f(x):\n    return 2 * x\n", tests=TESTS, entry="f")
    began = time.monotonic()
    found = running.run_in(way, [program, *[waits] * 3], Limits(), workers=2)
    assert next(found)[1].kind == "passed"
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 60, "it waited for the programs"
    assert arena.survivors() == set()


# ----------------------------------------------------------------------------------------------------- small parts


def test_margins() -> None:
    seen = [
        (0, Outcome(kind="passed", detail="", cpu_seconds=0.5)),
        (1, Outcome(kind="passed", detail="", cpu_seconds=2)),
    ]
    found = margins.measured(seen, Limits(cpu_seconds=10))
    assert (found.programs, found.failed, found.slowest, found.times, found.narrow) == (2, 0, 1, 5.0, False)
    assert margins.measured(seen, Limits(cpu_seconds=5)).narrow
    failed = [*seen, (2, Outcome(kind="timeout", detail="", cpu_seconds=None))]
    assert margins.measured(failed, Limits(cpu_seconds=100)).narrow


def test_the_filter_refuses_what_it_does_not_know() -> None:
    """The filter's own instructions, run by a small interpreter of classic BPF."""

    def verdict_of(number: int, *arguments: int, architecture: int = 0xC000003E) -> int:
        program = seccomp.filter_for("x86_64", own=4)
        assert program is not None
        steps = list(struct.iter_unpack("HBBI", program))
        data = struct.pack("=iIQ6Q", number, architecture, 0, *(arguments + (0,) * (6 - len(arguments))))
        at, held = 0, 0
        while True:
            code, yes, no, value = steps[at]
            at += 1
            if code == 0x20:
                (held,) = struct.unpack_from("=I", data, value)
            elif code == 0x06:
                return int(value)
            else:
                holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
                at += yes if holds else no

    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    assert verdict_of(0) == verdict_of(9) == allow  # read, mmap
    refused = {
        "socket": 41,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "ptrace": 101,
        "mount": 165,
        "unshare": 272,
        "bpf": 321,
    }
    assert {name: verdict_of(number) for name, number in refused.items()} == dict.fromkeys(refused, refuse)
    assert verdict_of(10_000) == refuse
    assert verdict_of(56, 0x10000 | 0x100) == allow and verdict_of(56, 17) == refuse  # a thread, a process
    assert verdict_of(435) == 0x00050000 | 38  # clone3 "does not exist"
    assert verdict_of(62, 4, 9) == allow and verdict_of(62, 1, 9) == refuse  # kill: itself, its parent
    assert verdict_of(62, (1 << 32) - 1, 9) == refuse  # everybody
    assert verdict_of(0, architecture=0x40000003) == verdict_of(0x40000000) == kill  # 32 bit, x32
    assert seccomp.filter_for("riscv64", own=1) is None


def test_random_numbers_of_tests_are_the_same_each_time() -> None:
    first = repr(random.Random(0).random())
    tests = f"import random\nassert random.random() == {first}\nassert f(3) == {first}"
    code = "import random\ndef f(x):\n    return random.random()\n"
    assert [one.kind for one in outcomes(Program(code=code, tests=tests))] == ["passed"]
