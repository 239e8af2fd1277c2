"""PromptGateways: the objects of serving pods, their conditions, their pods. Knows cluster."""
