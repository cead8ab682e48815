from pathlib import Path

from speechmill.job import logged

with logged(snakemake):
    from speechmill.near_duplicates import find_near_duplicates, ledgers_of

    others = [path for run in snakemake.params.compare_with for path in ledgers_of(Path(run))]
    found = find_near_duplicates(snakemake.input.ledgers, others, snakemake.output.near_duplicates)
    print(
        f"{found} clips sound like another one, of {len(snakemake.input.ledgers)} ledgers and {len(others)} of other runs"
    )
