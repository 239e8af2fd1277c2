"""The simulated model: speaks OpenAI's and Anthropic's APIs and answers by rules. Knows no other room."""
