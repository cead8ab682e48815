from speechmill.job import logged

with logged(snakemake):
    from speechmill.duplicates import find_duplicates

    print(f"{find_duplicates(snakemake.input.ledgers, snakemake.output.duplicates)} duplicates")
