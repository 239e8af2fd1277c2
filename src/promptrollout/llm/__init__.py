"""Speaking to models: providers, protocols, translations, prompts and answers. Knows api only."""
