"""Snakemake, which writes what it imported into a file: python listed_modules.py FILE ARGUMENTS."""

import atexit
import runpy
import sys
from pathlib import Path

file = Path(sys.argv.pop(1))
atexit.register(lambda: file.write_text("\n".join(sys.modules), encoding="utf-8"))
sys.path.pop(0)  # the folder of this file
runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
