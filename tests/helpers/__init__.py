"""Helpers of tests that are too long to stand beside them: cases, fakes and references."""
