from pathlib import Path

from speechmill.runlog.job_context import logged

with logged(snakemake):
    from speechmill.dedup.exact import find_duplicates
    from speechmill.dedup.held_out import find_held_out
    from speechmill.dedup.near import find_near_duplicates, ledgers_of
    from speechmill.sources.fetch import remove_raw

    ledgers, output, params = snakemake.input.ledgers, snakemake.output, snakemake.params
    others = [path for run in params.compare_with for path in ledgers_of(Path(run))]
    print(f"{find_duplicates(ledgers, output.duplicates)} duplicates")
    print(f"{find_held_out(ledgers, params.held_out, output.held_out)} clips are in a held-out split")
    found = find_near_duplicates(ledgers, others, output.near_duplicates)
    print(f"{found} clips sound like another one, of {len(ledgers)} ledgers and {len(others)} of other runs")
    remove_raw(Path(output.duplicates).parents[1])  # every batch has its ledger
