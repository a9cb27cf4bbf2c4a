"""What performance claims are measured with: peers and ours in turn, in one run."""
