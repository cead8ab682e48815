"""Publication: accepted clips and all scores as a data set; decides nothing and knows no executor or command line.

`target` says where a run is published. `shards` plans and writes the Parquet files, `card` the README.md, and `figure`
its picture. `to_folder` writes and verifies a data set in a folder, `to_hub` in a repository of the Hub (`repository`).
`ahead` ranks a batch whose shards are sent before the other batches are complete.
"""
