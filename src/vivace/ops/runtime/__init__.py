"""How the machine is used: kernels and their compilation, threads, free cores.

``kernels.py`` compiles, caches and runs kernels, ``llvm.py`` has hints for the compiler in them,
``compilation.py`` announces and times it; ``threads.py`` decides how many threads run, from
``cores.py``, which cores are free, and from what work has taken.
"""
