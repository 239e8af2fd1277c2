"""Watches, plans and carries out: the process that reconciles PromptRollouts."""
