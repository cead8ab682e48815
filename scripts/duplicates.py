import shutil
from pathlib import Path

from speechmill.job import logged

with logged(snakemake):
    from speechmill.duplicates import find_duplicates
    from speechmill.held_out import find_held_out

    ledgers, output = snakemake.input.ledgers, snakemake.output
    print(f"{find_duplicates(ledgers, output.duplicates)} duplicates")
    print(f"{find_held_out(ledgers, snakemake.params.held_out, output.held_out)} clips are in a held-out split")
    # Every batch has its ledger: nothing that was fetched or unpacked is read any more.
    shutil.rmtree(Path(output.duplicates).parents[1] / "raw", ignore_errors=True)
