"""PromptRollouts and the objects they refer to: resolve, plan, write. Knows all other rooms."""
