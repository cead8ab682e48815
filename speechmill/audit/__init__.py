"""Evaluates blind listening tests: compares listeners' judgements of a sample with the decisions. Reads reports; decides nothing."""
