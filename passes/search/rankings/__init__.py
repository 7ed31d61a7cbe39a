"""Rankings: how the scores of judged structures compare."""
