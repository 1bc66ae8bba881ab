"""Small games and bandits with known answers, where loops of preference optimisation are tried."""
