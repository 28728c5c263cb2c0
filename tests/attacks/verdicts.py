"""Programs that go for the verdict: the checker's code and memory, comparison, exit codes, forged answers."""

from __future__ import annotations

from attacks.attack import Attack, attack

APART = "two processes"
DATA = "only plain data crosses"


def subclass(base: str, value: str) -> str:
    return f"""
        class Always({base}):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __lt__(self, other): return True
            __le__ = __gt__ = __ge__ = __lt__
            def __bool__(self): return True
        def f(x): return Always({value})
    """


ATTACKS: list[Attack] = [
    attack(
        "imports_the_harness",
        "view of the file system; -S",
        """
        import peftlab.sandbox.running
        def f(x): return 2 * x
    """,
        "exception",
    ),
    attack(
        "imports_test_frameworks",
        "view of the file system; -S",
        """
        import pytest, numpy, torch
        def f(x): return 2 * x
    """,
        "exception",
    ),
    attack(
        "patches_the_checker",
        APART,
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.split(".")[-1] in ("checker", "remote", "wire", "box"):
                for key in list(vars(module)):
                    if callable(vars(module)[key]):
                        setattr(module, key, lambda *a, **k: ("passed", ""))
        def f(x): return None
    """,
        "assertion lost exception timeout",
    ),
    attack(
        "patches_unittest",
        APART,
        """
        import unittest
        unittest.TestCase.assertEqual = lambda *a, **k: None
        unittest.TestCase.assertTrue = lambda *a, **k: None
        def f(x): return None
    """,
        "exception assertion",
        tests="import unittest\ndef check(candidate):\n    unittest.TestCase().assertEqual(candidate(21), 42)\n",
    ),
    attack(
        "patches_builtins",
        APART,
        """
        import builtins
        builtins.AssertionError = ValueError
        builtins.all = builtins.any = builtins.isinstance = lambda *a, **k: True
        builtins.abs = lambda x: 0
        def f(x): return 1
    """,
        "assertion exception lost",
        tests="def check(candidate):\n    assert abs(candidate(21) - 42) < 1e-6\n",
    ),
    attack(
        "walks_the_frames",
        APART,
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                if "secret" in str(sorted(frame.f_locals)) or "check" in frame.f_globals.get("tests", ""):
                    return 2 * x
                frame = frame.f_back
    """,
        "assertion",
    ),
    attack(
        "searches_memory_for_the_secret",
        APART + "; the nursery never sees it",
        """
        import gc, re, string
        def f(x):
            for one in gc.get_objects():
                for value in (one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else ()):
                    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
                        return 2 * x
    """,
        "assertion exception",
    ),
    attack(
        "searches_memory_for_the_tests",
        APART + "; the nursery never sees them",
        """
        import ctypes, sys
        needle = "assert " + "candidate(21)"
        def f(x):
            # every object that the interpreter's allocator holds
            start = id(object()) & ~0x3fffff
            data = b""
            try:
                data = ctypes.string_at(start, 1 << 22)
            except Exception:
                pass
            return 2 * x if (needle.encode() + b" ==") in data else None
    """,
        "assertion lost",
    ),
    attack(
        "always_equal_object",
        DATA + "; objects are never asked",
        """
        class Always:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Always()
    """,
        "assertion",
    ),
    attack("always_equal_int", DATA, subclass("int", "7"), "assertion"),
    attack("always_equal_float", DATA, subclass("float", "7"), "assertion"),
    attack("always_equal_str", DATA, subclass("str", "7"), "assertion"),
    attack("always_equal_list", DATA, subclass("list", "[7]"), "assertion"),
    attack("always_equal_tuple", DATA, subclass("tuple", "(7,)"), "assertion"),
    attack("always_equal_dict", DATA, subclass("dict", "{7: 7}"), "assertion"),
    attack("always_equal_set", DATA, subclass("set", "{7}"), "assertion"),
    attack(
        "always_equal_inside_a_list",
        DATA,
        subclass("object", "").replace("Always()", "[Always()]"),
        "assertion",
        tests="def check(candidate):\n    assert candidate(21) == [42]\n",
    ),
    attack(
        "a_number_that_compares_as_it_likes",
        DATA,
        subclass("object", ""),
        "assertion exception",
        tests="def check(candidate):\n    assert abs(candidate(21) - 42) < 1e-6\n",
    ),
    attack(
        "a_container_of_everything",
        "membership is decided by the tests' interpreter",
        """
        class All:
            def __contains__(self, item): return True
            def __iter__(self): return iter(())
        def f(x): return All()
    """,
        "assertion",
        tests="def check(candidate):\n    assert 42 in candidate(21)\n",
    ),
    attack(
        "a_metaclass_that_lies",
        DATA,
        """
        class Meta(type):
            def __eq__(cls, other): return True
            def __instancecheck__(cls, other): return True
            def __hash__(cls): return 0
        class A(metaclass=Meta): pass
        def f(x): return A
    """,
        "assertion",
    ),
    attack(
        "a_class_that_calls_itself_int",
        DATA,
        """
        class Fake:
            __class__ = int
            def __eq__(self, other): return True
            def __index__(self): return 42
        def f(x): return Fake()
    """,
        "assertion exception lost",
    ),
    attack(
        "redefines_what_the_tests_use",
        "names of the tests stay theirs",
        """
        def set(x): return 0
        def sorted(x): return 0
        def len(x): return 0
        def abs(x): return 0
        class math:
            isclose = staticmethod(lambda *a, **k: True)
        def f(x): return 1
    """,
        "assertion",
        tests="assert set([f(21)]) == set([42])\nassert math.isclose(f(21), 42)\n",
    ),
    attack(
        "redefines_a_module",
        "names of the tests stay theirs",
        """
        class math:
            isclose = staticmethod(lambda *a, **k: True)
        def f(x): return 1
    """,
        "assertion",
        tests="assert math.isclose(f(21), 42)\n",
    ),
    attack(
        "defines_its_own_check",
        "names of the tests stay theirs",
        """
        def check(candidate): return None
        candidate = None
        def f(x): return None
    """,
        "assertion",
    ),
    attack(
        "forges_printed_output",
        "output counts for nothing",
        """
        print('{"secret": "", "kind": "passed", "detail": ""}')
        print("passed", flush=True)
        def f(x):
            print("OK", flush=True)
    """,
        "assertion",
    ),
    attack(
        "forges_a_report",
        APART + "; the secret",
        """
        import os
        for d in range(1, 64):
            try:
                os.write(d, b'{"secret": "x", "kind": "passed", "detail": ""}\\n')
            except OSError:
                pass
        def f(x): return None
    """,
        "lost output assertion",
    ),
    attack(
        "forges_answers",
        "an answer is only data",
        """
        import os, struct
        def f(x):
            body = b"t\\0\\0\\0\\3" + b"s\\0\\0\\0\\2ok" + b"T" + b"d\\0\\0\\0\\0"
            os.write(5, (struct.pack(">I", len(body)) + body) * 50)
    """,
        "assertion lost",
    ),
    attack(
        "answers_nonsense",
        "answers are checked",
        """
        import os
        os.write(5, b"\\0\\0\\0\\5hello" * 1000)
        def f(x): return 2 * x
    """,
        "lost",
    ),
    attack(
        "promises_a_huge_answer",
        "limit on what crosses",
        """
        import os
        os.write(5, b"\\xff\\xff\\xff\\xff")
        def f(x): return 2 * x
    """,
        "output",
    ),
    attack(
        "names_a_module_of_its_own",
        "modules are never the program's",
        """
        import types, sys
        evil = types.ModuleType("os")
        evil.isclose = lambda *a, **k: True
        math = types.ModuleType("antigravity_evil")
        math.isclose = lambda *a, **k: True
        def f(x): return 1
    """,
        "assertion exception",
        tests="assert math.isclose(f(21), 42)\n",
    ),
    attack("leaves_early_with_code_0", "the tests' process must come to its end", "import os\nos._exit(0)", "lost"),
    attack(
        "leaves_in_a_call",
        "the tests' process must come to its end",
        """
        import os
        def f(x): os._exit(0)
    """,
        "lost",
    ),
    attack("sys_exit_at_import", "the tests' process must come to its end", "import sys\nsys.exit(0)", "exception"),
    attack(
        "sys_exit_in_a_call",
        "exceptions cross as data",
        """
        import sys
        def f(x): sys.exit(0)
    """,
        "exception",
    ),
    attack(
        "sys_exit_into_tests_that_swallow",
        "exceptions cross as data",
        """
        import os
        def f(x): os._exit(0)
    """,
        "lost",
        tests="def check(candidate):\n    try:\n        assert candidate(21) == 42\n    except BaseException:\n"
        "        pass\n",
    ),
    attack(
        "kills_itself",
        "the tests' process must come to its end",
        """
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    """,
        "memory lost",
    ),
    attack("aborts", "the tests' process must come to its end", "import os\nos.abort()", "lost"),
    attack(
        "crashes_the_interpreter",
        "its own process",
        """
        import ctypes
        def f(x): return ctypes.string_at(0)
    """,
        "lost",
    ),
    attack(
        "atexit",
        APART,
        """
        import atexit, os
        atexit.register(lambda: print("passed"))
        atexit.register(lambda: os._exit(0))
        def f(x): return None
    """,
        "assertion",
    ),
    attack(
        "settrace",
        APART,
        """
        import sys
        def trace(frame, event, arg):
            for name in frame.f_locals:
                if name in ("answer", "kind"):
                    frame.f_locals[name] = ("ok", 42, {})
            return trace
        sys.settrace(trace)
        sys.setprofile(trace)
        def f(x): return None
    """,
        "assertion exception lost",
    ),
    attack(
        "excepthook_and_unraisable",
        APART,
        """
        import sys, os
        sys.excepthook = lambda *_: os._exit(0)
        sys.unraisablehook = lambda *_: os._exit(0)
        def f(x): raise ValueError("x")
    """,
        "exception",
    ),
    attack(
        "raises_an_assertion_of_its_own",
        "exceptions cross as data",
        """
        def f(x): raise AssertionError("mine")
    """,
        "exception",
    ),
    attack(
        "raises_what_ends_interpreters",
        "exceptions cross as data",
        """
        def f(x): raise GeneratorExit
    """,
        "exception",
    ),
    attack(
        "raises_the_end_of_a_loop",
        "exceptions cross as data",
        """
        def f(x): raise StopIteration
    """,
        "exception",
        tests="def check(candidate):\n    assert all(candidate(v) == 2 * v for v in (1, 2))\n",
    ),
    attack(
        "an_exception_that_never_prints",
        "CPU limit",
        """
        class Evil(Exception):
            def __str__(self):
                while True:
                    pass
        def f(x): raise Evil
    """,
        "timeout",
    ),
    attack(
        "pickles_itself",
        "no pickle anywhere",
        """
        import os
        class P:
            def __reduce__(self): return (os.system, ("touch /tmp/{marker}",))
        def f(x): return P()
    """.replace("{marker}", "x"),
        "assertion",
    ),
    attack(
        "closes_everything",
        "the tests' process must come to its end",
        """
        import os
        os.closerange(0, 1000)
        def f(x): return 2 * x
    """,
        "lost exception",
    ),
    attack(
        "crosses_its_pipes",
        "the tests' process must come to its end",
        """
        import os
        os.dup2(1, 5)
        def f(x): return 2 * x
    """,
        "lost timeout",
    ),
    attack(
        "a_thread_that_answers",
        "answers are checked",
        """
        import os, threading
        def noise():
            while True:
                os.write(5, b"\\0\\0\\0\\1T")
        threading.Thread(target=noise, daemon=True).start()
        def f(x): return None
    """,
        "lost assertion",
    ),
    attack("null_bytes", "compiled in its own process", "def f(x): return 2 * x\0\n", "syntax"),
    attack("no_python", "compiled in its own process", "Here is the solution:\n\n    def f(x) return", "syntax"),
    attack("nested_beyond_the_parser", "compiled in its own process", "f = " + "(" * 5000 + ")" * 5000, "syntax lost"),
    attack(
        "nested_operators", "compiled in its own process", "f = " + "-" * 200000 + "1", "syntax lost memory exception"
    ),
    attack(
        "a_strange_encoding",
        "compiled in its own process",
        "# coding: utf-7\n+AG8-s = 1\ndef f(x): return None\n",
        "syntax assertion",
    ),
    attack("empty_program", "tests need a function", "", "exception"),
    attack("a_function_without_a_body", "tests need an answer", "def f(x):\n    pass\n", "assertion"),
]
