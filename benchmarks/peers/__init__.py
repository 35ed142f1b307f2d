"""The same work in plain PyTorch, written to be as fast as eager PyTorch honestly goes."""
