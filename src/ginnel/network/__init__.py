"""What a tunnel changes of this machine's network, and how all of it goes back."""
