"""All uses of internals of Pyro, torch and Inductor, which no release promises to keep: one file per library.

``tests/test_internals.py`` says which version has moved which of them.
"""
