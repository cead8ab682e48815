from pathlib import Path

from speechmill.job import logged

with logged(snakemake):
    from speechmill.ledger import find_duplicates
    from speechmill.shards import write_table

    table = find_duplicates([Path(path) for path in snakemake.input.ledgers])
    write_table(table, snakemake.output.duplicates)
    print(f"{table.num_rows} duplicates")
