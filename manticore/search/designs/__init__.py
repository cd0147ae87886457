"""Architecture search from scratch: spaces of stacks, methods that choose among them, the study that trains them."""
