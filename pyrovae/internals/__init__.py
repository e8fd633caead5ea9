"""What leans on the insides of Pyro, torch and Inductor, which no release promises to keep: a file for each library.

``tests/test_internals.py`` says which version has moved what.
"""
