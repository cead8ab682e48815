"""General helpers: text, times, threads, statistics, differences, schema. Imports only `errors`."""
