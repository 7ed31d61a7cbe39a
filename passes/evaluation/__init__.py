"""Scores of many plans of one network: fresh batch-norm statistics, images, races, backends."""
