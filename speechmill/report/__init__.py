"""The report: a page for people, the numbers as JSON, charts. Reads rankings; decides and publishes nothing."""
