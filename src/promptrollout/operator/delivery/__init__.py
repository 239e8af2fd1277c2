"""PromptDeliveries: compile, write, and which pods acknowledged. Knows gateways."""
