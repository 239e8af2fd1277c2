"""PromptVersions, ModelProviders and PromptSLOs: whether their spec can be used, in their status. Knows cluster."""
