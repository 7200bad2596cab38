"""Statistics of tensors: pure functions and small fitted objects that do not depend on networks."""
