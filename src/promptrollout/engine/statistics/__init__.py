"""Mathematics on plain numbers: evidence, bets, mixtures, dispersion. Knows no rollout."""
