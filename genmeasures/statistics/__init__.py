"""The mathematics: pure functions and small fitted objects on tensors, knowing nothing of networks."""
