"""speechmill: speech corpora enhanced, scored, ranked and published, by Snakemake."""

import os

__version__ = "0.1.0"

# Before torch is imported, which reads it then: its threads sleep while they wait for each other. Where another process
# has the core of one of them, threads that spin instead made small steps twenty times slower (benchmarks/README.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without it cuBLAS, and so cuDNN's recurrent networks, may not give the same bits twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
