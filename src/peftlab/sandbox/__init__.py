"""Runs programs that a model wrote, and says whether their tests pass, on a machine that has to survive them.

Isolation, limits and the verdict; not what a task's tests are, how an answer becomes a program, or what a score is.
"""
