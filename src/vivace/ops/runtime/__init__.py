"""How the machine is used: kernels and their compilation, threads, free cores, memory.

``kernels.py`` compiles, caches and runs kernels; ``llvm.py`` has hints for the compiler inside
them; ``compilation.py`` times compilation. ``threads.py`` decides how many threads run, from
the free cores (``cores.py``) and from how long work has taken. ``products.py`` has matrix
products whose bits do not depend on that number, ``workspace.py`` reusable arrays.
"""
