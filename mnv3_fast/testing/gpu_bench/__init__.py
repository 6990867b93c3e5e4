"""Speed on a GPU: what a pass has to move, engines beside ours, event-timed turns, and tables of them."""
